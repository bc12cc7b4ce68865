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
* **Ids** are numbered again, since evaluators keep them as floating-point numbers: those above 2^53 fall
  together there, and an annotation with the id 0 is never matched. 42.0 is 42.
* **Errors:** a score, box or area that is no finite number or too large for any image; a box of negative size;
  an id of an image or a category that the ground truth does not have (pycocotools: an assertion, and silently
  nothing); an id that occurs twice in the ground truth; no box where boxes, no mask where masks are evaluated;
  a mask of another size than its image (pycocotools: silently no match); run lengths that do not add up to the
  image, corners far outside of it (both evaluators: wrong numbers or a crash); LVIS.
* **Boxes outside** the image are evaluated as they are, not clipped; those wholly outside are counted.
* **Detections that occur twice** are two detections: the second is a false positive.
* **Crowds** are neither found nor missed; detections inside of one are ignored, as in the reference.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError, did_you_mean
from bench.inputs.coco import read_coco
from bench.judge.results import IouType, Json, Sound, read_results, read_sound

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
#: Of keypoints: areas all, medium, large; at most 20 people of an image.
KEYPOINT_METRICS = {
    "AP": _Metric("precision", None, 0, 0),
    "AP50": _Metric("precision", 0, 0, 0),
    "AP75": _Metric("precision", 5, 0, 0),
    "APm": _Metric("precision", None, 1, 0),
    "APl": _Metric("precision", None, 2, 0),
    "AR": _Metric("recall", None, 0, 0),
    "AR50": _Metric("recall", 0, 0, 0),
    "AR75": _Metric("recall", 5, 0, 0),
    "ARm": _Metric("recall", None, 1, 0),
    "ARl": _Metric("recall", None, 2, 0),
}
#: TIDE's kinds of errors, in its words: another class, a bad place, both, found twice, nothing there, missed.
ERRORS = {
    "Cls": "wrong class",
    "Loc": "wrong place",
    "Both": "wrong class and place",
    "Dupe": "found twice",
    "Bkg": "background",
    "Miss": "missed",
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
class Errors:
    """What keeps AP at IoU 0.5 from 1, as TIDE (Bolya et al., ECCV 2020) sorts it.

    count: how many errors there are of a kind. cost: how much AP50 would rise without them, of each kind alone.
    """

    ap50: float
    count: dict[str, int]
    cost: dict[str, float]


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
    errors: Errors | None = None
    """Where they were asked for; not of keypoints."""

    def as_json(self) -> Json:
        """The evaluation as one JSON object."""
        return asdict(self)


def evaluate(
    ground_truth: Path | Mapping[str, Any],
    detections: Path | Sequence[Mapping[str, Any]],
    iou_type: IouType,
    *,
    backend: str = "hotcoco",
    image_ids: Sequence[int] | None = None,
    errors: bool = False,
) -> Evaluation:
    """COCO numbers of detections against ground truth.

    Args:
        ground_truth: COCO instances, a file or its content.
        detections: COCO results, a file or its content: ``image_id, category_id, score`` and ``bbox`` [x, y, w, h],
            ``segmentation`` or ``keypoints``.
        iou_type: What is compared.
        backend: hotcoco or pycocotools.
        image_ids: Evaluate only these.
        errors: Sort the errors, too, with hotcoco.

    Raises:
        BenchError: As the module says.
    """
    if backend not in _BACKENDS:
        raise BenchError(f"unknown evaluator '{backend}'", hint=did_you_mean(backend, _BACKENDS))
    sound = read_sound(ground_truth, detections, iou_type, image_ids)
    precision, recall = _arrays(sound, iou_type, backend)
    found, evaluated = sound.found, set(sound.chosen_numbers)
    objects = [row for row in sound.truth["annotations"] if row["image_id"] in evaluated]
    inside = np.isin(found.images, sound.chosen_numbers)
    objects_of = Counter(row["category_id"] for row in objects if not row["iscrowd"])
    detections_of = Counter(found.categories[inside].tolist())
    return Evaluation(
        iou_type=iou_type,
        backend=backend,
        metrics=_metrics(precision, recall, iou_type),
        classes=tuple(
            ClassAccuracy(
                id=category["id"],
                name=str(category.get("name", category["id"])),
                objects=objects_of[number],
                detections=detections_of[number],
                metrics=_metrics(
                    precision[:, :, number - 1 : number], recall[:, number - 1 : number], iou_type
                ),
            )
            for number, category in enumerate(sound.categories, start=1)
        ),
        image_ids=sound.chosen,
        images_without_objects=len(evaluated - {row["image_id"] for row in objects}),
        objects=objects_of.total(),
        crowds=sum(row["iscrowd"] for row in objects),
        detections=int(inside.sum()),
        detections_left_out=int((~inside).sum()),
        boxes_outside=_count_outside(sound) if iou_type == "bbox" else 0,
        errors=_errors(sound, iou_type) if errors and iou_type != "keypoints" else None,
    )


def evaluate_file(truth: Path, results: Path, *, masks: bool | None) -> dict[IouType, Evaluation]:
    """Numbers of the boxes, and with ``masks`` of the masks as well, over all images of the ground truth.

    Args:
        truth: Annotations.
        results: Detections.
        masks: None: where the first detections have masks; of a codebase's own model it is not known before.
    """
    if masks is None:
        with results.open("rb") as file:
            masks = b'"segmentation"' in file.read(1 << 20)
    coco, found = read_coco(truth, files=False), read_results(results)
    kinds: tuple[IouType, ...] = ("bbox", "segm") if masks else ("bbox",)
    return {kind: evaluate(coco, found, kind) for kind in kinds}


def _count_outside(sound: Sound) -> int:
    """Boxes that do not meet their image, where its size is known."""
    sizes = {
        sound.numbers[image["id"]]: image for image in sound.coco["images"] if image.get("height") is not None
    }
    known = np.isin(sound.found.images, list(sizes))
    if not known.any():
        return 0
    images = [sizes[number] for number in sound.found.images[known].tolist()]
    height, width = np.array([(image["height"], image["width"]) for image in images]).T
    x, y, w, h = sound.found.boxes[known].T
    return int(((x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)).sum())


# -- what comes out --------------------------------------------------------------------------------------


def _arrays(sound: Sound, iou_type: IouType, backend: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Precision [IoU, recall, class, area, detections] and recall [IoU, class, area, detections].

    Both are −1 where a class has no object.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        run = evaluated(sound, iou_type, backend)
        run.accumulate()
    return np.asarray(run.eval["precision"]), np.asarray(run.eval["recall"])


def evaluated(sound: Sound, iou_type: IouType, backend: str) -> Any:
    """An evaluator that has matched detections with objects. Both have pycocotools' interface."""
    try:
        data, evaluator = (importlib.import_module(module) for module in _BACKENDS[backend])
    except ImportError as error:
        others = ", ".join(name for name in _BACKENDS if name != backend)
        raise BenchError(f"cannot import {backend}: {error}", hint=f"use {others}") from None
    with contextlib.redirect_stdout(io.StringIO()):
        coco_truth = _load(data.COCO, sound.truth)
        if len(sound.found.images):
            coco_found = coco_truth.loadRes(sound.found.for_loading(iou_type))
        else:
            coco_found = _load(data.COCO, {**sound.truth, "annotations": []})
        run = evaluator.COCOeval(coco_truth, coco_found, iou_type)
        run.params.imgIds = sound.chosen_numbers
        run.evaluate()
    return run


def _errors(sound: Sound, iou_type: IouType) -> Errors:
    found = evaluated(sound, iou_type, "hotcoco").tide_errors()
    return Errors(
        ap50=float(found["ap_base"]),
        count={name: int(found["counts"][name]) for name in ERRORS},
        cost={name: float(found["delta_ap"][name]) for name in ERRORS},
    )


def _load(coco_class: Any, content: Json) -> Any:
    coco = coco_class()
    coco.dataset = content
    coco.createIndex()
    return coco


def _metrics(
    precision: NDArray[np.float64], recall: NDArray[np.float64], iou_type: IouType
) -> dict[str, float | None]:
    """The numbers, as pycocotools' ``summarize`` averages them."""
    values: dict[str, float | None] = {}
    for name, metric in (KEYPOINT_METRICS if iou_type == "keypoints" else METRICS).items():
        array = precision if metric.kind == "precision" else recall
        array = array[..., metric.area, metric.detections]
        if metric.iou is not None:
            array = array[metric.iou]
        defined = array[array > -1]
        values[name] = float(defined.mean()) if defined.size else None
    return values
