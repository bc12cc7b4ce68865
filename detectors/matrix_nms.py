"""Suppression without boxes: of neighbouring grid cells, and of overlapping masks (SOLOv2, arXiv:2003.10152)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.cpu import linear
from detectors.precision import full, full_precision


def keep_local_peaks(scores: Tensor) -> Tensor:
    """Scores [B, K, S, S] with 0 wherever the cell above, to the left, or above to the left has a higher one.

    A cell has to be the largest of the 2×2 cells that end at it (points NMS).
    """
    highest = F.max_pool2d(scores, kernel_size=2, stride=1, padding=1)[:, :, :-1, :-1]
    return scores * (highest == scores)


def matrix_nms(
    masks: Tensor, labels: Tensor, scores: Tensor, *, kernel: str = "gaussian", sigma: float = 2.0
) -> Tensor:
    """Scores [N] lowered by how much better masks of the same class cover each: Matrix NMS, section 3.4.

    masks: [N, P] of zeros and ones, float, P pixels; labels: [N]; scores: [N], best first. ``kernel``: "gaussian",
    f(iou) = exp(-sigma iou²), or "linear", f(iou) = 1 - iou. A mask j is multiplied by the smallest of
    f(iou_ij) / f(largest iou of i with a better one) over the better masks i: who is itself a duplicate suppresses
    little. Values as mmdet/models/layers/matrix_nms.py, but for a third equal mask and the linear kernel: 0, not NaN.
    """
    if kernel not in ("gaussian", "linear"):
        raise ValueError(f"unknown kernel {kernel!r}; there are gaussian and linear")
    if len(scores) == 0:
        return scores
    with full_precision(masks.device):
        masks = full(masks)
        intersection = linear(masks, masks, None)
    area = intersection.diagonal()
    union = (area[:, None] + area - intersection).clamp(min=1)
    # Row i, column j: only pairs of one class in which i is the better one.
    iou = (intersection / union * (labels[:, None] == labels)).triu(diagonal=1)
    of_better = iou.amax(dim=0)[:, None]
    if kernel == "gaussian":
        decay = torch.exp(sigma * (of_better**2 - iou**2))
    else:
        decay = (1 - iou) / (1 - of_better).clamp(min=1e-6)
    return scores * decay.amin(dim=0)
