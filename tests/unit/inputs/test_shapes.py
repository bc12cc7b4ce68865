"""The embedded data set: the same on every machine, with annotations that are exactly right."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from bench.inputs import shapes, watched

PINNED = {  # (split, index) → SHA-256 of pixels and masks; changes only together with shapes.VERSION
    ("train", 0): "b1804c39ce8ebe08e9f291a0af1546074dd4f1b0abeacfb254c957201206b63a",
    ("train", 7): "190c6dc28594a9d0e4f4ab72e5bb2716b7162888e1d7f1a0034a3b185969d108",
    ("val", 0): "5e255bcacd2576145a18f2c3ed434d129d77cfd851ce376d08ff4b8c6fa44546",
}


def scene_hash(split: str, index: int) -> str:
    scene = shapes.render(split, index)
    digest = hashlib.sha256(scene.pixels.tobytes() + np.packbits(scene.masks).tobytes())
    digest.update(" ".join(scene.classes).encode())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write(folder, "val", 9, crowds=True)
    return folder


def load(folder: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(folder / "annotations" / "instances_val.json")


@pytest.mark.parametrize(("split", "index"), PINNED)
def test_two_machines_do_not_measure_on_different_pixels(split: str, index: int) -> None:
    assert shapes.VERSION == 2
    assert scene_hash(split, index) == PINNED[split, index]


def test_asking_for_more_images_does_not_change_the_first_ones(tmp_path: Path) -> None:
    shapes.write(tmp_path / "two", "train", 2)
    shapes.write(tmp_path / "three", "train", 3)
    for name in ("000001.png", "000002.png"):
        first, second = (np.asarray(Image.open(tmp_path / n / "train" / name)) for n in ("two", "three"))
        assert np.array_equal(first, second)


def test_what_is_trained_on_is_not_what_is_evaluated_on() -> None:
    train, val = shapes.render("train", 3), shapes.render("val", 3)
    assert train.pixels.shape != val.pixels.shape or not np.array_equal(train.pixels, val.pixels)
    assert not np.array_equal(shapes.render("train", 4).pixels, train.pixels[: 10**6])


def test_pycocotools_reads_annotations_and_agrees_on_masks_boxes_and_areas(written: Path) -> None:
    coco = load(written)
    assert len(coco.imgs) == 9
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        image = coco.imgs[annotation["image_id"]]
        rows, columns = np.nonzero(mask)
        x, y, w, h = annotation["bbox"]
        assert mask.shape == (image["height"], image["width"])
        assert annotation["area"] == mask.sum() > 0
        assert (columns.min(), rows.min()) == (x, y)
        assert (columns.max() + 1, rows.max() + 1) == (x + w, y + h)


def test_no_pixel_belongs_to_two_objects(written: Path) -> None:
    coco = load(written)
    for image in coco.imgs:
        masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[image]]
        assert np.sum(masks, axis=0).max() == 1


def test_image_file_is_the_rendered_scene_with_crowd_region(written: Path) -> None:
    coco = load(written)
    for number, image in coco.imgs.items():
        scene = shapes.render("val", number - 1, crowds=True)
        assert np.array_equal(np.asarray(Image.open(written / "val" / image["file_name"])), scene.pixels)
        crowds = [a for a in coco.imgToAnns[number] if a["iscrowd"]]
        assert len(crowds) == ((number - 1) % 4 == 0)
        assert all(np.array_equal(coco.annToMask(a), scene.crowd[1]) for a in crowds)


def test_every_object_keeps_visible_part_although_some_are_partly_hidden() -> None:
    """The whole of an object is not stored, so occlusion is seen as touching masks."""
    touching = 0
    for index in range(12):
        scene = shapes.render("train", index)
        areas = scene.masks.sum(axis=(1, 2))
        assert areas.min() >= shapes.MIN_AREA_PX
        owner = (scene.masks * np.arange(1, len(areas) + 1)[:, None, None]).sum(axis=0)
        left, right = owner[:, :-1], owner[:, 1:]
        touching += bool(((left != right) & (left > 0) & (right > 0)).any())
    assert touching >= 6


def test_all_classes_and_sizes_occur_often_enough() -> None:
    classes: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    frames = set()
    for index in range(40):
        scene = shapes.render("train", index)
        classes.update(scene.classes)
        frames.add(scene.pixels.shape)
        for area in scene.masks.sum(axis=(1, 2)):
            sizes["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1
    total = sum(classes.values())
    assert set(classes) == set(shapes.CLASSES)
    assert min(classes.values()) > 0.05 * total
    assert min(sizes[size] for size in ("small", "medium", "large")) > 0.1 * total
    assert len(frames) > 10


def test_the_class_is_the_outline_and_nothing_else() -> None:
    """The mean colour of a class does not tell it from the others."""
    colours: dict[str, list[np.ndarray]] = {name: [] for name in shapes.CLASSES}
    for index in range(40):
        scene = shapes.render("train", index)
        for name, mask in zip(scene.classes, scene.masks, strict=True):
            colours[name].append(scene.pixels[mask].mean(axis=0))
    means = np.array([np.mean(values, axis=0) for values in colours.values()])
    assert np.ptp(means, axis=0).max() < 60


def test_the_json_is_the_same_text_whenever_it_is_written(tmp_path: Path, written: Path) -> None:
    shapes.write(tmp_path / "again", "val", 9, crowds=True)
    name = Path("annotations") / "instances_val.json"
    assert (tmp_path / "again" / name).read_bytes() == (written / name).read_bytes()
    assert len(json.loads((written / name).read_text())["categories"]) >= 6


def test_long_preparation_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(watched, "EVERY_S", 0.0)
    token = watched.TOLD.set(told.append)
    try:
        shapes.write(tmp_path, "val", 3)
    finally:
        watched.TOLD.reset(token)
    assert told == [f"drawing scenes: {done} of 3" for done in range(3)]
