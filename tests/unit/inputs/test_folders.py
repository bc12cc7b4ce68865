"""Folders with faults, and parts of folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.errors import BenchError
from bench.inputs import folders, shapes


def picture(path: Path, width: int = 50, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco_of(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shapes.write(tmp_path / "shapes", "val", 6)
    return tmp_path / "shapes"


def test_a_sound_folder_has_no_problem(folder: Path) -> None:
    found = folders.check(folder)
    assert found.sound
    kinds = {problem.kind for problem in found.problems}
    assert kinds <= {"empty class"}
    assert found.splits["val"]["images"] == 6
    assert found.splits["val"]["masks"] == found.splits["val"]["objects"]


def test_every_fault_is_found_and_named(folder: Path) -> None:
    coco = coco_of(folder, "val")
    (folder / "val" / "000001.png").unlink()
    (folder / "val" / "000002.png").write_bytes(b"no image")
    coco["images"][2]["width"] += 1
    coco["images"][4]["file_name"] = "000004.png"
    coco["images"][5]["file_name"] = "../000006.png"
    rows = {row["image_id"]: row for row in coco["annotations"]}
    rows[4]["bbox"] = [10, 10, 5000, 20]
    rows[2]["bbox"] = [10, 10, 0, 20]
    rows[1]["segmentation"]["size"] = [3, 3]
    height, width = coco["images"][1]["height"], coco["images"][1]["width"]
    rows[2]["segmentation"] = {"size": [height, width], "counts": [height * width]}
    coco["categories"].append({"id": 99, "name": "ghost"})
    coco["categories"].append({"id": 100, "name": "ghost"})
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(coco))
    found = {(problem.kind, problem.where.split(" ")[0]) for problem in folders.check(folder).problems}
    expected = {
        ("missing image", "000001.png"), ("broken image", "000002.png"), ("wrong size", "000003.png"),
        ("file twice", "000004.png"), ("name outside", "../000006.png"), ("box outside", "annotation"),
        ("box without extent", "annotation"), ("broken mask", "annotation"), ("empty mask", "annotation"),
        ("empty class", "ghost"), ("class twice", "ghost"),
    }  # fmt: skip
    assert expected <= found


def test_sample_depends_on_its_seed_alone_and_holds_smaller_ones(folder: Path, tmp_path: Path) -> None:
    def ids(name: str, images: int, seed: int) -> set[int]:
        folders.sample(folder, tmp_path / name, images, seed)
        return {image["id"] for image in coco_of(tmp_path / name, "val")["images"]}

    four = ids("four", 4, 1)
    assert len(four) == 4
    assert ids("two", 2, 1) < four
    assert ids("again", 4, 1) == four
    assert any(ids(f"other-{seed}", 4, seed) != four for seed in (2, 3, 4))
    assert len(ids("all", 100, 1)) == 6
    assert {path.name for path in (tmp_path / "four" / "val").iterdir()} == {f"{i:06d}.png" for i in four}
    coco, whole = coco_of(tmp_path / "four", "val"), coco_of(folder, "val")
    assert coco["annotations"] == [row for row in whole["annotations"] if row["image_id"] in four]
    assert coco["categories"] == whole["categories"]
    assert (tmp_path / "four/annotations/instances_val.json").read_bytes() == (
        tmp_path / "again/annotations/instances_val.json"
    ).read_bytes()


def test_name_that_leads_out_of_folder_is_not_copied(folder: Path, tmp_path: Path) -> None:
    coco = coco_of(folder, "val")
    coco["images"][0]["file_name"] = "../../escaped.png"
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(coco))
    picture(folder / "escaped.png")
    with pytest.raises(BenchError, match="leads out"):
        folders.sample(folder, tmp_path / "deep" / "target", 6, 0)
    assert not (tmp_path / "escaped.png").exists()
