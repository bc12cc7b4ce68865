"""`bench data` as a user runs it."""

from __future__ import annotations

from pathlib import Path

from bench.inputs import shapes
from tests.conftest import Cli


def test_sample_and_check_print_what_they_did(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    shapes.write(folder, "val", 6)
    done = cli("data", "sample", folder, tmp_path / "part", "--images", "3", "--json")
    assert done.json()["val"]["images"] == 3
    (tmp_path / "part" / "val").joinpath("000009.png").touch()  # no image of the set: no problem
    broken = next((tmp_path / "part" / "val").glob("00000[1-6].png"))
    broken.write_bytes(b"")
    done = cli("data", "check", tmp_path / "part")
    assert done.code == 2
    assert f"val: broken image: {broken.name}" in done.out
