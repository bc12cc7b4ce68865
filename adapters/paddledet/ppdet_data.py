"""Batches and detections in ppdet's form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import paddle
from ppdet.data.transform.batch_operators import Gt2FCOSTarget, Gt2Solov2Target
from ppdet_models import SSD_MAX_OBJECTS

from bench.worker.api import Batch

Tensor = paddle.Tensor


Sample = dict[str, Any]


# Anything finer than a quarter of a pixel is lost when a mask target is drawn on 28 x 28 cells.
OUTLINE_SUBPIXELS = 4


@dataclass(frozen=True)
class Data:
    """A batch as ppdet's models take it.

    inputs: what the model reads (image, im_shape, scale_factor, ground truth). objects: number in the shared batch.
    samples: ground truth of each image, from which ``load`` computes the targets of SOLOv2 and FCOS; else empty.
    """

    inputs: dict[str, Any]
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    objects: int | None = None
    samples: tuple[Sample, ...] = field(default=())


@dataclass(frozen=True)
class Found:
    """Final detections of one image as tensors: rows (label, score, x1, y1, x2, y2), masks [N, height, width]."""

    rows: Tensor | None
    masks: Tensor | None = None


def target_operator(config: Mapping[str, Any]) -> Callable[[list[Sample]], list[Sample]] | None:
    """The operator of ppdet's readers that makes a model's targets from a batch of samples, if it has one."""
    if config["architecture"] == "SOLOv2":
        return Gt2Solov2Target(**config["bench_targets"])
    if config["architecture"] == "FCOS":
        head = config["FCOSHead"]
        return Gt2FCOSTarget(
            object_sizes_boundary=[64, 128, 256, 512],
            center_sampling_radius=1.5,
            downsample_ratios=head["fpn_stride"],
            norm_reg_targets=head["norm_reg_targets"],
        )
    return None


def ground_truth(batch: Batch, index: int, masks: bool) -> Sample:
    """One image of a batch as ppdet's reader hands it to a batch operator."""
    labels = batch.labels[index].astype(np.int32)[:, None]
    sample = {
        "image": batch.images[index],
        "gt_bbox": batch.boxes[index],
        "gt_class": labels,
        "is_crowd": np.zeros_like(labels),
    }
    return {**sample, "gt_poly": [], "gt_segm": batch.masks[index]} if masks else sample


def common_scale(original: np.ndarray, resized: np.ndarray) -> float:
    """The factor before rounding that took ``original`` (height, width) to ``resized``, which ppdet's own resize
    hands on; one of the two sides fixed it, and the other was rounded."""
    factors = resized / original
    errors = [np.abs(original * factor - resized).max() for factor in factors]
    return float(factors[int(np.argmin(errors))])


def ssd_ground_truth(batch: Batch) -> dict[str, Tensor]:
    """Boxes as fractions of the input, filled up with zeros to a fixed number, as ``NormalizeBox`` and ``PadBox``."""
    height, width = batch.images.shape[2:]
    boxes = np.zeros((batch.size, SSD_MAX_OBJECTS, 4), np.float32)
    labels = np.zeros((batch.size, SSD_MAX_OBJECTS), np.int32)
    for index, (box, label) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
        count = min(len(label), SSD_MAX_OBJECTS)
        boxes[index, :count] = box[:count] / np.array([width, height, width, height], np.float32)
        labels[index, :count] = label[:count]
    return {"gt_bbox": paddle.to_tensor(boxes), "gt_class": paddle.to_tensor(labels)}


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """A mask [H, W] as polygons (x, y, x, y, …) around its pixels, which are what ppdet draws its mask targets from.

    float32, since ppdet shifts an array of float64 in place. Holes are filled, as in COCO's polygons.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    window = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    fine = window.repeat(OUTLINE_SUBPIXELS, 0).repeat(OUTLINE_SUBPIXELS, 1)
    contours, _ = cv2.findContours(np.ascontiguousarray(fine), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 1.0, closed=True).reshape(-1, 2)
        if len(points) >= 3:  # contours go through the centres of the fine pixels
            polygons.append(((points + 0.5) / OUTLINE_SUBPIXELS + [left, top]).astype(np.float32).ravel())
    if not polygons:
        x1, y1, x2, y2 = left, top, columns[-1] + 1, rows[-1] + 1
        polygons.append(np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32))
    return polygons


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """float32 [N, 4] (x1, y1, x2, y2) around masks [N, H, W]; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def by_image(rows: Tensor, counts: Tensor) -> list[Found]:
    ends = np.cumsum(counts.numpy())
    starts = [0, *ends[:-1]]
    return [Found(rows[int(a) : int(b)] if b > a else None) for a, b in zip(starts, ends, strict=True)]


def to_gpu(value: Any) -> Any:
    if isinstance(value, list):
        return [to_gpu(item) for item in value]
    return value.cuda(blocking=False) if isinstance(value, Tensor) else value
