"""SOLOv2 by loops over objects and cells."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors import Target
from detectors.solov2 import GridHead, MaskFeatures, SOLOv2
from detectors.solov2_targets import Level

CLASSES = 3


LEVELS = (
    Level(8, (1, 24), 4),
    Level(6, (12, 48), 4),
    Level(5, (24, 96), 8),
    Level(4, (48, 192), 8),
    Level(2, (96, 512), 8),
)


class Shrink(nn.Module):
    """Stands for backbone and pyramid: five maps of strides 4 to 64 from a convolution of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 5, stride=4, padding=2)

    def forward(self, images: Tensor) -> list[Tensor]:
        finest = F.relu(self.conv(images))
        return [finest, *(F.avg_pool2d(finest, 2**level) for level in range(1, 5))]


def small_model(**settings: float) -> SOLOv2:
    torch.manual_seed(0)
    head = GridHead(32, 32, CLASSES, 32, convs=1, grids=[level.cells for level in LEVELS])
    return SOLOv2(Shrink(), nn.Identity(), MaskFeatures(32, 32, 32), head, LEVELS, **settings)


def cells_in_a_loop(target: Target, level: Level) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Labels [S, S] and the pairs (cell, object), object by object and cell by cell."""
    one = np.float32
    height, width = target.masks.shape[1:]
    labels = np.full((level.cells, level.cells), CLASSES)
    pairs = []
    objects = (value.numpy() for value in (target.boxes, target.labels, target.masks))
    for number, (box, label, mask) in enumerate(zip(*objects, strict=True)):
        x1, y1, x2, y2 = box
        if not level.sizes[0] <= np.sqrt((x2 - x1) * (y2 - y1)) <= level.sizes[1] or not mask.any():
            continue
        rows, columns = mask.nonzero()
        spans = []
        for positions, extent, reach in (
            (rows, height, one(0.5) * (y2 - y1) * one(0.2)),
            (columns, width, one(0.5) * (x2 - x1) * one(0.2)),
        ):
            centre = one(positions.sum()) / one(len(positions))

            def cell(position: np.float32, extent: int = extent) -> int:
                return int(one(position / one(extent)) / one(1 / level.cells))

            low = max(0, cell(centre - reach), cell(centre) - 1)
            high = min(level.cells - 1, cell(centre + reach), cell(centre) + 1)
            spans.append(range(low, high + 1))
        for row in spans[0]:
            for column in spans[1]:
                labels[row, column] = label
                pairs.append((row * level.cells + column, number))
    return labels, pairs


def matrix_nms_in_a_loop(
    masks: np.ndarray, labels: np.ndarray, scores: np.ndarray, kernel: str
) -> list[float]:
    """Equations 3 to 5 of the paper."""

    def iou(i: int, j: int) -> float:
        return (
            float((masks[i] & masks[j]).sum() / (masks[i] | masks[j]).sum())
            if labels[i] == labels[j]
            else 0.0
        )

    def f(value: float) -> float:
        return math.exp(-2.0 * value**2) if kernel == "gaussian" else 1 - value

    decayed = []
    for j in range(len(masks)):
        decay = 1.0
        for i in range(j):
            own = min((f(iou(k, i)) for k in range(i)), default=1.0)
            decay = min(decay, f(iou(i, j)) / own if own else math.inf)
        decayed.append(float(scores[j]) * decay)
    return decayed
