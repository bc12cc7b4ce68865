"""FCOS (Tian et al. 2020, arXiv:2006.09214).

By default it is torchvision's, torchvision/models/detection/fcos.py; with mmdetection's ``conventions`` that of its
fcos_r50-caffe_fpn_gn-head_1x_coco (mmdet/models/dense_heads/fcos_head.py), which is the paper's first edition. They
differ in:

                          torchvision                          mmdetection
    points                at the first pixel of each stride    in the middle of each stride
    distances             ReLU, in strides                     exponential, in pixels, with a factor per level
    centre-ness           from the tower of boxes              from the tower of classes
    towers                with biases                          without
    a point learns        an object whose centre is near       any object that it lies in
    box loss              GIoU, averaged over points           -log IoU, weighted by the centre-ness
    candidates for NMS    chosen by the score times centre-    chosen by the score, which is then multiplied by it
                          ness, square root
    boxes without area    kept                                 dropped
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.anchors import level_anchors, pyramid_anchors
from detectors.boxes import area
from detectors.conventions import MMDET, conventions_named
from detectors.cpu import conv2d
from detectors.dense import DenseDetector, DenseOutput, by_anchor, focal_loss, init_head
from detectors.layers import Conv2d
from detectors.necks.p6p7 import P3P7
from detectors.structures import GroundTruth

#: One square per position, as large as the level's stride: its centre is FCOS's point, its side the unit of distance.
SCALES = ((8,), (16,), (32,), (64,), (128,))
RATIOS = (1.0,)


class TowerLayer(nn.Module):
    """3×3 convolution, group normalisation, ReLU."""

    def __init__(self, channels: int, groups: int = 32, *, bias: bool = True) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1, bias=bias)
        self.norm = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return F.relu_(self.norm(self.conv(x)))


class FCOSHead(nn.Module):
    """Two towers of four 3×3 convolutions, for classes and for distances to the four sides, and centre-ness beside one.

    ``first_edition``: what the module's table lists for mmdetection, else for torchvision. ``centre_radius``: how far
    from an object's centre, in strides, a point may be to learn that object.
    """

    def __init__(
        self, channels: int, num_classes: int, *, first_edition: bool = False, centre_radius: float = 1.5
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first_edition = first_edition
        self.centre_radius = math.inf if first_edition else centre_radius
        bias = not first_edition
        self.class_tower = nn.Sequential(*(TowerLayer(channels, bias=bias) for _ in range(4)))
        self.box_tower = nn.Sequential(*(TowerLayer(channels, bias=bias) for _ in range(4)))
        self.classes = Conv2d(channels, num_classes, 3, padding=1)
        self.deltas = Conv2d(channels, 4, 3, padding=1)
        self.centreness = Conv2d(channels, 1, 3, padding=1)
        self.scales = nn.Parameter(torch.ones(len(SCALES))) if first_edition else None
        towers = (layer.conv for layer in (*self.class_tower, *self.box_tower))
        init_head((*towers, self.deltas, self.centreness), self.classes)

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> DenseOutput:
        # Centre-ness shares a convolution with its neighbour: kernels want more than one output channel.
        """Maps of all levels to classes, distances and centre-ness at every position.

        Args:
            maps: [B, C, H_i, W_i], finest first.
            image_size: height and width with padding.

        Returns:
            Logits, distances and centre-ness by level, and the square that each position stands for.
        """
        beside = self.classes if self.first_edition else self.deltas
        weight = torch.cat([beside.weight, self.centreness.weight])
        bias = torch.cat([beside.bias, self.centreness.bias])
        settings = (beside.stride, beside.padding, beside.dilation, beside.groups)
        logits, deltas, quality = [], [], []
        for level, feature in enumerate(maps):
            by_class, by_box = self.class_tower(feature), self.box_tower(feature)
            if self.scales is not None:
                out = by_anchor(conv2d(by_class, weight, bias, *settings), self.num_classes + 1)
                logits.append(out[..., :-1])
                deltas.append(torch.exp(by_anchor(self.deltas(by_box), 4) * self.scales[level]))
            else:
                out = by_anchor(conv2d(by_box, weight, bias, *settings), 5)
                logits.append(by_anchor(self.classes(by_class), self.num_classes))
                deltas.append(F.relu(out[..., :-1]))
            quality.append(out[..., -1])
        grids = tuple((feature.shape[2], feature.shape[3]) for feature in maps)
        anchors = (
            centred_squares(grids, maps[0].device)
            if self.first_edition
            else pyramid_anchors(SCALES, RATIOS, grids, image_size, maps[0].device)
        )
        return DenseOutput(logits, deltas, quality, list(anchors.split([level.shape[1] for level in deltas])))

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """deltas: distances to the left, top, right and bottom, in pixels or, not ``first_edition``, anchor's sides."""
        centre, side = _points(anchors)
        distances = deltas if self.first_edition else deltas * side.unsqueeze(-1)
        return torch.cat([centre - distances[..., :2], centre + distances[..., 2:]], dim=-1)

    def losses(self, output: DenseOutput, truth: GroundTruth) -> dict[str, Tensor]:
        """Focal loss of the classes at all points; box loss and centre-ness at the positive ones.

        Args:
            output: of ``forward``, all but the logits in float32.
            truth: the objects of the batch.

        Returns:
            ``classification``, ``bbox_regression`` and ``bbox_ctrness``, numbers.
        """
        anchors = torch.cat(output.anchors)
        index, positive = assign(
            output.anchors, truth, self.centre_radius, inclusive=self.first_edition, exact=self.first_edition
        )
        labels = truth.labels.gather(1, index).where(positive, self.num_classes)
        goal = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        count = positive.sum().clamp(min=1)
        centre = torch.where(positive, centreness(_points(anchors)[0], goal), 0.0)
        boxes = self.decode(torch.cat(output.deltas, dim=1), anchors)
        if self.first_edition:
            # Where there is no object the prediction stands for it: its loss is 0 and finite, with any weights.
            losses = -iou(boxes, torch.where(positive.unsqueeze(-1), goal, boxes.detach())).log()
            loss_boxes = (losses * centre).sum() / centre.sum().clamp(min=1e-6)
        else:
            loss_boxes = (giou_loss(boxes, goal) * positive).sum() / count
        loss_centreness = F.binary_cross_entropy_with_logits(
            torch.cat(output.quality, dim=1), centre, positive.to(goal.dtype), reduction="sum"
        )
        return {
            "classification": focal_loss(output.logits, labels, (1 / count).expand(labels.shape)),
            "bbox_regression": loss_boxes,
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


def centred_squares(grids: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Per position the square of the pixels that it stands for, [N, 4]; order as of ``pyramid_anchors``."""
    levels = []
    for grid, (side,) in zip(grids, SCALES, strict=True):
        square = torch.tensor([[0.0, 0.0, side, side]]).to(device, non_blocking=True)
        levels.append(level_anchors(square, grid, (side, side)))
    return torch.cat(levels)


@torch.no_grad()
def assign(
    anchors: Sequence[Tensor],
    truth: GroundTruth,
    radius: float,
    *,
    inclusive: bool = False,
    exact: bool = False,
) -> tuple[Tensor, Tensor]:
    """Assign to every point the smallest object that it may learn.

    A point may learn an object that it lies inside of, near the centre of, and whose furthest side is 4 to 8 strides
    away; less on the first level and more on the last are fine. ``inclusive``: so are just 4 and just 8. ``exact``:
    areas are compared as they are, else as torchvision does it, for which in float32 areas closer than 8 px² are equal.
    Of equal ones the first object wins.

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
    within = (
        (furthest >= lower) & (furthest <= upper) if inclusive else (furthest > lower) & (furthest < upper)
    )
    allowed = (nearest > 0) & within & (from_centre < radius * side) & truth.valid.unsqueeze(-1)
    cost = area(truth.boxes) if exact else area(truth.boxes) - 1e8
    least, index = torch.where(allowed, cost.unsqueeze(-1), math.inf).min(dim=1)
    return index, least < math.inf


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


def iou(a: Tensor, b: Tensor, eps: float = 1e-6) -> Tensor:
    """Intersection over union of boxes [..., 4] with as many others, at least ``eps``, to [...].

    As in mmdetection's ``iou_loss``.
    """
    ax1, ay1, ax2, ay2 = a.unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    width = (torch.min(ax2, bx2) - torch.max(ax1, bx1)).clamp(min=0)
    height = (torch.min(ay2, by2) - torch.max(ay1, by1)).clamp(min=0)
    intersection = width * height
    union = area(a) + area(b) - intersection
    return (intersection / union.clamp(min=eps)).clamp(min=eps)


def fcos_fpn(
    *,
    backbone: Callable[..., nn.Module],
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.2,
    max_detections: int = 100,
    conventions: str = "torchvision",
) -> DenseDetector:
    """FCOS as torchvision's ``fcos_resnet50_fpn`` or mmdetection's, whose ``score_threshold`` is 0.05.

    Arguments and errors are those of ``registry.build``. There is no ``conventions`` of "paddledet".
    """
    mmdet = conventions_named(conventions, no_paddledet=True) is MMDET
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    neck = P3P7(body.out_channels[1:])
    return DenseDetector(
        body,
        neck,
        FCOSHead(neck.out_channels, num_classes, first_edition=mmdet),
        score_threshold=score_threshold,
        nms_threshold=0.5 if mmdet else 0.6,
        max_detections=max_detections,
        ranked_by_quality=not mmdet,
        keep_empty=not mmdet,
    )
