"""Locks on any file system, folders of dead processes, and deadlines of a machine that sleeps."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import BenchError, StorageError
from bench.measure import deadline, scratch
from bench.measure.locks import exclusive


def no_flock(*_: object) -> None:
    raise OSError(errno.EOPNOTSUPP, "Operation not supported")


@pytest.mark.parametrize("flock", [True, False])
def test_only_one_at_a_time_has_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool) -> None:
    if not flock:
        monkeypatch.setattr(fcntl, "flock", no_flock)
    path = tmp_path / ".lock"
    with exclusive(path) as first, exclusive(path) as second:
        assert (first, second) == (True, False)
    with exclusive(path) as again:
        assert again


def test_third_session_finds_the_second_when_the_first_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "measuring.lock"
    first, second = (exclusive(path, then_shared=True) for _ in range(2))
    assert (first.__enter__(), second.__enter__()) == (True, False)
    first.__exit__(None, None, None)
    with exclusive(path, then_shared=True) as third:
        assert not third
    second.__exit__(None, None, None)
    with exclusive(path, then_shared=True) as alone:
        assert alone


def test_without_flock_lock_of_ended_process_counts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", no_flock)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / ".lock.owner").write_text(f"{os.uname().nodename} {child.pid} 12345")
    with exclusive(tmp_path / ".lock") as held:
        assert held


def test_a_link_is_no_lock_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "victim")
    with pytest.raises(BenchError, match="is a link"), exclusive(tmp_path / ".lock"):
        pass
    assert (tmp_path / "victim").read_text() == "kept"


def test_folders_of_ended_processes_go_and_others_stay(tmp_path: Path) -> None:
    mine = scratch.new_folder([tmp_path])
    host = mine.name.split("-")[1]
    dead = tmp_path / f"bench-{host}-{os.getpid()}-1-abc"
    foreign = tmp_path / "bench-00000000-999999-1-abc"
    other = tmp_path / "bench-audit-xyz"
    for folder in (dead, foreign, other):
        folder.mkdir()
    with scratch.own_folder([tmp_path]) as own:
        assert not dead.exists()
        assert own.is_dir()
    assert not own.exists()
    assert mine.is_dir()
    assert foreign.is_dir()
    assert other.is_dir()


def test_a_socket_never_gets_a_path_that_is_too_long(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 150)
    folder = scratch.new_folder([long, Path("/tmp")], scratch.MAX_SOCKET_PATH)
    assert folder.parent == Path("/tmp")
    folder.rmdir()
    with pytest.raises(StorageError, match="too long"):
        scratch.new_folder([long], scratch.MAX_SOCKET_PATH)


def test_seconds_of_sleep_do_not_count_to_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now)
    left = deadline.Deadline(100)
    assert left.next_wait_s() == 10
    now += 3600  # the machine slept
    assert not left.over()
    for _ in range(8):
        now += left.next_wait_s()
    assert left.over()
