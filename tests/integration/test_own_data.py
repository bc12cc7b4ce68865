"""Data sets of users' own: one COCO file of any name, folders of YOLO and of Pascal VOC, odd image files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.errors import BenchError
from bench.inputs import folders
from bench.inputs.dataset import open_dataset
from bench.recipe.workload import Input
from tests.conftest import Cli
from tests.helpers import odd_images

NAMES = ["wheel", "bolt"]


def picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60), (number, 100, 50)).save(path)


def yolo(root: Path) -> Path:
    """Two images of training and one of validation; one object is an outline."""
    for split, count in (("train", 2), ("val", 1)):
        for number in range(count):
            picture(root / "images" / split / f"{number}.jpg", number)
            label = root / "labels" / split / f"{number}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("1 0.5 0.5 0.25 0.5\n0 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
    (root / "data.yaml").write_text(
        "path: .\ntrain: images/train\nval: images/val\nnames: {0: wheel, 1: bolt}\n"
    )
    return root


def voc(root: Path) -> Path:
    for number, split in enumerate(("train", "train", "val")):
        picture(root / "JPEGImages" / f"{number}.jpg", number)
        label = root / "Annotations" / f"{number}.xml"
        label.parent.mkdir(parents=True, exist_ok=True)
        objects = "".join(
            f"<object><name>{name}</name><bndbox><xmin>31</xmin><ymin>16</ymin><xmax>50</xmax><ymax>45</ymax>"
            "</bndbox></object>"
            for name in (NAMES if split == "train" else NAMES[:1])
        )
        label.write_text(f"<annotation><filename>{number}.jpg</filename>{objects}</annotation>")
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        with listed.open("a") as file:
            file.write(f"{number}\n")
    return root


def test_yolo_folder_is_a_data_set(tmp_path: Path) -> None:
    root = yolo(tmp_path / "mine")
    opened = open_dataset(Input(dataset=str(root), images=2), "train", tmp_path / "cache")
    assert (opened.classes, opened.split, len(opened.image_ids)) == (("wheel", "bolt"), "train", 2)
    coco = json.loads(opened.annotations.read_text())
    assert [row["bbox"] for row in coco["annotations"][:1]] == [[30, 15, 20, 30]]
    assert {row["iscrowd"] for row in coco["annotations"]} == {0}
    assert len(open_dataset(Input(dataset=str(root), images=1), "infer", tmp_path / "cache").image_ids) == 1
    again = open_dataset(Input(dataset=str(root), images=2), "train", tmp_path / "other")
    assert again.checksum == opened.checksum
    with pytest.raises(BenchError, match="no split 'tests'"):
        open_dataset(Input(dataset=str(root), split="tests"), "train", tmp_path)


def test_voc_folder_is_a_data_set(tmp_path: Path) -> None:
    root = voc(tmp_path / "mine")
    opened = open_dataset(Input(dataset=str(root), images=2), "train", tmp_path / "cache")
    assert opened.classes == ("bolt", "wheel")
    boxes = [row["bbox"] for row in json.loads(opened.annotations.read_text())["annotations"]]
    assert boxes == [[30, 15, 20, 30]] * 4
    val = open_dataset(Input(dataset=str(root), images=1), "infer", tmp_path / "cache")
    assert (val.classes, val.image_ids) == (opened.classes, (1,))
    with pytest.raises(BenchError, match="no split 'trian'") as found:
        open_dataset(Input(dataset=str(root), split="trian"), "train", tmp_path)
    assert "train" in found.value.hint


def test_a_broken_label_is_named(tmp_path: Path) -> None:
    root = yolo(tmp_path / "mine")
    (root / "labels" / "train" / "1.txt").write_text("0 0.5 x 0.1 0.1\n")
    with pytest.raises(BenchError, match=r"labels/train/1\.txt"):
        open_dataset(Input(dataset=str(root), images=2), "train", tmp_path / "cache")
    (root / "labels" / "train" / "1.txt").write_text("7 0.5 0.5 0.1 0.1\n")
    with pytest.raises(BenchError, match=r"1\.jpg.* class_id 7, outside"):
        open_dataset(Input(dataset=str(root), images=2), "train", tmp_path / "cache")


def test_check_reads_all_layouts(tmp_path: Path) -> None:
    root = yolo(tmp_path / "yolo")
    with (root / "data.yaml").open("a") as file:
        file.write("test: ../test/images\n")  # as exports do that have no such split
    checked = folders.check(root)
    assert checked.splits["train"]["objects"] == 4
    assert "test" not in checked.splits
    assert folders.check(voc(tmp_path / "voc")).splits["val"]["objects"] == 1


def test_a_run_names_the_broken_file_or_skips_it(cli: Cli, tmp_path: Path) -> None:
    file, images = odd_images.write(tmp_path)
    recipe = cli.recipe()
    own = [
        *(
            "--set",
            f"workload.input={{annotations: '{file}', images: '{images}', count: 19, size: [64, 64]}}",
        ),
        *("--set", "measure.launches=1"),
    ]
    content = json.loads(file.read_text())
    content["images"][-1]["id"] = content["annotations"][-1]["image_id"] = 1  # the broken one is first
    file.write_text(json.dumps(content))
    done = cli.run(recipe, *own)
    assert done.code == 2
    assert str(images / odd_images.BROKEN) in done.err
    assert not list(cli.results.glob("*/*/blocks.jsonl"))
    done = cli.run(recipe, *own, "--set", "workload.input.skip_broken=true")
    assert done.code == 0, done.err
    record = json.loads((cli.runs()[-1] / "run.json").read_text())
    assert record["dataset"]["my photos/export_2026"]["images"] == 19
    assert any(odd_images.BROKEN in text for text in record["warnings"])
    done = cli("data", "check", file, "--images", images)
    assert done.code == 2
    assert f"broken image: {odd_images.BROKEN}" in done.out
    assert "CMYK: cmyk.jpg: converted to RGB" in done.out
    assert f"EXIF rotation: {odd_images.AS_STORED}: not turned" in done.out
    assert "EXIF rotation: turned.jpg: turned\n" in done.out
