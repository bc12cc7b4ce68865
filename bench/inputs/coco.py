"""COCO JSON: read it, check it, decode its masks."""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from bench.errors import BenchError
from bench.inputs.masks import mask_problem
from bench.text_safety import for_terminal

Json = dict[str, Any]


def read_coco(path: Path) -> Json:
    """A COCO instances file, checked by `check_coco`. Raises BenchError that names the file."""
    try:
        content = json.loads(read_file(path))
    except ValueError as error:
        raise BenchError(f"not valid JSON: {error}", where=str(path)) from None
    except RecursionError:
        raise BenchError("not valid JSON: nested too deeply", where=str(path)) from None
    return check_coco(content, str(path))


def read_file(path: Path) -> bytes:
    """The content of a regular file: a device or a pipe, also behind a link, may have no end.

    Raises:
        BenchError: It is none, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for a writer
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BenchError("not a regular file", where=str(path))
            return file.read()
    except FileNotFoundError:
        raise BenchError("file is missing", where=str(path)) from None
    except OSError as error:
        raise BenchError(f"cannot be read: {error.strerror or error}", where=str(path)) from None


def image_path(folder: Path, image: Json) -> Path:
    """The file of an image of a COCO table. Raises BenchError when its name leads out of the folder."""
    name = image["file_name"]
    if (
        not isinstance(name, str)
        or not name
        or for_terminal(name) != name
        or "\n" in name
        or len(name) > 1000
    ):
        raise BenchError(f"image {image['id']}: file_name is no name of a file: {str(name)[:80]!r}")
    if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
        raise BenchError(f"the name of an image leads out of its folder: {name}", where=str(folder))
    return folder / name


#: Pixels of the largest image: twice what Pillow takes for a decompression bomb.
MAX_PIXELS = 2**28
#: A box may lie outside of its image, by so many times its longer side.
MAX_BOX_SIDES = 100

_COCO_TABLES = {
    "images": {"id", "file_name", "height", "width"},
    "annotations": {"id", "image_id", "category_id", "bbox"},
    "categories": {"id", "name"},
}


def check_coco(content: Any, where: str) -> Json:
    """The content of a COCO instances file whose tables, ids and boxes are sound.

    Raises BenchError that names the entry, with ``where`` as the place.
    """
    for table, keys in _COCO_TABLES.items():
        rows = content.get(table) if isinstance(content, Mapping) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise BenchError(f"not a COCO instances file: '{table}' is not a list of objects", where=where)
        seen = set()
        for row in rows:
            if not row.keys() >= keys:
                absent = ", ".join(sorted(keys - row.keys()))
                raise BenchError(f"{table} entry {row.get('id', '?')} has no {absent}", where=where)
            key = row["id"]
            if type(key) is not int or abs(key) >= 2**63:
                raise BenchError(f"{table} entry {str(key)[:40]}: an id is a whole number", where=where)
            if key in seen:
                raise BenchError(f"{table} id {key} occurs twice", where=where)
            seen.add(key)
    sides = {}
    for image in content["images"]:
        height, width = image["height"], image["width"]
        if not all(type(side) is int and 0 < side < 2**31 for side in (height, width)):
            raise BenchError(
                f"image {image['id']} has no size: {str(width)[:40]}x{str(height)[:40]}", where=where
            )
        if height * width > MAX_PIXELS:
            raise BenchError(f"image {image['id']} is too large: {width}x{height}", where=where)
        sides[image["id"]] = max(height, width)
    if any(not isinstance(category["name"], str) for category in content["categories"]):
        raise BenchError("the name of a category is no text", where=where)
    categories = {category["id"] for category in content["categories"]}
    for row in content["annotations"]:
        image_id, category_id = row["image_id"], row["category_id"]
        if type(image_id) is not int or image_id not in sides:
            raise BenchError(f"annotation {row['id']} is of unknown image {str(image_id)[:40]}", where=where)
        if type(category_id) is not int or category_id not in categories:
            raise BenchError(
                f"annotation {row['id']} is of unknown category {str(category_id)[:40]}", where=where
            )
        if not is_box(row["bbox"]):
            raise BenchError(
                f"annotation {row['id']} has no box [x, y, w, h]: {str(row['bbox'])[:80]}", where=where
            )
        if any(abs(value) > MAX_BOX_SIDES * sides[image_id] for value in row["bbox"]):
            raise BenchError(f"annotation {row['id']}: a box far outside of its image", where=where)
    return dict(content)


def is_number(value: Any) -> bool:
    """A finite number. ``value - value`` is 0 for these alone, and quick."""
    return isinstance(value, (float, int)) and value - value == 0


def is_box(value: Any) -> bool:
    """Four finite numbers, the last two (width and height) not negative."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    x, y, w, h = value
    return is_number(x) and is_number(y) and is_number(w) and is_number(h) and w >= 0 and h >= 0


def decode(path: Path) -> NDArray[np.uint8]:
    """The pixels of an image file, uint8 [H, W, 3], RGB. Raises BenchError that names the file."""
    content = read_file(path)
    try:
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise BenchError(f"image cannot be decoded: {error}", where=str(path)) from None


def object_mask(annotation: Json, image: Json) -> NDArray[np.uint8]:
    """The mask of an object at the size of its image, uint8 [H, W], from polygons or either form of RLE.

    An object without an outline gets its box, filled: only for models that do not use masks.
    """
    height, width = image["height"], image["width"]
    outline = annotation.get("segmentation")
    if not outline:
        x, y, w, h = annotation["bbox"]
        x, y, w, h = max(x, -width), max(y, -height), min(w, width * 2), min(h, height * 2)
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if problem := mask_problem(outline, height, width):
        raise ValueError(problem)
    if isinstance(outline, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    else:
        compressed = isinstance(outline["counts"], str | bytes)
        rle = outline if compressed else coco_mask.frPyObjects(outline, height, width)
    return np.asarray(coco_mask.decode(rle))
