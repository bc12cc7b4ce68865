"""The index of stored runs never says what the files do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.record.index import worked_out


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "results" / name for name in ("a", "b")]
    for folder in found:
        (folder / "arms").mkdir(parents=True)
        (folder / "run.json").write_text(folder.name)
        (folder / "arms" / "one.json").write_text("1")
    return found


@pytest.fixture
def read(tmp_path: Path, folders: list[Path]) -> Callable[[], tuple[list[Any], list[str]]]:
    def results() -> tuple[list[Any], list[str]]:
        worked: list[str] = []

        def work(folder: Path) -> str:
            worked.append(folder.name)
            return (folder / "run.json").read_text() + (folder / "arms" / "one.json").read_text()

        return list(worked_out(folders, work, tmp_path / "cache", "v1")), worked

    return results


def test_each_run_is_read_once(read: Any) -> None:
    assert read() == (["a1", "b1"], ["a", "b"])
    assert read() == (["a1", "b1"], [])


def test_a_file_changed_in_place_is_read_again(read: Any, folders: list[Path]) -> None:
    read()
    (folders[1] / "arms" / "one.json").write_text("2")
    assert read() == (["a1", "b2"], ["b"])


def test_a_damaged_index_is_made_anew(read: Any, tmp_path: Path) -> None:
    read()
    (tmp_path / "cache" / "index" / "v1.sqlite").write_bytes(b"no database" * 1000)
    assert read() == (["a1", "b1"], ["a", "b"])
    assert read() == (["a1", "b1"], [])


def test_a_cache_that_cannot_be_written_is_no_obstacle(read: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    assert read() == (["a1", "b1"], ["a", "b"])


def test_many_runs_are_read_by_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    for number in range(6):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
    monkeypatch.setattr("bench.record.index.MANY", 5)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert list(worked_out(folders, str, None, "v1")) == [str(folder) for folder in folders]
