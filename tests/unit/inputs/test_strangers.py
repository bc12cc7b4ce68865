"""Data sets of strangers: no file outside of the folder, no device, and no number that C code would choke on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bench.errors import BenchError
from bench.inputs import folders, shapes
from bench.inputs.coco import check_coco, object_mask, read_coco
from bench.inputs.dataset import open_dataset
from bench.recipe.workload import Input


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shapes.write(tmp_path / "shapes", "val", 2)
    return tmp_path / "shapes"


def change(folder: Path, **values: Any) -> None:
    """Of the first image."""
    path = folder / "annotations" / "instances_val.json"
    coco = json.loads(path.read_text())
    coco["images"][0] |= values
    path.write_text(json.dumps(coco))


def small() -> dict[str, Any]:
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": 4, "width": 6}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}],
        "categories": [{"id": 1, "name": "a"}],
    }


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../victim", "a/../../victim", "a\x1b]0;t\x07.png", "a\0.png", "\ud800", "", 3]
)
def test_a_name_that_is_none_is_neither_read_nor_written(folder: Path, tmp_path: Path, name: Any) -> None:
    change(folder, file_name=name)
    with pytest.raises(BenchError):
        folders.sample(folder, tmp_path / "new", 2, 0)
    assert "name outside" in {problem.kind for problem in folders.check(folder).problems}
    data = Input(dataset=str(folder), split="val", images=2)
    with pytest.raises(BenchError):
        open_dataset(data, "infer", tmp_path / "cache")


@pytest.mark.parametrize("device", ["/dev/zero", "fifo"])
def test_a_link_to_a_device_is_not_read(folder: Path, tmp_path: Path, device: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (folder / "val" / "link.jpg").symlink_to(tmp_path / device)
    change(folder, file_name="link.jpg")
    with pytest.raises(BenchError, match="not a regular file"):
        folders.sample(folder, tmp_path / "new", 2, 0)
    assert "broken image" in {problem.kind for problem in folders.check(folder).problems}
    data = Input(dataset=str(folder), split="val", images=2)
    with pytest.raises(BenchError, match="not a regular file"):
        open_dataset(data, "infer", tmp_path / "cache")
    with pytest.raises(BenchError, match="not a regular file"):
        read_coco(tmp_path / "fifo")


def test_a_split_whose_name_leads_out_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "annotations" / "instances_val.json").rename(folder / "annotations" / "instances_...json")
    with pytest.raises(BenchError, match="name of a split"):
        folders.sample(folder, tmp_path / "new", 2, 0)


def test_a_decompression_bomb_is_a_broken_image(folder: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(folder / "val" / "bomb.png")
    change(folder, file_name="bomb.png")
    assert "broken image" in {problem.kind for problem in folders.check(folder).problems}


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("annotations", {"bbox": [0, 0, 1e308, 1]}),
        ("annotations", {"bbox": [-1e9, 0, 1, 1]}),
        ("annotations", {"bbox": [0, 0, 10**40, 1]}),
        ("annotations", {"image_id": [1]}),
        ("annotations", {"category_id": {}}),
        ("images", {"height": 10**9, "width": 10**9}),
        ("images", {"height": True}),
        ("images", {"width": 10**40}),
        ("categories", {"name": ["a"]}),
        ("categories", {"id": 1.5}),
    ],
)
def test_numbers_without_sense_are_one_error(table: str, values: dict[str, Any]) -> None:
    coco = small()
    coco[table][0] |= values
    with pytest.raises(BenchError) as caught:
        check_coco(coco, "x.json")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["[" * 100_000, '{"images": ' + "9" * 5000 + "}", "\x00", '"\\ud800"'])
def test_json_that_breaks_readers_is_one_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BenchError):
        read_coco(tmp_path / "x.json")


@pytest.mark.parametrize(
    "outline",
    [
        [[0, 0, 3e7, 0, 3e7, 3e7]],
        [[0, 0, 1e308, 0, 1, 1]],
        [[0, 0, 1, 0]],
        [["a"] * 6],
        [7],
        {"size": [4, 6], "counts": [2**40]},
        {"size": [4, 6], "counts": [-1, 25]},
        {"size": [4, 6], "counts": [1, 2]},
        {"size": [4, 6], "counts": "zzzzzzzzzzzz"},
        {"size": [4, 6], "counts": "ooooooooooooo"},
        {"size": [4, 6], "counts": ""},
        {"size": [4, 6], "counts": "é"},
        {"size": [40000, 60000], "counts": [24]},
        {"counts": [24]},
        "text",
    ],
)
def test_a_mask_without_sense_is_found_before_c_code(outline: Any) -> None:
    with pytest.raises(ValueError):
        object_mask({"segmentation": outline}, {"height": 4, "width": 6})
