"""COCO average precision and recall, the same for every codebase, and how sure a difference of two is.

The numbers are those of pycocotools, the reference implementation
(``cocoapi/PythonAPI/pycocotools/cocoeval.py``): 101 recall points, IoU 0.50:0.05:0.95, areas below 32²,
below 96² and above, at most 1, 10 and 100 detections of an image and class. hotcoco computes the same
arrays bit for bit, much faster, and is the default.

What the reference leaves to chance is defined here:

* **Images.** All images of the ground truth are evaluated, with or without objects: a detection in an empty
  image is a false positive. A subset has to be asked for, detections in other images are then counted as
  left out, and the result always says which images it is of.
* **No detections** give 0 (pycocotools raises IndexError). A number without any object to find, such as small
  objects where there are none, is not defined: None (pycocotools: −1).
* **An area** of a detection is that of its mask for ``segm``, of its box for ``bbox``, whatever else its
  entry holds (pycocotools takes the box's for masks too when there is one, which moves objects between
  sizes).
* **Errors:** a score, box or area that is no finite number; a box of negative size; an id of an image or a
  category that the ground truth does not have (pycocotools: an assertion, and silently nothing); an id that
  occurs twice in the ground truth; no box where boxes, no mask where masks are evaluated; a mask of another
  size than its image (pycocotools: silently no match).
* **Boxes outside** the image are evaluated as they are, not clipped; those wholly outside are counted.
* **Detections that occur twice** are two detections: the second is a false positive.
* **Crowds** are neither found nor missed; detections inside of one are ignored, as in the reference.
* An annotation may have the **id 0** (pycocotools: is never matched), since ids are numbered again from 1.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from bench.errors import BenchError, did_you_mean
from bench.inputs.coco import check_coco, is_box, is_number, read_coco

IouType = Literal["bbox", "segm"]
Json = dict[str, Any]

_BACKENDS = {
    "hotcoco": ("hotcoco", "hotcoco"),
    "pycocotools": ("pycocotools.coco", "pycocotools.cocoeval"),
}


class _Metric(NamedTuple):
    kind: Literal["precision", "recall"]
    iou: int | None  # place in 0.50:0.05:0.95; None is the mean over all
    area: int  # place in all, small, medium, large
    detections: int  # place in 1, 10, 100


#: The 12 numbers, in the order of pycocotools' `stats`.
METRICS = {
    "AP": _Metric("precision", None, 0, 2),
    "AP50": _Metric("precision", 0, 0, 2),
    "AP75": _Metric("precision", 5, 0, 2),
    "APs": _Metric("precision", None, 1, 2),
    "APm": _Metric("precision", None, 2, 2),
    "APl": _Metric("precision", None, 3, 2),
    "AR@1": _Metric("recall", None, 0, 0),
    "AR@10": _Metric("recall", None, 0, 1),
    "AR@100": _Metric("recall", None, 0, 2),
    "ARs": _Metric("recall", None, 1, 2),
    "ARm": _Metric("recall", None, 2, 2),
    "ARl": _Metric("recall", None, 3, 2),
}


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: its objects (crowds not counted), its detections, and the numbers of `METRICS`."""

    id: int
    name: str
    objects: int
    detections: int
    metrics: dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """The numbers, each in 0..1 or None where there is nothing to find, and what they are of.

    image_ids: the images that were evaluated. images_without_objects: how many of them have no annotation
    at all. objects, crowds, detections: in these images. detections_left_out: in images of the ground truth
    that were not evaluated. boxes_outside: detections whose box does not meet its image (of ``segm``
    results without a box: 0).
    """

    iou_type: IouType
    backend: str
    metrics: dict[str, float | None]
    classes: tuple[ClassAccuracy, ...]
    image_ids: tuple[int, ...]
    images_without_objects: int
    objects: int
    crowds: int
    detections: int
    detections_left_out: int
    boxes_outside: int

    def as_json(self) -> Json:
        return asdict(self)


def evaluate(
    ground_truth: Path | Mapping[str, Any],
    detections: Path | Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    backend: str = "hotcoco",
    image_ids: Sequence[int] | None = None,
) -> Evaluation:
    """COCO numbers of detections (COCO results: ``image_id, category_id, score`` and ``bbox`` [x, y, w, h] or
    ``segmentation``) against ground truth (COCO instances), each a file or its content.

    ``image_ids``: evaluate only these. Raises BenchError as the module says.
    """
    if backend not in _BACKENDS:
        raise BenchError(f"unknown evaluator '{backend}'", hint=did_you_mean(backend, _BACKENDS))
    coco, truth, found, chosen = _read(ground_truth, detections, iou_type, image_ids)
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    precision, recall = _arrays(truth, found, iou_type, backend, chosen)

    evaluated = set(chosen)
    objects = [row for row in truth["annotations"] if row["image_id"] in evaluated]
    inside = np.isin(found.images, chosen)
    objects_of = Counter(row["category_id"] for row in objects if not row["iscrowd"])
    detections_of = Counter(found.categories[inside].tolist())
    categories = sorted(coco["categories"], key=lambda category: category["id"])
    return Evaluation(
        iou_type=iou_type,
        backend=backend,
        metrics=_metrics(precision, recall),
        classes=tuple(
            ClassAccuracy(
                id=category["id"],
                name=category["name"],
                objects=objects_of[category["id"]],
                detections=detections_of[category["id"]],
                metrics=_metrics(precision[:, :, place : place + 1], recall[:, place : place + 1]),
            )
            for place, category in enumerate(categories)
        ),
        image_ids=chosen,
        images_without_objects=len(evaluated - {row["image_id"] for row in objects}),
        objects=objects_of.total(),
        crowds=sum(row["iscrowd"] for row in objects),
        detections=int(inside.sum()),
        detections_left_out=int((~inside).sum()),
        boxes_outside=_count_outside(found, sizes),
    )


def _read(
    ground_truth: Path | Mapping[str, Any],
    detections: Path | Sequence[Mapping[str, Any]],
    iou_type: IouType,
    image_ids: Sequence[int] | None,
) -> tuple[Json, Json, _Results, tuple[int, ...]]:
    """Sound ground truth, as it is and as evaluators take it, sound detections, and the images to evaluate."""
    truth_name = str(ground_truth) if isinstance(ground_truth, Path) else "ground truth"
    coco = read_coco(ground_truth) if isinstance(ground_truth, Path) else check_coco(ground_truth, truth_name)
    results_name = str(detections) if isinstance(detections, Path) else "detections"
    results = _read_results(detections) if isinstance(detections, Path) else detections
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    chosen = tuple(sorted(sizes if image_ids is None else set(image_ids)))
    if strange := [image for image in chosen if image not in sizes]:
        raise BenchError(f"image {strange[0]} is not in the ground truth", where=truth_name)
    truth = _checked_truth(coco, iou_type, sizes, truth_name)
    known = {category["id"] for category in coco["categories"]}
    return coco, truth, _checked_results(results, iou_type, known, sizes, results_name), chosen


def evaluate_file(truth: Path, results: Path, *, masks: bool) -> dict[IouType, Evaluation]:
    """Numbers of the boxes, and with ``masks`` of the masks as well, over all images of the ground truth."""
    coco, found = read_coco(truth), _read_results(results)
    kinds: tuple[IouType, ...] = ("bbox", "segm") if masks else ("bbox",)
    return {kind: evaluate(coco, found, kind) for kind in kinds}


# -- what goes in ----------------------------------------------------------------------------------------


def _read_results(path: Path) -> list[Json]:
    try:
        results = json.loads(path.read_text())
    except OSError as error:
        raise BenchError(f"cannot be read: {error.strerror or error}", where=str(path)) from None
    except ValueError as error:
        raise BenchError(f"not valid JSON: {error}", where=str(path)) from None
    if not isinstance(results, list) or not all(isinstance(row, dict) for row in results):
        raise BenchError("not COCO results: a list of detections is expected", where=str(path))
    return results


def _checked_truth(coco: Mapping[str, Any], iou_type: IouType, sizes: Mapping[int, Any], where: str) -> Json:
    """What an evaluator needs of the ground truth, and no more, with annotations numbered from 1."""
    annotations = []
    for number, row in enumerate(coco["annotations"], start=1):
        if not is_number(row.get("area")):
            raise BenchError(f"annotation {row['id']} has no area: {row.get('area')}", where=where)
        annotation = {
            "id": number,
            "image_id": row["image_id"],
            "category_id": row["category_id"],
            "bbox": row["bbox"],
            "area": row["area"],
            "iscrowd": int(bool(row.get("iscrowd"))),
        }
        if iou_type == "segm":
            try:
                _check_mask(row.get("segmentation"), sizes[row["image_id"]])
            except ValueError as error:
                raise BenchError(f"annotation {row['id']}: {error}", where=where) from None
            annotation["segmentation"] = row["segmentation"]
        annotations.append(annotation)
    return {
        "images": [{key: image[key] for key in ("id", "height", "width")} for image in coco["images"]],
        "categories": [{"id": category["id"], "name": category["name"]} for category in coco["categories"]],
        "annotations": annotations,
    }


@dataclass(frozen=True)
class _Results:
    """Detections as columns: ids of images and classes, int64 [N]; scores, float64 [N]; for ``bbox`` boxes, float64
    [N, 4] (x, y, w, h); for ``segm`` compressed masks, N of them.
    """

    images: NDArray[np.int64]
    categories: NDArray[np.int64]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    masks: list[Json]

    def for_loading(self) -> Any:
        """What `loadRes` of both evaluators takes: boxes as an array, masks as entries."""
        if not self.masks:
            return np.column_stack([self.images, self.boxes, self.scores, self.categories])
        columns = (self.images.tolist(), self.categories.tolist(), self.scores.tolist(), self.masks)
        keys = ("image_id", "category_id", "score", "segmentation")
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]


def _checked_results(
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    categories: set[int],
    sizes: Mapping[int, tuple[int, int]],
    where: str,
) -> _Results:
    """Sound detections. They are checked by columns, which is quick, and only when something is wrong one by one,
    to name the first that is.
    """
    try:
        return _columns(results, iou_type, categories, sizes)
    except (KeyError, TypeError, ValueError) as problem:
        for number, row in enumerate(results):
            _check_detection(row, iou_type, categories, sizes, f"detection {number}", where)
        raise BenchError(f"detections that cannot be read: {problem}", where=where) from None


def _columns(
    results: Sequence[Mapping[str, Any]],
    iou_type: IouType,
    categories: set[int],
    sizes: Mapping[int, tuple[int, int]],
) -> _Results:
    """Raises KeyError, TypeError or ValueError unless every detection is sound."""
    if not results:
        none = np.zeros(0, np.int64)
        return _Results(none, none, np.zeros(0), np.zeros((0, 4)), [])
    images = np.array([row["image_id"] for row in results])
    classes = np.array([row["category_id"] for row in results])
    scores = np.array([row["score"] for row in results])
    boxes, masks = np.zeros((len(results), 4)), []
    if iou_type == "bbox":
        boxes = np.array([row["bbox"] for row in results])
    else:
        masks = [_compressed(row["segmentation"], sizes[row["image_id"]]) for row in results]
    sound = (
        images.dtype.kind == classes.dtype.kind == "i"
        and scores.dtype.kind in "if"
        and boxes.dtype.kind in "if"
        and boxes.shape == (len(results), 4)
        and set(np.unique(images).tolist()) <= sizes.keys()
        and set(np.unique(classes).tolist()) <= categories
        and bool(np.isfinite(scores).all() and np.isfinite(boxes).all() and (boxes[:, 2:] >= 0).all())
    )
    if not sound:
        raise ValueError("not all of them are numbers")
    return _Results(images, classes, scores.astype(np.float64), boxes.astype(np.float64), masks)


def _check_detection(
    row: Mapping[str, Any],
    iou_type: IouType,
    categories: set[int],
    sizes: Mapping[int, tuple[int, int]],
    name: str,
    where: str,
) -> None:
    """Raises BenchError that says what is wrong with a detection."""
    image, category, score = row.get("image_id"), row.get("category_id"), row.get("score")
    name = f"{name} (image {image})"
    if not isinstance(image, int) or image not in sizes:
        raise BenchError(f"{name}: this image is not in the ground truth", where=where)
    if not isinstance(category, int) or category not in categories:
        raise BenchError(
            f"{name}: the ground truth has no category {category}",
            where=where,
            hint="category ids are those of the data set, not labels: COCO's 80 classes have ids 1 to 90",
        )
    if not is_number(score):
        raise BenchError(f"{name}: the score {score} is not a finite number", where=where)
    if iou_type == "bbox" and not is_box(row.get("bbox")):
        raise BenchError(f"{name}: no box [x, y, width, height]: {row.get('bbox')}", where=where)
    if iou_type == "segm":
        try:
            _compressed(row.get("segmentation"), sizes[image])
        except ValueError as error:
            raise BenchError(f"{name}: {error}", where=where) from None


def _check_mask(mask: Any, size: tuple[int, int]) -> None:
    """Raises ValueError unless there is a mask, and, when it is run-length encoded, of the image's size."""
    if not mask or not isinstance(mask, list | dict):
        raise ValueError("no segmentation")
    if isinstance(mask, dict):
        if not {"size", "counts"} <= mask.keys():
            raise ValueError("a run-length encoded mask has size and counts")
        if tuple(mask["size"]) != size:
            raise ValueError(f"mask has size {mask['size']}, its image {list(size)}")


def _compressed(mask: Any, size: tuple[int, int]) -> Json:
    """A detection's mask as compressed run lengths, the only form that evaluators take. Raises ValueError."""
    _check_mask(mask, size)
    if isinstance(mask, dict) and isinstance(mask["counts"], str):
        return mask
    if isinstance(mask, dict) and isinstance(mask["counts"], bytes):
        return {"size": list(size), "counts": mask["counts"].decode()}
    try:
        encoded = coco_mask.frPyObjects(mask, *size)
    except Exception as error:  # pycocotools raises bare Exceptions
        raise ValueError(f"no valid mask: {error}") from None
    whole = coco_mask.merge(encoded) if isinstance(encoded, list) else encoded
    return {"size": list(size), "counts": whole["counts"].decode()}


def _count_outside(found: _Results, sizes: Mapping[int, tuple[int, int]]) -> int:
    """Boxes that do not meet their image."""
    if found.masks or not len(found.images):
        return 0
    height, width = np.array([sizes[image] for image in found.images.tolist()]).T
    x, y, w, h = found.boxes.T
    return int(((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)).sum())


# -- what comes out --------------------------------------------------------------------------------------


def _arrays(
    truth: Json, found: _Results, iou_type: IouType, backend: str, image_ids: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [IoU, recall, class, area, detections] and recall [IoU, class, area, detections]; −1 where
    a class has no object.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        run = _evaluated(truth, found, iou_type, backend, image_ids)
        run.accumulate()
    return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])


def _evaluated(
    truth: Json, found: _Results, iou_type: IouType, backend: str, image_ids: Sequence[int]
) -> Any:
    """An evaluator that has matched detections with objects. Both have pycocotools' interface."""
    try:
        data, evaluator = (importlib.import_module(module) for module in _BACKENDS[backend])
    except ImportError as error:
        others = ", ".join(name for name in _BACKENDS if name != backend)
        raise BenchError(f"cannot import {backend}: {error}", hint=f"use {others}") from None
    with contextlib.redirect_stdout(io.StringIO()):
        coco_truth = _load(data.COCO, truth)
        if len(found.images):
            coco_found = coco_truth.loadRes(found.for_loading())
        else:
            coco_found = _load(data.COCO, {**truth, "annotations": []})
        run = evaluator.COCOeval(coco_truth, coco_found, iou_type)
        run.params.imgIds = list(image_ids)
        run.evaluate()
    return run


def _load(coco_class: Any, content: Json) -> Any:
    coco = coco_class()
    coco.dataset = content
    coco.createIndex()
    return coco


def _metrics(precision: NDArray[np.float64], recall: NDArray[np.float64]) -> dict[str, float | None]:
    """The 12 numbers, as pycocotools' ``summarize`` averages them."""
    values: dict[str, float | None] = {}
    for name, metric in METRICS.items():
        array = precision if metric.kind == "precision" else recall
        array = array[..., metric.area, metric.detections]
        if metric.iou is not None:
            array = array[metric.iou]
        defined = array[array > -1]
        values[name] = float(defined.mean()) if defined.size else None
    return values


# -- the difference of two --------------------------------------------------------------------------------

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, from the highest score to the lowest, and its objects.

    image: int64 [D], the place of each one's image. right, wrong: bool [10, D], at each IoU; neither of a
    detection that is ignored. objects: int64 [images], those of each image that are to be found.
    """

    image: NDArray[np.int64]
    right: NDArray[np.bool_]
    wrong: NDArray[np.bool_]
    objects: NDArray[np.int64]


@dataclass(frozen=True)
class Matches:
    """Which detections are right: all that AP depends on, by image, so that images can be drawn again."""

    image_ids: tuple[int, ...]
    classes: tuple[ClassMatches, ...]


@dataclass(frozen=True)
class Difference:
    """AP of one minus AP of the other, with the interval that holds it in 95 % of the sets of images drawn anew."""

    value: float
    low: float
    high: float
    images: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def match(
    ground_truth: Path | Mapping[str, Any],
    detections: Path | Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    image_ids: Sequence[int] | None = None,
    backend: str = "hotcoco",
) -> Matches:
    """Detections matched with objects of all sizes, at most 100 of an image and class, as `evaluate` counts them."""
    coco, truth, found, chosen = _read(ground_truth, detections, iou_type, image_ids)
    run = _evaluated(truth, found, iou_type, backend, chosen)
    place = {image: number for number, image in enumerate(chosen)}
    widest = (
        max(entry["aRng"][1] - entry["aRng"][0] for entry in run.evalImgs if entry) if run.evalImgs else 0
    )
    entries: dict[int, list[Any]] = {category["id"]: [] for category in coco["categories"]}
    for entry in run.evalImgs:
        if entry and entry["aRng"][1] - entry["aRng"][0] == widest:
            entries[entry["category_id"]].append(entry)
    classes = []
    for of_class in entries.values():
        of_class.sort(key=lambda entry: place[entry["image_id"]])
        objects = np.zeros(len(chosen), np.int64)
        for entry in of_class:
            objects[place[entry["image_id"]]] = int(np.sum(~np.asarray(entry["gtIgnore"], bool)))
        images = [place[entry["image_id"]] for entry in of_class for _ in entry["dtScores"]]
        scores = np.array([score for entry in of_class for score in entry["dtScores"]], np.float64)
        order = np.argsort(-scores, kind="mergesort")  # the reference's order of equal scores

        def column(name: str, of_class: list[Any] = of_class, order: NDArray[Any] = order) -> Any:
            parts = [np.asarray(entry[name], np.float64).reshape(10, -1) != 0 for entry in of_class]
            return np.concatenate(parts, axis=1)[:, order] if parts else np.zeros((10, 0), bool)

        matched, ignored = column("dtMatches"), column("dtIgnore")
        image = np.array(images, np.int64)[order]
        classes.append(ClassMatches(image, matched & ~ignored, ~matched & ~ignored, objects))
    return Matches(chosen, tuple(classes))


def average_precision(matches: Matches, weights: NDArray[np.int64] | None = None) -> float:
    """AP (0.50:0.05:0.95) where image i occurs ``weights[i]`` times, once by default; NaN without any object.

    An image that occurs twice brings its detections and its objects twice. With weights of 1 this is the number of
    `evaluate`.
    """
    weights = np.ones(len(matches.image_ids), np.int64) if weights is None else weights
    values = []
    for one in matches.classes:
        objects = int(one.objects @ weights)
        if objects:
            values.append(_class_precision(one, weights[one.image], objects))
    return float(np.mean(values)) if values else float("nan")


def _class_precision(one: ClassMatches, counts: NDArray[np.int64], objects: int) -> float:
    """Mean over IoUs and 101 recalls of the best precision at that recall or a higher one."""
    right = np.cumsum(one.right * counts, axis=1, dtype=np.float64)
    wrong = np.cumsum(one.wrong * counts, axis=1, dtype=np.float64)
    precision = right / (right + wrong + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)  # recalls that are not reached
    recall = right / objects
    return float(np.mean([row[np.searchsorted(r, RECALLS)] for row, r in zip(padded, recall, strict=True)]))


def paired_difference(a: Matches, b: Matches, *, replicates: int = 1000, seed: int = 0) -> Difference:
    """AP of ``a`` minus AP of ``b`` on the same images, with a 95 % percentile bootstrap interval over images.

    Each replicate draws as many images as there are, with replacement, the same for both, so that what makes an image
    hard for everyone cancels out. Of the classes a replicate has no object of, neither side counts anything. What the
    interval does not hold is how much AP differs from one training to the next. Raises ValueError for other images.
    """
    if a.image_ids != b.image_ids:
        raise ValueError("the two were evaluated on different images")
    count = len(a.image_ids)
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=replicates)
    found = np.array([average_precision(a, draw) - average_precision(b, draw) for draw in draws])
    low, high = np.nanpercentile(found, [2.5, 97.5]) if np.isfinite(found).any() else (np.nan, np.nan)
    return Difference(average_precision(a) - average_precision(b), float(low), float(high), count)
