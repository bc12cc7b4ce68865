"""From the outputs of a graph to detections in pixels of its input: one decoder for each family of exports.

A decoder takes the outputs of one batch, float arrays by name, and gives per image boxes [N, 4] (x1, y1, x2, y2),
scores [N] and classes [N], all of one class per box, unsorted. Duplicates are suppressed afterwards where the family
needs that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

Outputs = Mapping[str, np.ndarray]
#: Boxes [N, 4], scores [N], classes [N].
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Settings:
    """What decoders want to know: height and width of the input, and the lowest score of a detection."""

    size: tuple[int, int]
    threshold: float


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def grid(size: tuple[int, int], strides: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Cells (x, y) [N, 2] of all levels, row by row, and their strides [N, 1]."""
    cells, steps = [], []
    for stride in strides:
        rows, columns = -(-size[0] // stride), -(-size[1] // stride)
        ys, xs = np.mgrid[:rows, :columns]
        cells.append(np.stack([xs.ravel(), ys.ravel()], axis=1))
        steps.append(np.full((rows * columns, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(steps).astype(np.float32)


def above(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> Found:
    """Every class of every box whose score is above the threshold. boxes: [N, 4]; scores: [N, K]."""
    rows, classes = np.nonzero(scores > threshold)
    return boxes[rows], scores[rows, classes], classes


# -- families ------------------------------------------------------------------------------------------------


def yolox(outputs: Outputs, settings: Settings) -> list[Found]:
    """[B, N, 5 + K]: centre in cells, logarithm of the size in strides, objectness and classes as probabilities."""
    cells, steps = grid(settings.size, (8, 16, 32))
    found = []
    for rows in next(iter(outputs.values())):
        centres = (rows[:, :2] + cells) * steps
        halves = np.exp(rows[:, 2:4]) * steps / 2
        boxes = np.concatenate([centres - halves, centres + halves], axis=1)
        found.append(above(boxes, rows[:, 4:5] * rows[:, 5:], settings.threshold))
    return found


def nanodet(outputs: Outputs, settings: Settings) -> list[Found]:
    """[B, N, K + 4 (R + 1)]: classes as probabilities, then distances to the four sides as distributions over 0..R."""
    rows_of = next(iter(outputs.values()))
    strides = (8, 16, 32, 64) if _cells(settings.size, (8, 16, 32, 64)) == rows_of.shape[1] else (8, 16, 32)
    cells, steps = grid(settings.size, strides)
    bins = 8  # R + 1 of the published models
    classes = rows_of.shape[2] - 4 * bins
    found = []
    for rows in rows_of:
        logits = rows[:, classes:].reshape(-1, 4, bins)
        weights = np.exp(logits - logits.max(axis=2, keepdims=True))
        distances = (weights / weights.sum(axis=2, keepdims=True)) @ np.arange(bins) * steps
        centres = cells * steps
        boxes = np.concatenate([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)
        found.append(above(boxes.astype(np.float32), rows[:, :classes], settings.threshold))
    return found


def _cells(size: tuple[int, int], strides: Sequence[int]) -> int:
    return sum(-(-size[0] // stride) * -(-size[1] // stride) for stride in strides)


def detr(outputs: Outputs, settings: Settings) -> list[Found]:
    """`logits` [B, Q, K + 1] with a last class for nothing, and `pred_boxes` [B, Q, 4] (centre and size, relative)."""
    logits = outputs["logits"]
    weights = np.exp(logits - logits.max(axis=2, keepdims=True))
    scores = weights / weights.sum(axis=2, keepdims=True)
    return [
        (boxes, one[:, :-1].max(axis=1), one[:, :-1].argmax(axis=1))
        for boxes, one in zip(_corners(outputs["pred_boxes"], settings.size), scores)
    ]


def rtdetr(outputs: Outputs, settings: Settings) -> list[Found]:
    """As `detr`, but each class is scored by itself and there is none for nothing (RT-DETR, D-FINE, Deformable DETR).
    As many pairs of query and class are kept as there are queries."""
    found = []
    for boxes, logits in zip(_corners(outputs["pred_boxes"], settings.size), outputs["logits"]):
        best = np.argsort(-logits, axis=None, kind="stable")[: len(logits)]
        rows, classes = np.unravel_index(best, logits.shape)
        found.append((boxes[rows], sigmoid(logits[rows, classes]), classes))
    return found


def _corners(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    scale = np.array([size[1], size[0]], np.float32)
    centres, halves = boxes[..., :2] * scale, boxes[..., 2:] * scale / 2
    return np.concatenate([centres - halves, centres + halves], axis=-1)


def boxes(outputs: Outputs, settings: Settings) -> list[Found]:  # noqa: ARG001
    """Final detections of one image: `boxes` [N, 4], `scores` [N] and `labels` [N], as `bench export-model` and
    torchvision's own exports have them. They are told apart by shape and type where the names are others."""
    values = list(outputs.values())
    corners = next(value for value in values if value.ndim == 2 and value.shape[1] == 4)
    flat = [value for value in values if value.ndim == 1]
    scores = next(value for value in flat if value.dtype.kind == "f")
    labels = next(value for value in flat if value.dtype.kind in "iu")
    return [(corners, scores, labels)]


@dataclass(frozen=True)
class Family:
    """How the exports of a family are fed and read.

    ``input``: see `pixels.PREPARATIONS`. ``suppressed``: overlap above which a box of the same class is a duplicate;
    None: the graph, or the method, leaves none. ``offset``: what the family adds to the label of a class.
    """

    decode: Callable[[Outputs, Settings], list[Found]]
    input: str
    suppressed: float | None = None
    offset: int = 0


FAMILIES = {
    "yolox": Family(yolox, "bgr", 0.65),
    "nanodet": Family(nanodet, "bgr-normalised", 0.6),
    "detr": Family(detr, "imagenet"),
    "rtdetr": Family(rtdetr, "unit"),
    "torchvision": Family(boxes, "unit", offset=1),
    "bench": Family(boxes, "imagenet"),
}


def suppress(found: Found, threshold: float | None, limit: int) -> Found:
    """The best ``limit`` detections, best first, without those that overlap a better one of their class."""
    corners, scores, classes = found
    if threshold is None or not len(scores):
        order = np.argsort(-scores, kind="stable")
    else:
        rectangles = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        order = np.asarray(
            cv2.dnn.NMSBoxesBatched(
                rectangles.astype(np.float64).tolist(), scores.tolist(), classes.tolist(), 0.0, threshold
            ),
            np.int64,
        ).reshape(-1)
    order = order[:limit]
    return corners[order], scores[order], classes[order]


def family_of(outputs: Mapping[str, Sequence[int | None]], classes: int) -> str | None:
    """The family whose outputs have these names and shapes; None where it has to be told."""
    names, shapes = set(outputs), list(outputs.values())
    if {"logits", "pred_boxes"} <= names:
        return "detr" if list(outputs["logits"])[-1] in (classes + 1, 92) else "rtdetr"
    if len(shapes) == 1 and len(shapes[0]) == 3:
        width = shapes[0][2]
        return {5 + classes: "yolox", 4 * 8 + classes: "nanodet"}.get(width or 0)
    if {"boxes", "scores", "labels"} <= names:
        return "torchvision"
    return None
