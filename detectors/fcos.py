"""FCOS (Tian et al. 2020, arXiv:2006.09214)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.anchors import pyramid_anchors
from detectors.boxes import area
from detectors.dense import DenseDetector, DenseOutput, by_anchor, focal_loss, init_head
from detectors.necks.p6p7 import P3P7
from detectors.structures import GroundTruth

#: One square per position, as large as the level's stride: its centre is FCOS's point, its side the unit of distance.
SCALES = ((8,), (16,), (32,), (64,), (128,))
RATIOS = (1.0,)


class TowerLayer(nn.Module):
    """3×3 convolution, group normalisation, ReLU."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class FCOSHead(nn.Module):
    """Two towers of four 3×3 convolutions, one for classes, one for distances to the four sides and centre-ness.

    Settings and results as torchvision's ``FCOSHead`` and ``FCOS.compute_loss``.
    """

    def __init__(self, channels: int, num_classes: int, *, centre_radius: float = 1.5) -> None:
        """centre_radius: how far from an object's centre, in strides, a point may be to learn that object."""
        super().__init__()
        self.num_classes = num_classes
        self.centre_radius = centre_radius
        self.class_tower = nn.Sequential(*(TowerLayer(channels) for _ in range(4)))
        self.box_tower = nn.Sequential(*(TowerLayer(channels) for _ in range(4)))
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(channels, 4, 3, padding=1)
        self.centreness = nn.Conv2d(channels, 1, 3, padding=1)
        towers = (layer.conv for layer in (*self.class_tower, *self.box_tower))
        init_head((*towers, self.deltas, self.centreness), self.classes)

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> DenseOutput:
        # One convolution for both: kernels want more output channels than four and one.
        weight = torch.cat([self.deltas.weight, self.centreness.weight])
        bias = torch.cat([self.deltas.bias, self.centreness.bias])
        logits, deltas, quality = [], [], []
        for feature in maps:
            logits.append(by_anchor(self.classes(self.class_tower(feature)), self.num_classes))
            out = by_anchor(F.conv2d(self.box_tower(feature), weight, bias, padding=1), 5)
            deltas.append(F.relu(out[..., :4]))
            quality.append(out[..., 4])
        grids = tuple((feature.shape[2], feature.shape[3]) for feature in maps)
        anchors = pyramid_anchors(SCALES, RATIOS, grids, image_size, maps[0].device)
        return DenseOutput(logits, deltas, quality, list(anchors.split([level.shape[1] for level in deltas])))

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """deltas: distances to the left, top, right and bottom side in units of the anchor's side."""
        centre, side = _points(anchors)
        distances = deltas * side.unsqueeze(-1)
        return torch.cat([centre - distances[..., :2], centre + distances[..., 2:]], dim=-1)

    def losses(self, output: DenseOutput, truth: GroundTruth) -> dict[str, Tensor]:
        """Focal loss of the classes at all points; GIoU and centre-ness at the positive ones. Each per positive point
        of the batch."""
        anchors = torch.cat(output.anchors)
        index, positive = assign(output.anchors, truth, self.centre_radius)
        labels = truth.labels.gather(1, index).where(positive, self.num_classes)
        goal = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        count = positive.sum().clamp(min=1)
        loss_boxes = giou_loss(self.decode(torch.cat(output.deltas, dim=1), anchors), goal)
        loss_centreness = F.binary_cross_entropy_with_logits(
            torch.cat(output.quality, dim=1),
            torch.where(positive, centreness(_points(anchors)[0], goal), 0.0),
            positive.to(goal.dtype),
            reduction="sum",
        )
        return {
            "classification": focal_loss(output.logits, labels, (1 / count).expand(labels.shape)),
            "bbox_regression": (loss_boxes * positive).sum() / count,
            "bbox_ctrness": loss_centreness / count,
        }


class Points(NamedTuple):
    """centre: [N, 2] (x, y). side: [N]."""

    centre: Tensor
    side: Tensor


def _points(anchors: Tensor) -> Points:
    return Points((anchors[..., :2] + anchors[..., 2:]) / 2, anchors[..., 2] - anchors[..., 0])


def distances(points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From points [..., 2] to the left, top, right and bottom of boxes [..., 4]; negative outside."""
    x, y = points.unbind(-1)
    x1, y1, x2, y2 = boxes.unbind(-1)
    return x - x1, y - y1, x2 - x, y2 - y


@torch.no_grad()
def assign(anchors: Sequence[Tensor], truth: GroundTruth, radius: float) -> tuple[Tensor, Tensor]:
    """Assign to every point the smallest object that it may learn.

    A point may learn an object that it lies inside of, near the centre of, and whose furthest side is 4 to 8 strides
    away; less on the first level and more on the last are fine.

    anchors: by level, [A_i, 4]. Returns the object's index [B, sum of A_i] and whether there is one.
    """
    centre, side = _points(torch.cat(list(anchors)))
    lower, upper = 4 * side, 8 * side
    lower[: len(anchors[0])] = 0
    upper[len(upper) - len(anchors[-1]) :] = math.inf
    boxes = truth.boxes.unsqueeze(2)
    left, top, right, bottom = distances(centre, boxes)
    nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    furthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    from_centre = (centre - (boxes[..., :2] + boxes[..., 2:]) / 2).abs().amax(dim=-1)
    allowed = (
        (nearest > 0)
        & (furthest > lower)
        & (furthest < upper)
        & (from_centre < radius * side)
        & truth.valid.unsqueeze(-1)
    )
    # In float32 areas closer than 8 px² tie, and the first object wins: this is torchvision's expression.
    smallness, index = (allowed * (1e8 - area(truth.boxes)).unsqueeze(-1)).max(dim=1)
    return index, smallness >= 1e-5


def centreness(points: Tensor, boxes: Tensor) -> Tensor:
    """1 at the centre of a box, 0 at its sides (equation 3). points: [N, 2], boxes: [..., N, 4]; NaN outside."""
    left, top, right, bottom = distances(points, boxes)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return torch.sqrt(horizontal * vertical)


def giou_loss(a: Tensor, b: Tensor, eps: float = 1e-7) -> Tensor:
    """1 - generalised IoU of boxes [..., 4] (Rezatofighi et al. 2019, arXiv:1902.09630) to [...].

    As torchvision's ``generalized_box_iou_loss``, whose gradient at boxes that only touch is zero as well.
    """
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    width = torch.min(ax2, bx2) - torch.max(ax1, bx1)
    height = torch.min(ay2, by2) - torch.max(ay1, by1)
    intersection = torch.where((width > 0) & (height > 0), width * height, 0.0)
    union = area(a) + area(b) - intersection
    hull = (torch.max(ax2, bx2) - torch.min(ax1, bx1)) * (torch.max(ay2, by2) - torch.min(ay1, by1))
    return 1 - intersection / (union + eps) + (hull - union) / (hull + eps)


def fcos_fpn(
    *,
    backbone: Callable[..., nn.Module],
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.2,
    max_detections: int = 100,
) -> DenseDetector:
    """FCOS on ResNet-FPN with the settings of torchvision's ``fcos_resnet50_fpn``."""
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    neck = P3P7(body.out_channels[1:])
    return DenseDetector(
        body,
        neck,
        FCOSHead(neck.out_channels, num_classes),
        score_threshold=score_threshold,
        nms_threshold=0.6,
        max_detections=max_detections,
    )
