"""COCO JSON: read it, check it, decode its masks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from bench.errors import BenchError, read_file
from bench.inputs.masks import check_mask, check_run_lengths
from bench.text_safety import for_terminal

Json = dict[str, Any]


#: No image is as large as this, and no box of an object.
MAX_COORDINATE = 10_000_000
#: Pixels of the largest image: more than what Pillow takes for a decompression bomb.
MAX_PIXELS = 2**28
#: Whole numbers above this are not exact as floating-point numbers.
_EXACT = 2**53


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises BenchError that names the file."""
    try:
        return json.loads(read_file(path))
    except (ValueError, RecursionError) as error:
        raise BenchError(f"not valid JSON: {error}", where=str(path)) from None


def image_path(folder: Path, image: Json) -> Path:
    """The file of an image of a COCO table. Raises BenchError when its name leads out of the folder."""
    name = image["file_name"]
    if not isinstance(name, str) or not 0 < len(name) < 1000 or for_terminal(name) != name or "\n" in name:
        raise BenchError(f"image {image['id']}: file_name is no name of a file: {str(name)[:80]!r}")
    if PurePath(name).is_absolute():
        raise BenchError(f"the name of an image is not relative to this folder: {name}", where=str(folder))
    if ".." in PurePath(name).parts:
        raise BenchError(f"the name of an image leads out of its folder: {name}", where=str(folder))
    return folder / name


def read_coco(path: Path, *, files: bool = True) -> Json:
    """A COCO instances file, checked by `check_coco`. Raises BenchError that names the file."""
    return check_coco(read_json(path), str(path), files=files)


_TABLES = {"images": {"id"}, "annotations": {"id", "image_id", "category_id", "bbox"}, "categories": {"id"}}
_OF_FILES = {"images": {"file_name", "height", "width"}, "categories": {"name"}}


def check_coco(content: Any, where: str, *, files: bool = True) -> Json:
    """The content of a COCO instances file whose tables, ids and boxes are sound.

    Args:
        content: What the file holds.
        where: Named in errors.
        files: Images have file names and sizes, categories names. An evaluation needs none of them.

    Returns:
        The content, with ids and sizes in whole numbers (42.0 is 42).

    Raises:
        BenchError: It names the entry.
    """
    tables: Json = {}
    for table, keys in _TABLES.items():
        rows = content.get(table) if isinstance(content, Mapping) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise BenchError(f"not a COCO instances file: '{table}' is not a list of objects", where=where)
        needed = keys | (_OF_FILES.get(table, set()) if files else set())
        whole = [key for key in ("id", "image_id", "category_id", "height", "width") if key in needed]
        tables[table] = [
            _row(row, f"{table} entry {row.get('id', f'number {number}')}", needed, whole, where)
            for number, row in enumerate(rows, start=1)
        ]
        seen = set()
        for row in tables[table]:
            if row["id"] in seen:
                raise BenchError(f"{table} id {row['id']} occurs twice", where=where)
            seen.add(row["id"])
    if files and any(not isinstance(category["name"], str) for category in tables["categories"]):
        raise BenchError("the name of a category is no text", where=where)
    tables["images"] = [_sized(image, where, needed=files) for image in tables["images"]]
    images = {image["id"] for image in tables["images"]}
    categories = {category["id"] for category in tables["categories"]}
    for row in tables["annotations"]:
        if row["image_id"] not in images:
            raise BenchError(f"annotation {row['id']} is of unknown image {row['image_id']}", where=where)
        if row["category_id"] not in categories:
            raise BenchError(
                f"annotation {row['id']} is of unknown category {row['category_id']}", where=where
            )
        if not is_box(row["bbox"]):
            raise BenchError(f"annotation {row['id']} has no box [x, y, w, h]: {row['bbox']}", where=where)
    return {**content, **tables}


def _row(row: Json, name: str, needed: set[str], whole: Sequence[str], where: str) -> Json:
    if not row.keys() >= needed:
        raise BenchError(f"{name} has no {', '.join(sorted(needed - row.keys()))}", where=where)
    for key in whole:
        if type(row[key]) is not int:
            if (value := whole_number(row[key])) is None:
                raise BenchError(f"{name}: {key} {row[key]!r} is no whole number", where=where)
            row = {**row, key: value}
    return row


def _sized(image: Json, where: str, *, needed: bool) -> Json:
    """An image with height and width, where there are any, in whole numbers above 0."""
    sides = [image.get(side) for side in ("height", "width")]
    if not needed and sides == [None, None]:
        return image
    whole = [whole_number(side) for side in sides]
    if not all(side is not None and 0 < side <= MAX_COORDINATE for side in whole):
        raise BenchError(f"image {image['id']} has no size: {sides[1]}x{sides[0]}", where=where)
    if needed and (whole[0] or 0) * (whole[1] or 0) > MAX_PIXELS:
        raise BenchError(f"image {image['id']} is too large: {sides[1]}x{sides[0]}", where=where)
    return image if whole == sides else {**image, "height": whole[0], "width": whole[1]}


def whole_number(value: Any) -> int | None:
    """42 and 42.0 as 42; None for anything else, and for a float too large to be exact."""
    if type(value) is int and abs(value) < 2**63:
        return value
    if type(value) is float and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    return None


def is_number(value: Any) -> bool:
    """A finite number. ``value - value`` is 0 for these alone, and quick."""
    return type(value) in (float, int) and value - value == 0


def is_box(value: Any) -> bool:
    """Four numbers that can be those of a box, the last two (width and height) not negative."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    if not all(type(side) in (int, float) and abs(side) <= MAX_COORDINATE for side in value):
        return False  # nan compares false, too
    return bool(value[2] >= 0 and value[3] >= 0)


def object_mask(annotation: Json, image: Json) -> NDArray[np.uint8]:
    """The mask of an object at the size of its image, uint8 [H, W], from polygons or either form of RLE.

    An object without an outline gets its box, filled: only for models that do not use masks. Raises ValueError.
    """
    height, width = image["height"], image["width"]
    outline = annotation.get("segmentation")
    if not outline:
        x, y, w, h = annotation["bbox"]
        left, right = (min(max(side, 0), width) for side in (x, x + w))
        top, bottom = (min(max(side, 0), height) for side in (y, y + h))
        outline = [[left, top, right, top, right, bottom, left, bottom]]
    outline = check_mask(outline, (height, width))
    if isinstance(outline, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(outline, height, width))
    elif isinstance(outline["counts"], list):
        rle = coco_mask.frPyObjects(outline, height, width)
    else:
        if (wrong := check_run_lengths([outline["counts"]], [height * width])) is not None:
            raise ValueError(wrong[1])
        rle = outline
    return np.asarray(coco_mask.decode(rle))
