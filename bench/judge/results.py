"""Ground truth and detections as evaluators take them: checked, with images, classes and objects numbered from 1.

Evaluators keep ids as floating-point numbers, in which ids above 2^53 fall together, and their C code trusts what it
is given. So nothing goes in that was not checked here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from bench.errors import BenchError
from bench.inputs.coco import check_coco, is_box, is_number, read_coco, read_json, whole_number
from bench.inputs.masks import check_mask, check_run_lengths

IouType = Literal["bbox", "segm", "keypoints"]
Json = dict[str, Any]
Size = tuple[int, int]

#: COCO's people have 17 keypoints; the spread of each is part of the metric.
KEYPOINTS = 17
_FIELDS: dict[IouType, str] = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}
_NAMES: dict[IouType, str] = {"bbox": "box", "segm": "mask", "keypoints": "keypoints"}
_MAX_AREA = 1e15


@dataclass(frozen=True)
class Detections:
    """Detections as columns: numbers of images and classes, from 1, int64 [N]; scores, float64 [N]; of ``bbox`` the
    boxes, float64 [N, 4] (x, y, w, h); of ``segm`` compressed masks, of ``keypoints`` 51 numbers each."""

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    shapes: list[Any]

    def for_loading(self, iou_type: IouType) -> Any:
        """What `loadRes` of both evaluators takes: boxes as an array, the rest as entries."""
        if iou_type == "bbox":
            return np.column_stack([self.images, self.boxes, self.scores, self.categories])
        columns = (self.images.tolist(), self.categories.tolist(), self.scores.tolist(), self.shapes)
        keys = ("image_id", "category_id", "score", _FIELDS[iou_type])
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


@dataclass(frozen=True)
class Sound:
    """What an evaluator needs, and how its numbers are read."""

    coco: Json
    """The ground truth as it is."""
    truth: Json
    """As an evaluator takes it."""
    found: Detections
    chosen: tuple[int, ...]
    """Ids of the images to evaluate, ascending."""
    numbers: dict[int, int]
    """Id of an image → its number."""
    categories: list[Json]
    """Of the ground truth, in the order of their numbers."""

    @property
    def chosen_numbers(self) -> list[int]:
        return [self.numbers[image] for image in self.chosen]


def read_sound(
    ground_truth: Path | Mapping[str, Any],
    detections: Path | Sequence[Mapping[str, Any]],
    iou_type: IouType,
    image_ids: Sequence[int] | None,
) -> Sound:
    """Raises BenchError that names the file, the entry and its image."""
    where = str(ground_truth) if isinstance(ground_truth, Path) else "ground truth"
    coco = (
        read_coco(ground_truth, files=False)
        if isinstance(ground_truth, Path)
        else check_coco(ground_truth, where, files=False)
    )
    _refuse_lvis(coco, where)
    ids = sorted(image["id"] for image in coco["images"])
    if not ids:
        raise BenchError("no images to evaluate", where=where)
    numbers = {image: number for number, image in enumerate(ids, start=1)}
    chosen = tuple(ids if image_ids is None else sorted(set(image_ids)))
    if strange := [image for image in chosen if image not in numbers]:
        raise BenchError(f"image {strange[0]} is not in the ground truth", where=where)
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    classes = {category["id"]: number for number, category in enumerate(categories, start=1)}
    sizes = {image["id"]: _size(image) for image in coco["images"]}
    truth = _checked_truth(coco, iou_type, numbers, classes, sizes, where)
    rows = read_results(detections) if isinstance(detections, Path) else detections
    name = str(detections) if isinstance(detections, Path) else "detections"
    found = _checked_results(rows, iou_type, numbers, classes, sizes, name)
    return Sound(coco, truth, found, chosen, numbers, categories)


def read_results(path: Path) -> list[Json]:
    """The content of a COCO results file. Raises BenchError."""
    results = read_json(path)
    if not isinstance(results, list) or not all(isinstance(row, dict) for row in results):
        raise BenchError("not COCO results: a list of detections is expected", where=str(path))
    return results


def what_is_there(ground_truth: Path, detections: Path) -> tuple[list[IouType], dict[IouType, str]]:
    """What can be evaluated: boxes, masks and keypoints that both files have; and why the others cannot."""
    truth = read_coco(ground_truth, files=False)["annotations"]
    results = read_results(detections)
    possible: list[IouType] = []
    missing: dict[IouType, str] = {}
    for iou_type, field in _FIELDS.items():
        if results and not any(row.get(field) for row in results):
            missing[iou_type] = f"no detection has a {_NAMES[iou_type]}".replace("a keypoints", "keypoints")
        elif truth and not any(row.get(field) for row in truth):
            missing[iou_type] = f"no object has a {_NAMES[iou_type]}".replace("a keypoints", "keypoints")
        else:
            possible.append(iou_type)
    if not results or not truth:  # keypoints are asked for by name where nothing shows them
        possible = [kind for kind in possible if kind != "keypoints"]
    return possible, missing


def _refuse_lvis(coco: Json, where: str) -> None:
    if any("neg_category_ids" in image or "not_exhaustive_category_ids" in image for image in coco["images"]):
        raise BenchError(
            "this is LVIS, whose images name the classes that were looked for: COCO's AP of it means nothing",
            where=where,
            hint="evaluate it with the lvis package, and read its log with bench import",
        )


def _size(image: Json) -> Size | None:
    return (image["height"], image["width"]) if image.get("height") is not None else None


def _checked_truth(
    coco: Json,
    iou_type: IouType,
    images: Mapping[int, int],
    classes: Mapping[int, int],
    sizes: Mapping[int, Size | None],
    where: str,
) -> Json:
    """What an evaluator needs of the ground truth, and no more."""
    annotations: list[Json] = []
    texts: list[tuple[int, str, int]] = []
    for number, row in enumerate(coco["annotations"], start=1):
        name = f"annotation {row['id']}"
        if not is_number(row.get("area")) or not 0 <= row["area"] <= _MAX_AREA:
            raise BenchError(f"{name} has no area: {row.get('area')}", where=where)
        annotation = {
            "id": number,
            "image_id": images[row["image_id"]],
            "category_id": classes[row["category_id"]],
            "bbox": [float(side) for side in row["bbox"]],
            "area": row["area"],
            "iscrowd": int(bool(row.get("iscrowd"))),
        }
        try:
            if iou_type == "segm":
                size = sizes[row["image_id"]]
                mask = annotation["segmentation"] = check_mask(row.get("segmentation"), _needed(size))
                if isinstance(mask, dict) and isinstance(mask["counts"], str):
                    height, width = mask["size"]
                    texts.append((len(annotations), mask["counts"], height * width))
            elif iou_type == "keypoints":
                annotation["keypoints"] = _keypoints(row.get("keypoints"))
                visible = sum(flag > 0 for flag in annotation["keypoints"][2::3])
                annotation["num_keypoints"] = whole_number(row.get("num_keypoints", visible)) or 0
        except ValueError as error:
            raise BenchError(f"{name} (image {row['image_id']}): {error}", where=where) from None
        annotations.append(annotation)
    if (wrong := check_run_lengths([text for _, text, _ in texts], [size for *_, size in texts])) is not None:
        row = coco["annotations"][texts[wrong[0]][0]]
        raise BenchError(f"annotation {row['id']} (image {row['image_id']}): {wrong[1]}", where=where)
    return {
        "images": [
            {"id": number, "height": (sizes[image] or (1, 1))[0], "width": (sizes[image] or (1, 1))[1]}
            for image, number in images.items()
        ],
        "categories": [{"id": number, "name": str(number)} for number in classes.values()],
        "annotations": annotations,
    }


def _needed(size: Size | None) -> Size:
    if size is None:
        raise ValueError("its image has no height and width, which masks need")
    return size


def _keypoints(values: Any) -> list[float]:
    """x, y and visibility of each. Raises ValueError."""
    if not isinstance(values, list) or len(values) != 3 * KEYPOINTS:
        raise ValueError(f"not COCO's {KEYPOINTS} keypoints: the metric is not defined for others")
    if not all(is_number(value) and abs(value) <= 1e7 for value in values):
        raise ValueError("a keypoint is no number")
    return values


def _checked_results(
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    images: Mapping[int, int],
    classes: Mapping[int, int],
    sizes: Mapping[int, Size | None],
    where: str,
) -> Detections:
    """Sound detections. They are checked by columns, which is quick, and only when something is wrong one by one,
    to name the first that is."""
    try:
        found = _columns(results, iou_type, images, classes, sizes)
    except (KeyError, TypeError, ValueError, OverflowError) as problem:
        for number, row in enumerate(results):
            _check_detection(row, iou_type, images, classes, sizes, f"detection {number}", where)
        raise BenchError(f"detections that cannot be read: {problem}", where=where) from None
    if iou_type == "segm":
        pixels = [mask["size"][0] * mask["size"][1] for mask in found.shapes]
        if (wrong := check_run_lengths([mask["counts"] for mask in found.shapes], pixels)) is not None:
            image = results[wrong[0]]["image_id"]
            raise BenchError(f"detection {wrong[0]} (image {image}): {wrong[1]}", where=where)
    return found


def _columns(
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    images: Mapping[int, int],
    classes: Mapping[int, int],
    sizes: Mapping[int, Size | None],
) -> Detections:
    """Raises KeyError, TypeError, ValueError or OverflowError unless every detection is sound."""
    if not results:
        none = np.zeros(0, np.int64)
        return Detections(none, none, np.zeros(0), np.zeros((0, 4)), [])
    image_ids = [row["image_id"] for row in results]
    class_ids = [row["category_id"] for row in results]
    if set(map(type, [*image_ids, *class_ids])) - {int}:
        image_ids, class_ids = ([_exact(value) for value in values] for values in (image_ids, class_ids))
    scores = np.array([row["score"] for row in results])
    boxes: NDArray[Any] = np.zeros((len(results), 4))
    shapes: list[Any] = []
    if iou_type == "bbox":
        boxes = np.array([row["bbox"] for row in results])
    elif iou_type == "segm":
        shapes = [
            _compressed(row["segmentation"], sizes[image])
            for row, image in zip(results, image_ids, strict=True)
        ]
    else:
        shapes = [_keypoints(row["keypoints"]) for row in results]
    sound = (
        scores.dtype.kind in "if"
        and boxes.dtype.kind in "if"
        and boxes.shape == (len(results), 4)
        and bool(np.isfinite(scores).all() and (np.abs(boxes) <= 1e7).all() and (boxes[:, 2:] >= 0).all())
    )
    if not sound:
        raise ValueError("not all of them are numbers")
    return Detections(
        np.array([images[image] for image in image_ids], np.int64),
        np.array([classes[category] for category in class_ids], np.int64),
        scores.astype(np.float64),
        boxes.astype(np.float64),
        shapes,
    )


def _exact(value: Any) -> int:
    """Raises ValueError."""
    number = whole_number(value)
    if number is None:
        raise ValueError(f"{value} is no id")
    return number


def _check_detection(
    row: Mapping[str, Any],
    iou_type: IouType,
    images: Mapping[int, int],
    classes: Mapping[int, int],
    sizes: Mapping[int, Size | None],
    name: str,
    where: str,
) -> None:
    """Raises BenchError that says what is wrong with a detection."""
    if not isinstance(row, Mapping):
        raise BenchError(f"{name} is no object with keys", where=where)
    image, category, score = (row.get(key) for key in ("image_id", "category_id", "score"))
    name = f"{name} (image {image!r})"
    if (number := whole_number(image)) is None or number not in images:
        raise BenchError(f"{name}: this image is not in the ground truth", where=where)
    if whole_number(category) not in classes:
        raise BenchError(
            f"{name}: the ground truth has no category {category}",
            where=where,
            hint="category ids are those of the data set, not labels: COCO's 80 classes have ids 1 to 90",
        )
    if not is_number(score):
        raise BenchError(f"{name}: the score {score} is not a finite number", where=where)
    try:
        if iou_type == "bbox" and not is_box(row.get("bbox")):
            raise ValueError(f"no box [x, y, width, height]: {row.get('bbox')}")
        if iou_type == "segm":
            _compressed(row.get("segmentation"), sizes[number])
        if iou_type == "keypoints":
            _keypoints(row.get("keypoints"))
    except ValueError as error:
        raise BenchError(f"{name}: {error}", where=where) from None


def _compressed(mask: Any, size: Size | None) -> Json:
    """A detection's mask as compressed run lengths, the only form that evaluators take. Raises ValueError."""
    size = _needed(size)
    mask = check_mask(mask, size)
    if isinstance(mask, dict) and isinstance(mask["counts"], str):
        return dict(mask)
    encoded = coco_mask.frPyObjects(mask, *size)
    whole = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
    return {"size": list(size), "counts": whole["counts"].decode()}
