"""Mask Scoring R-CNN (Huang et al. 2019, arXiv:1903.00241): a mask's score tells how good the mask is, too."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.box_head import RoISample
from detectors.layers import Linear
from detectors.mask_head import MaskHead, mask_loss, mask_targets, regions_of
from detectors.precision import full
from detectors.pyramid import Pyramid
from detectors.sampling import positions
from detectors.structures import Detections, Target


class MaskScoringHead(MaskHead):
    """A mask head that also says how much its mask overlaps the object's.

    The second part sees the region's features and the mask, and has four 3×3 convolutions, the last of stride 2, and
    three linear layers (section 3.3; mmdet/models/roi_heads/mask_heads/maskiou_head.py).
    """

    def __init__(self, channels: int, num_classes: int, *, fc: int = 1024, **settings: int) -> None:
        """``settings``: of ``MaskHead``. ``fc``: width of the linear layers."""
        super().__init__(channels, num_classes, **settings)
        hidden = self.upsample.out_channels
        widths = [channels + 1, hidden, hidden, hidden, hidden]
        self.iou_convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2 if place == 3 else 1, padding=1)
            for place, (before, after) in enumerate(pairwise(widths))
        )
        side = (self.pool_size + 1) // 2
        self.iou_fcs = nn.ModuleList([Linear(hidden * side**2, fc), Linear(fc, fc)])
        self.iou = Linear(fc, num_classes)
        for conv in self.iou_convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        for layer in self.iou_fcs:
            nn.init.kaiming_uniform_(layer.weight, a=1)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.iou.weight, std=0.01)
        nn.init.zeros_(self.iou.bias)

    def iou_of(self, pooled: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """Pooled features [R, C, 14, 14] and mask logits [R, 28, 28] to expected overlaps [R] of classes [R]."""
        mask = F.max_pool2d(logits.sigmoid().unsqueeze(1), 2)
        x = torch.cat([pooled, mask.to(pooled.dtype)], dim=1)
        for conv in self.iou_convs:
            x = F.relu_(conv(x))
        x = x.flatten(1)
        for layer in self.iou_fcs:
            x = F.relu_(layer(x))
        return self.iou(x).gather(1, labels.unsqueeze(1)).squeeze(1)

    def losses(self, pyramid: Pyramid, sample: RoISample, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Those of the mask head, and half the squared error of the overlap where there is any.

        Args:
            pyramid: maps of the images.
            sample: the regions to learn from.
            targets: the objects of each image, with masks.

        Returns:
            ``loss_mask`` and ``loss_mask_iou``, numbers in float32.
        """
        (positive,) = positions(sample.positive(self.num_classes))
        boxes, image, labels = sample.boxes[positive], sample.image[positive], sample.labels[positive]
        pooled = self.pool(pyramid, boxes, image)
        logits = full(self.logits_of(self.convolve(pooled), labels))
        expected = full(self.iou_of(pooled, logits, labels))
        objects = sample.object[positive]
        goal = mask_targets(targets, boxes, image, objects, logits.shape[-1], binary=self.binary_targets)
        true = mask_iou(logits > 0, goal > 0.5, boxes, object_areas(targets, image, objects))
        error = (expected - true).square() * (true > 0)
        return {
            "loss_mask": mask_loss(logits, goal),
            "loss_mask_iou": 0.5 * error.sum() / (true > 0).sum().clamp(min=1),
        }

    def predict(self, pyramid: Pyramid, found: Sequence[Detections]) -> list[Detections]:
        """The detections with mask probabilities [N, 28, 28] and with scores times the expected overlap, best first."""
        boxes, image, labels = regions_of(found)
        pooled = self.pool(pyramid, boxes, image)
        logits = full(self.logits_of(self.convolve(pooled), labels))
        factors = full(self.iou_of(pooled, logits, labels)).clamp(0, 1)
        counts = [len(detections.boxes) for detections in found]
        scored = []
        for detections, masks, factor in zip(
            found, logits.sigmoid().split(counts), factors.split(counts), strict=True
        ):
            scores, order = (detections.scores * factor).sort(descending=True)
            scored.append(Detections(detections.boxes[order], scores, detections.labels[order], masks[order]))
        return scored


@torch.no_grad()
def object_areas(targets: Sequence[Target], image: Tensor, objects: Tensor) -> Tensor:
    """Pixels [R] of the masks of objects [R] of images [R]."""
    areas = [target.masks.flatten(1).sum(dim=1) for target in targets if target.masks is not None]
    counts = torch.tensor([0, *(len(target.boxes) for target in targets[:-1])])
    first = counts.cumsum(0).to(image.device, non_blocking=True)
    return torch.cat(areas)[first[image] + objects]


@torch.no_grad()
def mask_iou(masks: Tensor, goal: Tensor, boxes: Tensor, areas: Tensor) -> Tensor:
    """Overlap of masks within boxes with their objects (section 3.2): what lies outside of the box is missed, too.

    Args:
        masks: bool [R, M, M] within ``boxes``.
        goal: bool [R, M, M], the part of the object within the box.
        boxes: [R, 4] in input pixels.
        areas: [R], all pixels of the objects.

    Returns:
        [R], 0 to 1.
    """
    cells = masks.shape[1] * masks.shape[2]
    pixels = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).clamp(min=1) / cells
    shared = (masks & goal).sum(dim=(1, 2))
    return shared / (masks.sum(dim=(1, 2)) + areas / pixels - shared).clamp(min=1)
