"""Data sets of other layouts, folders with faults, and parts of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bench.errors import BenchError
from bench.inputs import folders, shapes
from bench.inputs.coco import object_mask
from bench.inputs.dataset import open_dataset
from bench.recipe.workload import Input
from tests.conftest import Cli


def picture(path: Path, width: int = 50, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def coco_of(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / "annotations" / f"instances_{split}.json").read_text())


# -- PASCAL VOC ---------------------------------------------------------------------------------------------------


def voc_object(name: str, box: tuple[int, int, int, int], difficult: int = 0) -> str:
    sides = "".join(
        f"<{key}>{value}</{key}>" for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{sides}</bndbox></object>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Two images; the second one is segmented, its objects listed in another order than their numbers."""
    root = tmp_path / "VOC2007"
    for name in ("000005", "000007"):
        picture(root / "JPEGImages" / f"{name}.jpg")
    for folder in ("Annotations", "SegmentationObject", "ImageSets/Main", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    cat, dog = voc_object("cat", (11, 6, 20, 15)), voc_object("dog", (31, 21, 45, 35))
    (root / "Annotations/000005.xml").write_text(
        f"<annotation>{cat}{voc_object('person', (1, 1, 50, 40), difficult=1)}</annotation>"
    )
    (root / "Annotations/000007.xml").write_text(f"<annotation>{dog}{cat}</annotation>")
    numbers = np.zeros((40, 50), np.uint8)
    numbers[5:15, 10:20] = 1
    numbers[20:35, 30:45] = 2
    numbers[5, 10:20] = 255  # the border belongs to nobody
    Image.fromarray(numbers).save(root / "SegmentationObject/000007.png")
    (root / "ImageSets/Main/trainval.txt").write_text("000005\n000007\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("000007\n")
    (root / "ImageSets/Main/test.txt").write_text("000009\n")  # without annotations, as in 2012
    return root


def test_voc_boxes_count_pixels_from_one_and_difficult_objects_are_ignored(voc: Path, tmp_path: Path) -> None:
    written = folders.convert("voc", voc, tmp_path / "coco")
    assert written == {
        "trainval": {"images": 2, "objects": 4, "masks": 0},
        "val_masks": {"images": 1, "objects": 2, "masks": 2},
    }
    coco = coco_of(tmp_path / "coco", "trainval")
    names = {one["id"]: one["name"] for one in coco["categories"]}
    assert len(names) == 20
    found = [(names[row["category_id"]], row["bbox"], row["iscrowd"]) for row in coco["annotations"]]
    assert found[:2] == [("cat", [10, 5, 10, 10], 0), ("person", [0, 0, 50, 40], 1)]


def test_voc_masks_get_the_class_of_the_box_they_fit(voc: Path, tmp_path: Path) -> None:
    folders.convert("voc", voc, tmp_path / "coco")
    coco = coco_of(tmp_path / "coco", "val_masks")
    names = {one["id"]: one["name"] for one in coco["categories"]}
    (image,) = coco["images"]
    masks = {names[row["category_id"]]: object_mask(row, image) for row in coco["annotations"]}
    assert masks["cat"].sum() == 90
    assert masks["cat"][6:15, 10:20].all()
    assert masks["dog"][20:35, 30:45].all()
    assert [row["bbox"] for row in coco["annotations"]] == [[10, 6, 10, 9], [30, 20, 15, 15]]


def test_several_years_of_voc_are_several_splits(voc: Path, tmp_path: Path) -> None:
    written = folders.convert("voc", voc.parent, tmp_path / "coco")
    assert set(written) == {"trainval_voc2007", "val_masks_voc2007"}


# -- Cityscapes and WIDER FACE ------------------------------------------------------------------------------------


def test_cityscapes_instances_get_masks_and_groups_are_crowds(tmp_path: Path) -> None:
    source, stem = tmp_path / "cityscapes", "ulm_000000_000019"
    picture(source / "leftImg8bit/train/ulm" / f"{stem}_leftImg8bit.png")
    values = np.full((40, 50), 7, np.uint16)  # road
    values[10:20, 5:15] = 26000  # a car
    values[12:20, 20:30] = 26001
    values[30:38, 0:50] = 24  # people who were not told apart
    values[0:2, 0:2] = 29001  # a caravan: none of the eight
    path = source / "gtFine/train/ulm" / f"{stem}_gtFine_instanceIds.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(values).save(path)
    assert folders.convert("cityscapes", source, tmp_path / "coco")["train"] == {
        "images": 1,
        "objects": 3,
        "masks": 3,
    }
    coco = coco_of(tmp_path / "coco", "train")
    names = {one["id"]: one["name"] for one in coco["categories"]}
    found = [
        (names[row["category_id"]], row["bbox"], row["area"], row["iscrowd"]) for row in coco["annotations"]
    ]
    assert found == [
        ("person", [0, 30, 50, 8], 400, 1),
        ("car", [5, 10, 10, 10], 100, 0),
        ("car", [20, 12, 10, 8], 80, 0),
    ]
    assert coco["images"][0]["file_name"] == f"ulm/{stem}_leftImg8bit.png"
    assert folders.check(tmp_path / "coco").sound  # though six of the eight classes are empty


def test_wider_face_lists_invalid_and_missing_faces(tmp_path: Path) -> None:
    source = tmp_path / "wider"
    for name in ("a", "b"):
        picture(source / "WIDER_val/images/0--Parade" / f"{name}.jpg")
    (source / "wider_face_split").mkdir()
    (source / "wider_face_split/wider_face_val_bbx_gt.txt").write_text(
        "0--Parade/a.jpg\n3\n5 6 10 12 0 0 0 0 0 0 \n20 6 10 12 0 0 0 1 0 0 \n1 1 0 0 0 0 0 0 0 0\n"
        "0--Parade/b.jpg\n0\n0 0 0 0 0 0 0 0 0 0\n"
    )
    written = folders.convert("widerface", source, tmp_path / "coco")
    assert written == {"val": {"images": 2, "objects": 2, "masks": 0}}
    rows = coco_of(tmp_path / "coco", "val")["annotations"]
    assert [(row["bbox"], row["iscrowd"]) for row in rows] == [([5, 6, 10, 12], 0), ([20, 6, 10, 12], 1)]


def test_a_source_of_another_layout_and_a_target_that_is_there_are_refused(voc: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="layout of cityscapes"):
        folders.convert("cityscapes", voc, tmp_path / "coco")
    assert not (tmp_path / "coco").exists()
    with pytest.raises(BenchError, match="unknown layout 'vok'"):
        folders.convert("vok", voc, tmp_path / "coco")
    with pytest.raises(BenchError, match="already exists"):
        folders.convert("voc", voc, voc)


def test_a_converted_set_can_be_opened_for_a_run(voc: Path, tmp_path: Path) -> None:
    folders.convert("voc", voc, tmp_path / "coco")
    opened = open_dataset(
        Input(dataset=str(tmp_path / "coco"), split="trainval", images=2), "train", tmp_path / "cache"
    )
    assert len(opened.classes) == 20
    assert opened.image_ids == (1, 2)


# -- checking and sampling ----------------------------------------------------------------------------------------


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


def test_a_sample_depends_on_its_seed_alone_and_holds_smaller_ones(folder: Path, tmp_path: Path) -> None:
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


def test_a_name_that_leads_out_of_the_folder_is_not_copied(folder: Path, tmp_path: Path) -> None:
    coco = coco_of(folder, "val")
    coco["images"][0]["file_name"] = "../../escaped.png"
    (folder / "annotations" / "instances_val.json").write_text(json.dumps(coco))
    picture(folder / "escaped.png")
    with pytest.raises(BenchError, match="leads out"):
        folders.sample(folder, tmp_path / "deep" / "target", 6, 0)
    assert not (tmp_path / "escaped.png").exists()


def test_the_commands_print_what_they_did_and_check_fails_on_a_problem(
    cli: Cli, folder: Path, tmp_path: Path
) -> None:
    done = cli("data", "sample", folder, tmp_path / "part", "--images", "3", "--json")
    assert done.json()["val"]["images"] == 3
    (tmp_path / "part" / "val").joinpath("000009.png").touch()  # no image of the set: no problem
    broken = next((tmp_path / "part" / "val").glob("00000[1-6].png"))
    broken.write_bytes(b"")
    done = cli("data", "check", tmp_path / "part")
    assert done.code == 1
    assert f"val: broken image: {broken.name}" in done.out
    done = cli("data", "convert", "voc", folder, tmp_path / "coco")
    assert done.code == 2
    assert "layout of voc" in done.err
