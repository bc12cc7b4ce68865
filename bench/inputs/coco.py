"""COCO JSON: read it, check it, decode its masks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from bench.errors import BenchError

Json = dict[str, Any]


def read_coco(path: Path) -> Json:
    """A COCO instances file, checked by `check_coco`. Raises BenchError that names the file."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError as error:
        raise BenchError(f"not valid JSON: {error}", where=str(path)) from None
    return check_coco(content, str(path))


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
            if not isinstance(key, int):
                raise BenchError(f"{table} entry {key}: an id is a whole number", where=where)
            if key in seen:
                raise BenchError(f"{table} id {key} occurs twice", where=where)
            seen.add(key)
    for image in content["images"]:
        if not all(isinstance(image[side], int) and image[side] > 0 for side in ("height", "width")):
            raise BenchError(
                f"image {image['id']} has no size: {image['width']}x{image['height']}", where=where
            )
    images = {image["id"] for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    for row in content["annotations"]:
        if row["image_id"] not in images:
            raise BenchError(f"annotation {row['id']} is of unknown image {row['image_id']}", where=where)
        if row["category_id"] not in categories:
            raise BenchError(
                f"annotation {row['id']} is of unknown category {row['category_id']}", where=where
            )
        if not is_box(row["bbox"]):
            raise BenchError(f"annotation {row['id']} has no box [x, y, w, h]: {row['bbox']}", where=where)
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
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise BenchError("image is missing", where=str(path)) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BenchError(f"image cannot be decoded: {error}", where=str(path)) from None


def object_mask(annotation: Json, image: Json) -> NDArray[np.uint8]:
    """The mask of an object at the size of its image, uint8 [H, W], from polygons or either form of RLE.

    An object without an outline gets its box, filled: only for models that do not use masks.
    """
    height, width = image["height"], image["width"]
    outline = annotation.get("segmentation")
    if not outline:
        x, y, w, h = annotation["bbox"]
        outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    if isinstance(outline, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    else:
        if list(outline["size"]) != [height, width]:
            raise ValueError(f"mask has size {outline['size']}, its image [{height}, {width}]")
        compressed = isinstance(outline["counts"], str | bytes)
        rle = outline if compressed else coco_mask.frPyObjects(outline, height, width)
    return np.asarray(coco_mask.decode(rle))
