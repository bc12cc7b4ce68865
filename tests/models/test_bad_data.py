"""Broken images and annotations are named, at the start where they can be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detectors.coco import AugmentedCoco, BadImage, CocoFolder
from detectors.config import Augment, Pixels, Resize
from detectors.order import Draw
from detectors.train import main

Change = Callable[[dict[str, Any]], None]
ORIENTATION = 0x0112


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images of 40 × 30, one object each."""
    (tmp_path / "images").mkdir()
    for number in (1, 2, 3):
        pixels = np.random.default_rng(number).integers(0, 255, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
    write(tmp_path)
    return tmp_path


def write(folder: Path, change: Change | None = None) -> Path:
    content: dict[str, Any] = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 30} for i in (1, 2, 3)],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [
            {
                "id": 100 + i,
                "image_id": i,
                "category_id": 7,
                "bbox": [5, 5, 20, 15],
                "segmentation": [[5, 5, 25, 5, 25, 20]],
                "iscrowd": 0,
            }
            for i in (1, 2, 3)
        ],
    }
    if change is not None:
        change(content)
    path = folder / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def coco(folder: Path) -> CocoFolder:
    return CocoFolder(folder / "annotations.json", folder / "images", masks=False)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("category_id", 9, "annotation 102 has category 9, which is none of the categories"),
        ("image_id", 44, "annotation 102 is of image 44, which is not in the file"),
        ("bbox", None, "annotation 102 has no bbox"),
        ("bbox", [1, 2, 3], "annotation 102 has a bbox of [1, 2, 3]"),
        ("bbox", [1, 2, float("nan"), 3], "annotation 102 has a bbox of"),
    ],
)
def test_a_wrong_annotation_is_named_at_the_start(
    folder: Path, key: str, value: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, lambda content: content["annotations"][1].update({key: value}))
    with pytest.raises(ValueError) as caught:
        coco(folder)
    assert said in str(caught.value)
    assert run(folder) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "config.yaml:2: " in error


def run(folder: Path, **changes: Any) -> int:
    data = {
        "train": {"annotations": f"{folder}/annotations.json", "images": f"{folder}/images"},
        "workers": 0,
    }
    settings = {"frozen_stages": 0, "frozen_bn": False}
    content = {
        "model": {"name": "mask_rcnn_r50_fpn", "settings": settings},
        "data": data,
        "optimizer": {"lr": 0.001},
        "schedule": {"iterations": 1},
        "augment": {"resize": {"short": 32, "long": 64}},
        "batch": 3,
        "output": str(folder / "run"),
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in content.items()))
    return main([str(path)])


def test_a_crowd_may_be_without_a_box(folder: Path) -> None:
    write(folder, lambda content: content["annotations"][1].update(bbox=None, iscrowd=1))
    assert not coco(folder).has_objects(2)


def test_an_object_without_outline_is_named_where_masks_are_learned(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(folder, lambda content: content["annotations"][2].pop("segmentation"))
    assert run(folder) == 2
    assert "annotation 103 has no segmentation" in capsys.readouterr().err


def cut(folder: Path, number: int) -> Path:
    path = folder / "images" / f"{number}.jpg"
    path.write_bytes(path.read_bytes()[:300])
    return path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named_in_one_line(
    folder: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut(folder, 2)
    data = {"train": {"annotations": f"{folder}/annotations.json", "images": f"{folder}/images"}}
    assert run(folder, data={**data, "workers": workers}) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path} cannot be read: ")
    assert len(error.splitlines()) == 1


def test_a_truncated_image_is_replaced_if_asked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut(folder, 2)
    augment = Augment(resize=Resize(size=(30, 40)))
    dataset = AugmentedCoco(coco(folder), augment, Pixels(), seed=0, skip_broken=True)
    examples = [dataset[Draw(2, number)] for number in range(8)]
    assert {example.image_id for example in examples} == {1, 3}
    assert "2.jpg cannot be read" in caplog.text
    assert torch.equal(dataset[Draw(2, 5)].target.boxes, examples[5].target.boxes)  # the same each time


def test_only_broken_images_are_an_error_in_the_end(folder: Path) -> None:
    for number in (1, 2, 3):
        cut(folder, number)
    dataset = AugmentedCoco(coco(folder), Augment(), Pixels(), seed=0, skip_broken=True)
    with pytest.raises(BadImage, match="20 images in a row cannot be read"):
        dataset[Draw(1, 0)]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation_is_obeyed(folder: Path, orientation: int) -> None:
    path = folder / "images" / "1.jpg"
    upright = Image.new("RGB", (40, 30))
    upright.paste((255, 255, 255), (0, 0, 10, 10))  # the corner at the top left
    stored = {
        1: upright,
        3: upright.rotate(180),
        6: upright.rotate(90, expand=True),
        8: upright.rotate(-90, expand=True),
    }
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored[orientation].save(path, exif=exif, quality=95)
    pixels = coco(folder).image(1)
    assert pixels.shape == (30, 40, 3)
    assert pixels[2:8, 2:8].min() > 200
    assert pixels[15:, 15:].max() < 50


def test_a_size_that_differs_from_the_annotations_is_named(folder: Path) -> None:
    write(folder, lambda content: content["images"][0].update(width=41))
    with pytest.raises(BadImage, match=r"1\.jpg is 40 wide and 30 high.*but 41 and 30 by the annotations"):
        coco(folder).image(1)
