"""A store of cells in a folder: what is kept, what is refused."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.record.store import FolderStore, is_store, members, packed


def test_first_of_a_key_wins(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert store.keys("r") == set()
    assert store.put("r", "k", b"one")
    assert not store.put("r", "k", b"two")
    assert store.read("r", "k") == b"one"
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["k.cell.zip"]


def test_what_a_killed_writer_left_goes(tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / ".k.0123abcd").write_bytes(b"to")
    store = FolderStore(tmp_path)
    assert store.keys("r") == set()
    assert store.put("r", "k", b"one")
    assert store.keys("r") == {"k"}
    assert [path.name for path in (tmp_path / "r").iterdir()] == ["k.cell.zip"]


def test_packed_folder_comes_back(tmp_path: Path) -> None:
    (tmp_path / "arms").mkdir()
    (tmp_path / "arms" / "a.json").write_text("{}")
    (tmp_path / ".lock").touch()
    (tmp_path / "link").symlink_to("/etc/passwd")
    assert members(packed(tmp_path), "k") == {"arms/a.json": b"{}"}


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x"])
def test_names_outside_are_refused(name: str) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(BenchError, match="k: not a packed cell: not a path within"):
        members(buffer.getvalue(), "k")


def test_torn_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("text" * 100)
    with pytest.raises(BenchError, match="not a packed cell"):
        members(packed(tmp_path)[:-30], "k")


def test_store_is_told_from_run(tmp_path: Path) -> None:
    assert is_store("s3://bucket/prefix")
    assert not is_store("latest")
    assert not is_store(str(tmp_path))
    FolderStore(tmp_path).put("r", "k", b"")
    assert is_store(str(tmp_path))
