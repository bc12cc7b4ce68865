"""Data sets and recipes, each with one fault, and what a user is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Json = dict[str, Any]
CASES: dict[str, tuple[Callable[[Path, Json], object], str]] = {}


def case(expected: str) -> Callable[[Callable[[Path, Json], object]], None]:
    """A fault, and a part of the message of it."""

    def keep(broken: Callable[[Path, Json], object]) -> None:
        CASES[broken.__name__] = (broken, expected)

    return keep


def recipe(root: Path) -> Json:
    """A sound recipe of the data set in `root`."""
    return {
        "name": "broken",
        "workload": {
            "task": "train",
            "model": "mask_rcnn_r50_fpn",
            "input": {"dataset": str(root), "images": 2, "size": [64, 64]},
            "weights": "random",
        },
        "arms": ["native"],
        "measure": {"rounds": 1, "launches": 1},
    }


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 60), (10, 100, 50)).save(path)


def coco(
    root: Path, change: Callable[[Json], object] = lambda content: None, split: str = "train2017"
) -> None:
    """Three images with an object each, once `change` has changed the annotations."""
    for number in range(3):
        picture(root / split / f"{number}.png")
    outline = [[5, 5, 35, 5, 35, 35, 5, 35]]
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(3)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [5, 5, 30, 30], "segmentation": outline}
            for i in range(3)
        ],
        "categories": [{"id": 7, "name": "wheel"}],
    }
    change(content)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _first(table: str, **values: Any) -> Callable[[Json], object]:
    return lambda content: content[table][0].update(values)


def _written(root: Path, name: str, text: str) -> str:
    (root / name).write_text(text)
    return str(root / name)


@case("train2017/1.png: cannot be read: No such file")
def missing_image(root: Path, asked: Json) -> None:
    coco(root)
    (root / "train2017" / "1.png").unlink()


@case("train2017/0.png: image cannot be decoded: it is of no known format")
def text_for_an_image(root: Path, asked: Json) -> None:
    coco(root)
    _written(root, "train2017/0.png", "hello")


@case("0.png: image is 80x60, its annotations say 90x60")
def other_size(root: Path, asked: Json) -> None:
    coco(root, _first("images", width=90))


@case("instances_train2017.json: not valid JSON: Expecting value: line 1 column 13")
def bad_json(root: Path, asked: Json) -> None:
    coco(root)
    _written(root, "annotations/instances_train2017.json", '{"images": [')


@case("instances_train2017.json: 2 images were asked for, 0 of 3 have objects")
def empty_split(root: Path, asked: Json) -> None:
    coco(root, lambda content: content["annotations"].clear())


@case("annotation 0 is of unknown category 99")
def unknown_category(root: Path, asked: Json) -> None:
    coco(root, _first("annotations", category_id=99))


@case("annotation 0 is of unknown image 99")
def unknown_image(root: Path, asked: Json) -> None:
    coco(root, _first("annotations", image_id=99))


@case("annotation 0 has no box [x, y, w, h]: [1, 1, -5, 4]")
def negative_box(root: Path, asked: Json) -> None:
    coco(root, _first("annotations", bbox=[1, 1, -5, 4]))


@case("instances_train2017.json: annotation 0: no valid mask: a polygon has three corners")
def broken_outline(root: Path, asked: Json) -> None:
    coco(root, _first("annotations", segmentation=[[1, 2, 3]]))


@case("instances_train2017.json: mask_rcnn_r50_fpn needs masks, and some objects have no segmentation")
def no_outline(root: Path, asked: Json) -> None:
    coco(root, _first("annotations", segmentation=[]))


@case("the name of an image leads out of its folder")
def name_outside(root: Path, asked: Json) -> None:
    coco(root, _first("images", file_name="../../etc/passwd"))


@case("the name of an image is not relative to this folder: /")
def name_absolute(root: Path, asked: Json) -> None:
    coco(root, _first("images", file_name=str(root / "train2017" / "0.png")))


@case("\n  its name begins in the folder above: images: ")
def name_with_the_folder(root: Path, asked: Json) -> None:
    coco(root, _first("images", file_name="train2017/0.png"))


@case("annotations entry number 1 has no id")
def no_id(root: Path, asked: Json) -> None:
    coco(root, lambda content: content["annotations"][0].pop("id"))


@case("images entry 0: id '0' is no whole number")
def id_as_text(root: Path, asked: Json) -> None:
    coco(root, _first("images", id="0"))


@case("50 images were asked for, 3 of 3 have objects")
def too_many_images(root: Path, asked: Json) -> None:
    coco(root)
    asked["workload"]["input"]["images"] = 50


@case("no split 'tran2017'\n  input.split: did you mean train2017?")
def unknown_split(root: Path, asked: Json) -> None:
    coco(root)
    asked["workload"]["input"]["split"] = "tran2017"


@case("instances_val2017.json: the split to evaluate has other categories")
def other_categories(root: Path, asked: Json) -> None:
    coco(root)
    coco(root, lambda content: content["categories"].append({"id": 9, "name": "bolt"}), "val2017")
    asked["workload"]["task"] = "train_eval"


@case("val2017/2.png: image cannot be decoded")
def broken_image_to_evaluate(root: Path, asked: Json) -> None:
    coco(root)
    coco(root, split="val2017")
    _written(root, "val2017/2.png", "")
    asked["workload"]["task"] = "train_eval"


def _yolo(root: Path, asked: Json, label: str, names: str = "names: [a, b]") -> None:
    for number in range(2):
        picture(root / "images" / "train" / f"{number}.jpg")
        (root / "labels" / "train").mkdir(parents=True, exist_ok=True)
        _written(root, f"labels/train/{number}.txt", label)
    _written(root, "data.yaml", f"train: images/train\nval: images/train\n{names}\n")
    asked["workload"]["model"] = "faster_rcnn_r50_fpn"


@case("data.yaml: not a data file of YOLO: it has no names of classes")
def yolo_without_names(root: Path, asked: Json) -> None:
    _yolo(root, asked, "0 .5 .5 .2 .2", names="")


@case("data.yaml: train: no such folder: train.txt\n  a list of images is not read: name their folder")
def yolo_list(root: Path, asked: Json) -> None:
    _yolo(root, asked, "0 .5 .5 .2 .2")
    _written(root, "data.yaml", "train: train.txt\nnames: [a]\n")


@case("images/train/0.jpg' contains class_id 5, outside the valid range")
def yolo_unknown_class(root: Path, asked: Json) -> None:
    _yolo(root, asked, "5 .5 .5 .2 .2")


@case("labels/train/0.txt': Invalid YOLO annotation line '0 .5 .5 .2'")
def yolo_short_line(root: Path, asked: Json) -> None:
    _yolo(root, asked, "0 .5 .5 .2")


@case("labels/train/0.txt: a box lies outside of its image\n  x, y, width and height of YOLO are shares")
def yolo_in_pixels(root: Path, asked: Json) -> None:
    _yolo(root, asked, "0 50 50 20 20")


def _voc(root: Path, asked: Json, xml: str, listed: str = "0\n") -> None:
    picture(root / "JPEGImages" / "0.jpg")
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    _written(root, "Annotations/0.xml", xml)
    _written(root, "ImageSets/Main/train.txt", listed)
    asked["workload"]["model"] = "faster_rcnn_r50_fpn"
    asked["workload"]["input"]["images"] = 1


@case("Annotations/0.xml: not a data set of VOC: no element found: line 1")
def voc_broken_xml(root: Path, asked: Json) -> None:
    _voc(root, asked, "<annotation><object>")


@case("Annotations/0.xml: not a data set of VOC: Missing bndbox")
def voc_without_box(root: Path, asked: Json) -> None:
    _voc(root, asked, "<annotation><object><name>a</name></object></annotation>")


@case("ImageSets/Main/train.txt: lists 77, and there is no such image")
def voc_list_of_other_images(root: Path, asked: Json) -> None:
    _voc(root, asked, "<annotation></annotation>", listed="0\n77\n")


def _arm(root: Path, asked: Json, codebase: str = "native", **keys: Any) -> None:
    coco(root)
    asked["arms"] = [{"codebase": codebase, **keys}]


@case("w.npz: not a file of weights: File is not a zip file")
def text_for_npz(root: Path, asked: Json) -> None:
    _arm(root, asked, weights=_written(root, "w.npz", "hello"))


@case("w.pth: not a file of weights: it begins with b'hello'")
def text_for_checkpoint(root: Path, asked: Json) -> None:
    _arm(root, asked, weights=_written(root, "w.pth", "hello"))


@case("w.h5: torchvision reads weights from .npz, .pth")
def weights_of_another_framework(root: Path, asked: Json) -> None:
    _arm(root, asked, "torchvision", weights=_written(root, "w.h5", "hello"))


@case("w.npz: not weights of mask_rcnn_r50_fpn: ")
def weights_of_another_model(root: Path, asked: Json) -> None:
    _arm(root, asked, "torchvision")
    np.savez(root / "w.npz", a=np.zeros(3, np.float32))
    asked["workload"]["weights"] = str(root / "w.npz")


@case("transplnt: weights file not found\n  did you mean transplant?")
def misspelt_weights(root: Path, asked: Json) -> None:
    _arm(root, asked)
    asked["workload"]["weights"] = "transplnt"


@case("not an interpreter that can be started")
def missing_interpreter(root: Path, asked: Json) -> None:
    _arm(root, asked, python=str(root / "bin" / "python"))


@case("true: this is no Python interpreter")
def another_program(root: Path, asked: Json) -> None:
    _arm(root, asked, python="/bin/true")


@case("no environment is called 'mmdt-9'")
def unknown_environment(root: Path, asked: Json) -> None:
    _arm(root, asked, "mmdet", environment="mmdt-9")


@case("empty: source has no Python package")
def source_without_package(root: Path, asked: Json) -> None:
    (root / "empty").mkdir(parents=True)
    _arm(root, asked, source=str(root / "empty"))


def _own_model(root: Path, asked: Json, codebase: str, model: str) -> None:
    _arm(root, asked, codebase, model=model)
    del asked["workload"]["model"]


@case("mine.py:2: not Python: ")
def config_with_a_slip(root: Path, asked: Json) -> None:
    _own_model(root, asked, "mmdet", _written(root, "mine.py", "a = 1\nmodel = dict(\n"))


@case("mine.yaml: not YAML: ")
def broken_yaml(root: Path, asked: Json) -> None:
    _own_model(root, asked, "detectron2", _written(root, "mine.yaml", "MODEL: [\n"))


@case("mine.onnx: not an ONNX model: it begins with b'hello'")
def text_for_onnx(root: Path, asked: Json) -> None:
    _own_model(root, asked, "onnx", _written(root, "mine.onnx", "hello"))
    coco(root, split="val2017")
    asked["workload"]["task"] = "infer"


@case("mine.py\n  did you mean mines.py?")
def missing_config(root: Path, asked: Json) -> None:
    _written(root, "mines.py", "")
    _own_model(root, asked, "mmdet", str(root / "mine.py"))


@case("device: cuda, and this machine shows no NVIDIA GPU")
def absent_device(root: Path, asked: Json) -> None:
    _arm(root, asked)
    asked["workload"]["device"] = "cuda"


@case("environment.affinity: no processor 60000 here")
def absent_processor(root: Path, asked: Json) -> None:
    _arm(root, asked)
    asked["environment"] = {"affinity": [60000]}


@case("input.size must be [height, width]")
def no_size(root: Path, asked: Json) -> None:
    asked["workload"]["input"]["size"] = [0, 64]


@case("input.size must be [height, width]")
def short_side_above_long(root: Path, asked: Json) -> None:
    asked["workload"]["input"]["size"] = {"short": 512, "long": 256}


@case("measure.steps must be 1 or more, got -1")
def negative_steps(root: Path, asked: Json) -> None:
    asked["measure"]["steps"] = -1


@case("workload.device: unknown value 'cuda:7'\n  did you mean cuda?")
def numbered_device(root: Path, asked: Json) -> None:
    asked["workload"]["device"] = "cuda:7"
