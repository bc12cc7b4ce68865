"""Values that pass between the parts of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Target(NamedTuple):
    """The objects of one image, in pixels of the network's input.

    boxes: float32 [N, 4] (x1, y1, x2, y2). labels: int64 [N] in 0..K-1. masks: [N, H, W] of zeros and ones, any
    dtype, or None when the model has no masks. semantic: int64 [H, W] of classes of pixels, things and stuff, with
    padding, 255 for those that do not count; or None when the model has no semantic branch. pairs: int64 [2, P], cells
    of SOLOv2 and the object that each learns, where a loader found them (``SOLOv2.prepare``).
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None
    semantic: Tensor | None = None
    pairs: Tensor | None = None


class Detections(NamedTuple):
    """What was found in one image, best score first.

    boxes: float32 [N, 4]. scores: float32 [N]. labels: int64 [N] in 0..K-1. masks: None, or, from ``network``,
    probabilities [N, M, M] within the box and, from ``postprocess``, bool [N, H, W] of the original image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor | None = None


class GroundTruth(NamedTuple):
    """The targets of a batch padded to the largest number of objects G (at least 1), so that one operation serves all.

    boxes: [B, G, 4], zeros where padded. labels: [B, G]. valid: bool [B, G].
    """

    boxes: Tensor
    labels: Tensor
    valid: Tensor

    @classmethod
    def from_targets(cls, targets: Sequence[Target], device: torch.device) -> GroundTruth:
        """The objects of a batch, padded."""
        size = max([1, *(len(target.boxes) for target in targets)])
        boxes = torch.zeros((len(targets), size, 4), dtype=targets[0].boxes.dtype, device=device)
        labels = torch.zeros((len(targets), size), dtype=torch.int64, device=device)
        counts = torch.tensor([len(target.boxes) for target in targets]).to(device, non_blocking=True)
        for image, target in enumerate(targets):
            boxes[image, : len(target.boxes)] = target.boxes
            labels[image, : len(target.labels)] = target.labels
        return cls(boxes, labels, torch.arange(size, device=device) < counts[:, None])
