"""Image files of all kinds: one rule, in bench and in detectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from bench.errors import BenchError
from bench.inputs import folders
from bench.inputs.dataset import open_dataset
from bench.inputs.pixels import check, decode, oddities
from bench.recipe.workload import Input
from detectors.coco import BadImage, CocoFolder
from tests.helpers import odd_images


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return odd_images.write(tmp_path_factory.mktemp("odd"))


def images_of(file: Path) -> list[dict[str, int]]:
    return json.loads(file.read_text())["images"]


def test_both_readers_give_the_same_pixels(odd: tuple[Path, Path]) -> None:
    file, folder = odd
    coco = CocoFolder(file, folder, masks=False)
    for image in images_of(file):
        if image["file_name"] == odd_images.BROKEN:
            continue
        size = image["height"], image["width"]
        pixels = decode(folder / image["file_name"], size)
        assert pixels.shape == (*size, 3), image["file_name"]
        np.testing.assert_array_equal(pixels, coco.image(image["id"]), err_msg=image["file_name"])


def test_orientation_is_obeyed_unless_annotations_differ(odd: tuple[Path, Path]) -> None:
    _, folder = odd
    with Image.open(folder / "turned.jpg") as image:
        stored, turned = np.asarray(image), np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(decode(folder / "turned.jpg", (80, 60)), turned)
    assert np.array_equal(decode(folder / "turned.jpg"), turned)
    assert np.array_equal(decode(folder / "turned.jpg", (60, 80)), stored)
    with Image.open(folder / "upside down.jpg") as image:
        assert np.array_equal(decode(folder / "upside down.jpg", (60, 80)), np.asarray(image)[::-1, ::-1])
    with pytest.raises(BenchError, match="image is 80x60, turned by its EXIF, its annotations say 9x9"):
        check(folder / "turned.jpg", (9, 9))


def test_sixteen_bits_keep_their_high_byte(tmp_path: Path) -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(decode(tmp_path / "deep.png")[..., 0], values >> 8)
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(BenchError, match="floating-point"):
        check(tmp_path / "float.tif")


def test_a_broken_file_is_named_by_both(odd: tuple[Path, Path]) -> None:
    file, folder = odd
    with pytest.raises(BenchError, match="cannot be decoded") as found:
        check(folder / odd_images.BROKEN, (60, 80))
    assert found.value.where == str(folder / odd_images.BROKEN)
    with pytest.raises(BadImage, match=odd_images.BROKEN):
        CocoFolder(file, folder, masks=False).image(images_of(file)[-1]["id"])


def test_odd_kinds_are_named(odd: tuple[Path, Path]) -> None:
    _, folder = odd
    expected = {
        "turned.jpg": ["EXIF rotation"],
        "deep.png": ["16 bit", "grayscale"],
        "cmyk.jpg": ["CMYK"],
        "palette.png": ["palette"],
        "palette with transparency.png": ["palette", "alpha"],
        "rgba.png": ["alpha"],
        "la.png": ["grayscale", "alpha"],
        "img 2.jpg": [],
    }
    assert {name: oddities(folder / name) for name in expected} == expected


def test_check_tells_odd_kinds_from_faults(odd: tuple[Path, Path], tmp_path: Path) -> None:
    found = folders.check_file(*odd)
    kinds = {problem.kind for problem in found.problems}
    assert {"EXIF rotation", "16 bit", "CMYK", "palette", "alpha", "broken image"} <= kinds
    assert not found.sound
    assert folders.check_file(*odd_images.write(tmp_path, broken=False)).sound


def test_own_annotations_and_folder_are_a_data_set(odd: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = odd
    with pytest.raises(BenchError, match="cannot be decoded") as found:
        open_dataset(Input(annotations=str(file), images=str(folder), count=20), "train", tmp_path)
    assert found.value.where == str(folder / odd_images.BROKEN)
    assert "skip_broken" in found.value.hint
    given = Input(annotations=str(file), images=str(folder), count=19, skip_broken=True)
    opened = open_dataset(given, "train", tmp_path)
    assert len(opened.image_ids) == 19
    assert opened.category_ids == (7, 21, 300)
    assert opened.skipped == ()
    fewer = open_dataset(given.model_copy(update={"count": None}), "train", tmp_path)
    assert fewer.image_ids == opened.image_ids[:16]


def test_skipped_images_are_told(odd: tuple[Path, Path], tmp_path: Path) -> None:
    file, folder = odd
    content = json.loads(file.read_text())
    content["images"][-1]["id"] = content["annotations"][-1]["image_id"] = 1  # the broken one is first
    first = tmp_path / "first.json"
    first.write_text(json.dumps(content))
    opened = open_dataset(
        Input(annotations=str(first), images=str(folder), count=3, skip_broken=True), "train", tmp_path
    )
    assert opened.image_ids == (1001, 1002, 1003)
    assert len(opened.skipped) == 1
    assert odd_images.BROKEN in opened.skipped[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"annotations": "a.json"}, "go together"),
        ({"images": "folder"}, "go together"),
        ({"annotations": "a.json", "images": "f", "dataset": "coco"}, "instead of dataset"),
        ({"images": 4, "count": 4}, "go with annotations"),
    ],
)
def test_contradictory_inputs_are_refused(given: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Input(**given)
