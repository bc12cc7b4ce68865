"""What interpreters, git and the system say of what was measured: with processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.record import machine, software


def test_packages_of_a_foreign_interpreter_are_listed(tmp_path: Path) -> None:
    for folder, version in (("first", "1.0"), ("second", "2.0")):
        info = tmp_path / folder / f"somedet-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: somedet\nVersion: {version}\n")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tmp_path / name) for name in ("first", "second"))}
    facts = software.environment_of(Path(sys.executable), env)
    assert facts["python"] == sys.version.split()[0]
    assert facts["packages"]["numpy"]
    assert facts["packages"]["somedet"] == "1.0"


def test_an_interpreter_that_does_not_start_is_no_error(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    assert software.environment_of(broken) == {}
    assert software.environment_of(tmp_path / "absent") == {}


def test_a_revision_is_only_claimed_for_code_that_git_tracks(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    assert software.git_revision(tmp_path / "absent") == {}
    git("init")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1")
    assert software.git_revision(tmp_path) == {}
    git("add", "code")
    git("commit", "-m", "first")
    clean = software.git_revision(tmp_path / "code")
    assert len(clean["revision"]) == 40
    assert clean["dirty"] is False
    git("remote", "add", "origin", "https://jdoe:s3cret@git.example.org/team/bench.git")
    assert software.git_revision(tmp_path)["origin"] == "https://git.example.org/team/bench.git"
    git("remote", "set-url", "origin", str(tmp_path))
    assert software.git_revision(tmp_path) == clean, "a folder of this machine is no address"
    assert software.git_diff(tmp_path) == ""
    (tmp_path / "results.json").write_text("{}")
    assert software.git_revision(tmp_path) == clean, "a new file is no change of the code"
    (tmp_path / "code" / "a.py").write_text("2")
    assert software.git_revision(tmp_path) == {**clean, "dirty": True}
    assert "-1\n" in software.git_diff(tmp_path / "code")
    assert "+2\n" in software.git_diff(tmp_path / "code")
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "b.py").write_text("1")
    assert software.git_revision(tmp_path / "venv") == {}, "an environment inside a clone has no revision"


@pytest.mark.parametrize(("remote", "address"), [
    ("https://github.com/team/bench", "https://github.com/team/bench"),
    ("https://ghp_0123456789@github.com/team/bench.git", "https://github.com/team/bench.git"),
    ("https://jdoe:p%40ss@GitHub.com/team/bench/", "https://github.com/team/bench"),
    ("git@gitlab.example.org:group/part/bench.git", "https://gitlab.example.org/group/part/bench.git"),
    ("ssh://git@example.org/team/bench", "https://example.org/team/bench"),
    *((hidden, "") for hidden in (
        "", "/home/jdoe/bench", "file:///home/jdoe/bench", "../bench", "git@build-7:team/bench", "http://10.0.0.7/a/b",
        "https://git.corp/team/bench", "https://nas.local/team/bench", "https://example.org:8443/team/bench",
        "https://example.org/team/bench?token=1", "https://example.org/x:y@z/bench", "ext::sh -c whoami", "a.b:c",
    )),
])  # fmt: skip
def test_only_public_addresses_without_users_are_kept(remote: str, address: str) -> None:
    assert software.public_address(remote) == address


def test_long_changes_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(software, "_run", lambda *command: "x" * 1000)
    monkeypatch.setattr(software, "MAX_DIFF_BYTES", 100)
    assert software.git_diff(tmp_path) == "x" * 100 + "\n# cut: 1000 bytes in all\n"


def test_busy_stranger_is_found_and_own_workers_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    spin = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as process:
        try:
            time.sleep(0.2)
            own = machine.foreign_load(0.5, threshold_cores=0.02)
            monkeypatch.setattr(machine, "_own_processes", lambda: {os.getpid()})
            strangers = machine.foreign_load(0.5, threshold_cores=0.02)
        finally:
            process.kill()
    assert process.pid not in [row["pid"] for row in own]
    (row,) = [row for row in strangers if row["pid"] == process.pid]
    assert 0.02 <= row["cores"] <= 1.1
    assert [row["cores"] for row in strangers] == sorted((row["cores"] for row in strangers), reverse=True)
