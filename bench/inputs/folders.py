"""Data sets on disk: other layouts converted to COCO's, a folder checked, a part of it taken.

All of them write and read what `bench.inputs` opens: ``annotations/instances_<split>.json`` and ``<split>/``. Images
are copied byte for byte, so converting twice gives the same files.
"""

from __future__ import annotations

import json
import random
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from bench.errors import BenchError, StorageError, did_you_mean
from bench.inputs.coco import decode, object_mask, read_coco

Json = dict[str, Any]

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
#: The eight classes of Cityscapes that have instances, with their label ids (cityscapesscripts/helpers/labels.py).
CITYSCAPES_CLASSES = {
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32, "bicycle": 33,
}  # fmt: skip
VOC_BORDER = 255  # of SegmentationObject: pixels that belong to nobody
#: A mask's box and the annotated box of the same object are nearly the same.
MIN_VOC_IOU = 0.5


@dataclass(frozen=True)
class Region:
    """One object. box: x, y, width, height. mask: bool [H, W], or None where the source has none."""

    category: str
    box: tuple[float, float, float, float]
    mask: NDArray[np.bool_] | None = None
    crowd: bool = False


@dataclass(frozen=True)
class Picture:
    """One image of a source, and what is in it. name: its path below the split's folder."""

    path: Path
    name: str
    width: int
    height: int
    regions: tuple[Region, ...]


# -- converting ------------------------------------------------------------------------------------------


def convert(layout: str, source: Path, target: Path) -> dict[str, Json]:
    """Write all splits that a source has into a new folder, in COCO's layout.

    ``layout``: voc, cityscapes or widerface. Returns by split the number of images, objects and masks. Raises
    BenchError for a source that is not of that layout, and for a target that is there.
    """
    if layout not in LAYOUTS:
        raise BenchError(f"unknown layout '{layout}'", hint=did_you_mean(layout, LAYOUTS))
    if not source.is_dir():
        raise BenchError("folder not found", where=str(source))
    splits, classes = LAYOUTS[layout]
    _new_folder(target)
    written = {}
    for split, pictures in splits(source):
        written[split] = _write_split(target, split, pictures, classes)
    if not written:
        target.rmdir()
        raise BenchError(f"no split in the layout of {layout} is here", where=str(source))
    return written


def _new_folder(target: Path) -> None:
    try:
        target.mkdir(parents=True)
    except FileExistsError:
        raise BenchError("already exists", where=str(target), hint="name a new folder") from None
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error


def _write_split(target: Path, split: str, pictures: Iterator[Picture], classes: Sequence[str]) -> Json:
    images: list[Json] = []
    annotations: list[Json] = []
    category_of = {name: number for number, name in enumerate(classes, start=1)}
    for picture in pictures:
        image = len(images) + 1
        images.append(
            {"id": image, "file_name": picture.name, "width": picture.width, "height": picture.height}
        )
        _copy(picture.path, target / split / picture.name)
        for region in picture.regions:
            annotations.append(_annotation(len(annotations) + 1, image, category_of[region.category], region))
    categories = [{"id": number, "name": name} for name, number in category_of.items()]
    _write_coco(target, split, {"images": images, "annotations": annotations, "categories": categories})
    return {
        "images": len(images),
        "objects": len(annotations),
        "masks": sum("segmentation" in one for one in annotations),
    }


def _annotation(number: int, image: int, category: int, region: Region) -> Json:
    annotation: Json = {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(region.box),
        "area": region.box[2] * region.box[3],
        "iscrowd": int(region.crowd),
    }
    if region.mask is not None:
        rle = coco_mask.encode(np.asfortranarray(region.mask, np.uint8))
        annotation["area"] = int(region.mask.sum())
        annotation["segmentation"] = {"size": list(region.mask.shape), "counts": rle["counts"].decode()}
    return annotation


def _copy(source: Path, target: Path) -> None:
    if ".." in target.parts or target.is_symlink():
        raise BenchError("the name of an image leads out of its folder", where=str(source))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except FileNotFoundError:
        raise BenchError("image is missing", where=str(source)) from None
    except OSError as error:
        raise StorageError(f"cannot write {target}: {error.strerror or error}") from error


def _write_coco(target: Path, split: str, content: Json) -> None:
    path = target / "annotations" / f"instances_{split}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (target / split).mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error


def _size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file."""
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, ValueError, SyntaxError) as error:
        raise BenchError(f"image cannot be read: {error}", where=str(path)) from None


def _box_of(mask: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


# -- PASCAL VOC ------------------------------------------------------------------------------------------


def _voc_splits(source: Path) -> Iterator[tuple[str, Iterator[Picture]]]:
    """``VOC<year>`` or a folder of several of them (VOCdevkit). Splits are those of ``ImageSets/Main``; and with masks,
    named ``<split>_masks``, those of ``ImageSets/Segmentation``, whose images all have ``SegmentationObject``."""
    for root in sorted(source.glob("VOC*")) if not (source / "Annotations").is_dir() else [source]:
        year = f"_{root.name.lower()}" if root != source else ""
        for kind, suffix in (("Main", ""), ("Segmentation", "_masks")):
            for name in ("train", "val", "trainval", "test"):
                listed = root / "ImageSets" / kind / f"{name}.txt"
                if listed.is_file() and _is_annotated(root, listed):
                    yield f"{name}{suffix}{year}", _voc_pictures(root, listed, masks=bool(suffix))


def _is_annotated(root: Path, listed: Path) -> bool:
    """The test sets of some years came without annotations."""
    names = [line.split()[0] for line in _lines(listed)]
    return bool(names) and (root / "Annotations" / f"{names[0]}.xml").is_file()


def _voc_pictures(root: Path, listed: Path, *, masks: bool) -> Iterator[Picture]:
    for line in _lines(listed):
        name = line.split()[0]
        path = root / "JPEGImages" / f"{name}.jpg"
        width, height = _size(path)
        regions = _voc_boxes(root / "Annotations" / f"{name}.xml")
        if masks:
            regions = _voc_masks(root / "SegmentationObject" / f"{name}.png", regions)
        yield Picture(path, path.name, width, height, tuple(regions))


def _voc_boxes(path: Path) -> list[Region]:
    """Boxes of VOC are pixels from 1, both ends included. Difficult objects, which VOC's evaluation ignores, are crowds
    of one: what COCO's ignores."""
    try:
        tree = ET.parse(path)
    except (OSError, ET.ParseError) as error:
        raise BenchError(f"cannot be read: {error}", where=str(path)) from None
    regions = []
    for thing in tree.getroot().findall("object"):
        name = thing.findtext("name", "").strip()
        if name not in VOC_CLASSES:
            raise BenchError(f"'{name}' is no class of VOC", where=str(path))
        box = thing.find("bndbox")
        if box is None:
            raise BenchError(f"an object '{name}' has no box", where=str(path))
        x1, y1, x2, y2 = (float(box.findtext(side, "nan")) for side in ("xmin", "ymin", "xmax", "ymax"))
        if not (x1 <= x2 and y1 <= y2):
            raise BenchError(f"an object '{name}' has no extent", where=str(path))
        difficult = thing.findtext("difficult", "0").strip() == "1"
        regions.append(Region(name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), crowd=difficult))
    return regions


def _voc_masks(path: Path, boxes: list[Region]) -> list[Region]:
    """Each object of ``SegmentationObject`` gets the class of the annotated box that its own box fits best."""
    try:
        with Image.open(path) as image:
            numbers = np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise BenchError(f"cannot be read: {error}", where=str(path)) from None
    regions, free = [], list(boxes)
    for number in np.unique(numbers):
        if number in (0, VOC_BORDER) or not free:
            continue
        mask = numbers == number
        best = max(free, key=lambda region: _iou(_box_of(mask), region.box))
        if _iou(_box_of(mask), best.box) >= MIN_VOC_IOU:
            free.remove(best)
            regions.append(Region(best.category, _box_of(mask), mask, best.crowd))
    return regions


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    inside = max(width, 0.0) * max(height, 0.0)
    return inside / (a[2] * a[3] + b[2] * b[3] - inside)


# -- Cityscapes ------------------------------------------------------------------------------------------


def _cityscapes_splits(source: Path) -> Iterator[tuple[str, Iterator[Picture]]]:
    """``leftImg8bit/<split>/<city>/*_leftImg8bit.png`` with ``gtFine/…_gtFine_instanceIds.png``."""
    for split in ("train", "val"):
        if (source / "leftImg8bit" / split).is_dir():
            yield split, _cityscapes_pictures(source, split)


def _cityscapes_pictures(source: Path, split: str) -> Iterator[Picture]:
    """A value of an instance map of 1000 or more is 1000 × the class + the number of the instance; one below is a
    class: of the eight, a group that was not told apart, a crowd."""
    class_of = {number: name for name, number in CITYSCAPES_CLASSES.items()}
    for path in sorted((source / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        stem = path.name.removesuffix("_leftImg8bit.png")
        ids = source / "gtFine" / split / path.parent.name / f"{stem}_gtFine_instanceIds.png"
        try:
            with Image.open(ids) as image:
                values = np.asarray(image)
        except (OSError, ValueError, SyntaxError) as error:
            raise BenchError(f"cannot be read: {error}", where=str(ids)) from None
        regions = []
        for value in np.unique(values).tolist():
            name = class_of.get(value // 1000 if value >= 1000 else value)
            if name is not None:
                mask = values == value
                regions.append(Region(name, _box_of(mask), mask, crowd=value < 1000))
        height, width = values.shape
        yield Picture(path, f"{path.parent.name}/{path.name}", width, height, tuple(regions))


# -- WIDER FACE ------------------------------------------------------------------------------------------


def _wider_splits(source: Path) -> Iterator[tuple[str, Iterator[Picture]]]:
    """``wider_face_split/wider_face_<split>_bbx_gt.txt`` with ``WIDER_<split>/images/``."""
    for split in ("train", "val"):
        listed = source / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
        if listed.is_file():
            yield split, _wider_pictures(source / f"WIDER_{split}" / "images", listed)


def _wider_pictures(images: Path, listed: Path) -> Iterator[Picture]:
    """Per image its name, the number of faces, and a line for each (one of zeros where there is none): x, y, width,
    height, blur, expression, illumination, invalid, occlusion, pose. Invalid faces are crowds of one, which are
    ignored; faces without extent are left out."""
    lines = iter(_lines(listed))
    for name in lines:
        try:
            count = int(next(lines))
            rows = [[int(part) for part in next(lines).split()] for _ in range(max(count, 1))]
        except (StopIteration, ValueError):
            raise BenchError(f"no list of faces after {name}", where=str(listed)) from None
        regions = [
            Region("face", (row[0], row[1], row[2], row[3]), crowd=len(row) > 7 and row[7] == 1)
            for row in rows[:count]
            if row[2] > 0 and row[3] > 0
        ]
        width, height = _size(images / name)
        yield Picture(images / name, name, width, height, tuple(regions))


Splits = Callable[[Path], Iterator[tuple[str, Iterator[Picture]]]]
LAYOUTS: Mapping[str, tuple[Splits, Sequence[str]]] = {
    "voc": (_voc_splits, VOC_CLASSES),
    "cityscapes": (_cityscapes_splits, tuple(CITYSCAPES_CLASSES)),
    "widerface": (_wider_splits, ("face",)),
}


# -- checking --------------------------------------------------------------------------------------------


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
        """Whether it can be used as it is; a class without objects is worth knowing, and normal in a small part."""
        return all(problem.kind == "empty class" for problem in self.problems)

    def as_json(self) -> Json:
        return {"splits": dict(self.splits), "problems": [vars(problem) for problem in self.problems]}


def splits_of(folder: Path) -> list[str]:
    names = sorted((folder / "annotations").glob("instances_*.json"))
    if not names:
        raise BenchError("no annotations/instances_<split>.json", where=str(folder))
    return [path.stem.removeprefix("instances_") for path in names]


def check(folder: Path) -> Checked:
    """Look at every image and annotation of every split. Raises BenchError for a file that is not COCO's at all."""
    splits: dict[str, Json] = {}
    problems: list[Problem] = []
    for split in splits_of(folder):
        coco = read_coco(folder / "annotations" / f"instances_{split}.json")
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
        found = [
            *_image_problems(coco, folder / split),
            *_object_problems(coco),
            *_class_problems(coco, counts),
        ]
        problems += [Problem(split, *one) for one in found]
    return Checked(splits, tuple(problems))


Found = tuple[str, str, str]


def _image_problems(coco: Json, images: Path) -> Iterator[Found]:
    seen: dict[str, int] = {}
    for image in coco["images"]:
        name = str(image["file_name"])
        if name in seen:
            yield "file twice", name, f"images {seen[name]} and {image['id']} are the same file"
        seen[name] = image["id"]
        if Path(name).is_absolute() or ".." in Path(name).parts:
            yield "name outside", name, "leads out of the split's folder"
            continue
        try:
            pixels = decode(images / name)
        except BenchError as error:
            missing = not (images / name).exists()
            yield "missing image" if missing else "broken image", name, error.message
            continue
        if pixels.shape[:2] != (image["height"], image["width"]):
            said, is_ = f"{image['width']}x{image['height']}", f"{pixels.shape[1]}x{pixels.shape[0]}"
            yield "wrong size", name, f"annotations say {said}, the image is {is_}"


def _object_problems(coco: Json) -> Iterator[Found]:
    images = {image["id"]: image for image in coco["images"]}
    for row in coco["annotations"]:
        image, name = (
            images[row["image_id"]],
            f"annotation {row['id']} of {images[row['image_id']]['file_name']}",
        )
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
    _new_folder(target)
    written = {}
    for split in splits_of(source):
        coco = read_coco(source / "annotations" / f"instances_{split}.json")
        ids = sorted(image["id"] for image in coco["images"])
        random.Random(f"{seed}/{split}").shuffle(ids)
        chosen = set(ids[:images])
        kept = [image for image in sorted(coco["images"], key=lambda one: one["id"]) if image["id"] in chosen]
        for image in kept:
            _copy(source / split / image["file_name"], target / split / image["file_name"])
        rows = [row for row in coco["annotations"] if row["image_id"] in chosen]
        _write_coco(target, split, {**coco, "images": kept, "annotations": rows})
        written[split] = {"images": len(kept), "objects": len(rows)}
    return written
