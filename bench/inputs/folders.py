"""Folders in COCO layout: check every image and annotation, and take a reproducible part.

The layout: ``annotations/instances_<split>.json`` beside ``<split>/``. Images are copied byte for byte.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError, read_file, storing
from bench.inputs import formats
from bench.inputs.coco import Json, image_path, object_mask, read_coco
from bench.inputs.dataset import LAYOUTS
from bench.inputs.pixels import ODDITIES, WrongSize, decode, is_turned, oddities
from bench.recipe.workload import SPLIT_NAME

# -- checking --------------------------------------------------------------------------------------------


#: Kinds of problems that stop nothing.
NOTES = {"empty class", *ODDITIES}
AS_STORED = "not turned, for the annotations have the size of the stored pixels"


@dataclass(frozen=True)
class Problem:
    """``kind``: broken image, wrong size, box outside, … ; ``where``: the file or annotation."""

    split: str
    kind: str
    where: str
    text: str


@dataclass(frozen=True)
class Checked:
    """What a folder holds, by split, and what is wrong with it."""

    splits: Mapping[str, Json]
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether it can be used as it is; a class without objects and an odd kind of image are only worth knowing."""
        return all(problem.kind in NOTES for problem in self.problems)

    def as_json(self) -> Json:
        return {"splits": dict(self.splits), "problems": [vars(problem) for problem in self.problems]}


def splits_of(folder: Path) -> list[str]:
    names = sorted((folder / "annotations").glob("instances_*.json"))
    if not folder.is_dir():
        raise BenchError("no such folder", where=str(folder))
    if not names:
        raise BenchError("no data set in this folder", where=str(folder), hint=f"expected {LAYOUTS}")
    splits = [path.stem.removeprefix("instances_") for path in names]
    if wrong := [split for split in splits if not re.fullmatch(SPLIT_NAME, split)]:
        raise BenchError(f"not a name of a split: {wrong[0]!r}", where=str(folder))
    return splits


def check(folder: Path) -> Checked:
    """Look at every image and annotation of every split of a folder, in COCO's layout, YOLO's or VOC's.

    Raises BenchError for a file that is not of its format at all.
    """
    if (layout := formats.layout_of(folder)) is None:
        paths = {
            split: (folder / "annotations" / f"instances_{split}.json", folder / split)
            for split in splits_of(folder)
        }
        return _checked(paths)
    with tempfile.TemporaryDirectory() as cache:
        splits = formats.splits_of(folder, layout)
        return _checked({split: formats.as_coco(folder, layout, split, Path(cache)) for split in splits})


def check_file(annotations: Path, images: Path) -> Checked:
    """The same of one annotation file and the folder of its images."""
    if not images.is_dir():
        raise BenchError("no such folder of images", where=str(images))
    return _checked({annotations.stem: (annotations, images)})


def _checked(paths: Mapping[str, tuple[Path, Path]]) -> Checked:
    splits: dict[str, Json] = {}
    problems: list[Problem] = []
    for split, (file, images) in paths.items():
        coco = read_coco(file)
        counts = Counter(row["category_id"] for row in coco["annotations"] if not row.get("iscrowd"))
        splits[split] = {
            "images": len(coco["images"]),
            "images_without_objects": len(
                {image["id"] for image in coco["images"]} - {row["image_id"] for row in coco["annotations"]}
            ),
            "objects": counts.total(),
            "crowds": sum(bool(row.get("iscrowd")) for row in coco["annotations"]),
            "masks": sum(bool(row.get("segmentation")) for row in coco["annotations"]),
            "classes": {one["name"]: counts[one["id"]] for one in coco["categories"]},
        }
        found = (_image_problems(coco, images), _object_problems(coco), _class_problems(coco, counts))
        problems += [Problem(split, *one) for one in itertools.chain(*found)]
    return Checked(splits, tuple(problems))


Found = tuple[str, str, str]


def _image_problems(coco: Json, images: Path) -> Iterator[Found]:
    seen: dict[str, int] = {}
    for image in coco["images"]:
        name = str(image["file_name"])
        if name in seen:
            yield "file twice", name, f"images {seen[name]} and {image['id']} are the same file"
        seen[name] = image["id"]
        try:
            path = image_path(images, image)
        except BenchError as error:
            yield "name outside", name, error.message
            continue
        size, fits = (image["height"], image["width"]), False
        try:
            kinds = oddities(path)
            decode(path, size)
            fits = True
        except WrongSize as error:
            yield "wrong size", name, error.message
        except BenchError as error:
            missing = not path.exists()
            yield "missing image" if missing else "broken image", name, error.message
            continue
        for kind in kinds:
            stays = kind == "EXIF rotation" and fits and not is_turned(path, size)
            yield kind, name, AS_STORED if stays else ODDITIES[kind]


def _object_problems(coco: Json) -> Iterator[Found]:
    images = {image["id"]: image for image in coco["images"]}
    for row in coco["annotations"]:
        image = images[row["image_id"]]
        name = f"annotation {row['id']} of {image['file_name']}"
        x, y, w, h = row["bbox"]
        if w < 1 or h < 1:
            yield "box without extent", name, f"{w:g} x {h:g} pixels"
        elif x < -1 or y < -1 or x + w > image["width"] + 1 or y + h > image["height"] + 1:
            box = ", ".join(f"{value:g}" for value in row["bbox"])
            yield "box outside", name, f"[{box}] in an image of {image['width']}x{image['height']}"
        if row.get("segmentation"):
            try:
                empty = not object_mask(row, image).any()
            except Exception as error:  # pycocotools raises bare Exceptions
                yield "broken mask", name, str(error)
                continue
            if empty:
                yield "empty mask", name, "no pixel"


def _class_problems(coco: Json, counts: Mapping[int, int]) -> Iterator[Found]:
    names = Counter(category["name"] for category in coco["categories"])
    for category in coco["categories"]:
        if not counts.get(category["id"]):
            yield "empty class", category["name"], "no object in this split"
        if names[category["name"]] > 1:
            yield "class twice", category["name"], "several categories have this name"


# -- sampling --------------------------------------------------------------------------------------------


def sample(source: Path, target: Path, images: int, seed: int) -> dict[str, Json]:
    """Write a folder with so many images of each split of ``source`` (all of a smaller one), drawn at random.

    The same seed draws the same images, whatever order the annotation file has them in: a larger sample holds a
    smaller one. Annotations, ids and classes stay as they are.
    """
    if os.path.lexists(target):
        raise BenchError("is there already", where=str(target), hint="name a new folder")
    written = {}
    for split in splits_of(source):
        coco = read_coco(source / "annotations" / f"instances_{split}.json")
        ids = sorted(image["id"] for image in coco["images"])
        random.Random(f"{seed}/{split}").shuffle(ids)
        chosen = set(ids[:images])
        kept = [image for image in sorted(coco["images"], key=lambda one: one["id"]) if image["id"] in chosen]
        for image in kept:
            _write(image_path(target / split, image), read_file(image_path(source / split, image)))
        rows = [row for row in coco["annotations"] if row["image_id"] in chosen]
        content = json.dumps({**coco, "images": kept, "annotations": rows})
        _write(target / "annotations" / f"instances_{split}.json", content.encode())
        written[split] = {"images": len(kept), "objects": len(rows)}
    return written


def _write(path: Path, content: bytes) -> None:
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
