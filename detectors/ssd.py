"""SSD (Liu et al. 2015, arXiv:1512.02325) on VGG-16, for images of 300×300 and 512×512.

SSD300 is torchvision's, torchvision/models/detection/ssd.py. mmdetection's ssd300_coco, mmdet/models/dense_heads/
ssd_head.py, agrees in the network, the matching and the mining. Where they differ, ``conventions`` chooses:

                          torchvision                          mmdetection
    anchors               cut to the size of the image         as large as they are (two of the last level are larger)
    losses divided by     the positive anchors of the batch    the same, an image without any counted as one
    candidates for NMS    the best 400 of each class           the best 1000 of each level
    boxes without area    kept                                 dropped

The first is the default. SSD512 is mmdetection's ssd512_coco; torchvision has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.anchors import level_anchors
from detectors.backbones.vgg import VGG16
from detectors.boxes import BoxCoder, pairwise_iou
from detectors.conventions import MMDET, conventions_named
from detectors.dense import DenseDetector, DenseOutput, by_anchor
from detectors.layers import Conv2d
from detectors.necks.ssd import ExtraLayer, SSDNeck
from detectors.precision import full
from detectors.structures import Detections, GroundTruth


@dataclass(frozen=True)
class Layout:
    """What depends on the size of the images, in pixels of an image of that size.

    ``sizes``: side of the smaller square anchor of each level and, last, what the size of one more level would be.
    ``ratios``: long over short side of the other anchors of a level; each comes wide and tall.
    """

    image_size: int
    sizes: tuple[float, ...]
    strides: tuple[int, ...]
    ratios: tuple[tuple[float, ...], ...]
    extra: tuple[ExtraLayer, ...]


SSD300 = Layout(
    image_size=300,
    sizes=(21, 45, 99, 153, 207, 261, 315),
    strides=(8, 16, 32, 64, 100, 300),
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    extra=(
        ExtraLayer(512, 3, stride=2, padding=1),
        ExtraLayer(256, 3, stride=2, padding=1),
        ExtraLayer(256, 3, stride=1, padding=0),
        ExtraLayer(256, 3, stride=1, padding=0),
    ),
)
SSD512 = Layout(
    image_size=512,
    sizes=(20, 51, 133, 215, 296, 378, 460, 542),
    strides=(8, 16, 32, 64, 128, 256, 512),
    ratios=((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
    extra=(
        ExtraLayer(512, 3, stride=2, padding=1),
        ExtraLayer(256, 3, stride=2, padding=1),
        ExtraLayer(256, 3, stride=2, padding=1),
        ExtraLayer(256, 3, stride=2, padding=1),
        ExtraLayer(256, 4, stride=1, padding=1),
    ),
)


#: How far a convolution's offsets from an anchor are stretched; the inverse of mmdetection's standard deviations.
CODER_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class SSDHead(nn.Module):
    """A 3×3 convolution per level for classes, the last of them the background, and one for offsets from anchors.

    ``clip_anchors``: no anchor is wider or higher than the image. ``count_empty_images``: in the number of positive
    anchors by which losses are divided, an image without any counts as one.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        layout: Layout,
        *,
        clip_anchors: bool = True,
        count_empty_images: bool = False,
        positive_iou: float = 0.5,
        negatives_per_positive: int = 3,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.layout = layout
        self.clip_anchors = clip_anchors
        self.count_empty_images = count_empty_images
        self.positive_iou = positive_iou
        self.negatives_per_positive = negatives_per_positive
        self.coder = BoxCoder(CODER_WEIGHTS)
        self.classes = nn.ModuleList()
        self.deltas = nn.ModuleList()
        for channels, ratios in zip(in_channels, layout.ratios, strict=True):
            anchors = 2 + 2 * len(ratios)
            self.classes.append(Conv2d(channels, anchors * (num_classes + 1), 3, padding=1))
            self.deltas.append(Conv2d(channels, anchors * 4, 3, padding=1))
        for conv in (*self.classes, *self.deltas):
            nn.init.xavier_uniform_(conv.weight)
            nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> DenseOutput:
        """Maps of all levels to classes and offsets of every anchor.

        Args:
            maps: [B, C_i, H_i, W_i], finest first.
            image_size: height and width.

        Returns:
            Logits, of which the last is the background's, and offsets by level, and the anchors.
        """
        logits = [
            by_anchor(conv(feature), self.num_classes + 1)
            for conv, feature in zip(self.classes, maps, strict=True)
        ]
        deltas = [by_anchor(conv(feature), 4) for conv, feature in zip(self.deltas, maps, strict=True)]
        grids = tuple((feature.shape[2], feature.shape[3]) for feature in maps)
        limit = image_size if self.clip_anchors else None
        anchors = ssd_anchors(self.layout, grids, limit, maps[0].device)
        return DenseOutput(logits, deltas, None, list(anchors.split([level.shape[1] for level in deltas])))

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Offsets [..., 4] and anchors [..., 4] to boxes [..., 4]."""
        return self.coder.decode(deltas, anchors)

    def losses(self, output: DenseOutput, truth: GroundTruth) -> dict[str, Tensor]:
        """Cross entropy of positive and of the hardest negative anchors, smooth L1 of the positive ones' offsets.

        In each image the three times as many negatives as positives are counted that have the largest loss. Both terms
        are divided by the positive anchors of the batch.

        Args:
            output: of ``forward``, all but the logits in float32.
            truth: the objects of the batch.

        Returns:
            ``classification`` and ``bbox_regression``, numbers.
        """
        anchors = torch.cat(output.anchors)
        index, positive = assign(pairwise_iou(truth.boxes, anchors), truth.valid, self.positive_iou)
        labels = truth.labels.gather(1, index).where(positive, self.num_classes)
        boxes = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        goal = self.coder.encode(torch.where(positive.unsqueeze(-1), boxes, anchors), anchors)
        loss_deltas = F.smooth_l1_loss(torch.cat(output.deltas, dim=1), goal, reduction="none").sum(-1)
        logits = full(torch.cat(output.logits, dim=1))
        loss_classes = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(
            labels
        )
        counted = positive | hardest(loss_classes.detach(), positive, self.negatives_per_positive)
        positives = positive.sum(dim=1)
        if self.count_empty_images:
            positives = positives.clamp(min=1)
        count = positives.sum().clamp(min=1)
        return {
            "classification": (loss_classes * counted).sum() / count,
            "bbox_regression": (loss_deltas * positive).sum() / count,
        }


@torch.no_grad()
def assign(iou: Tensor, valid: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Assign to every anchor the object that it overlaps most, if by ``threshold``.

    And to every object, whatever their overlap, the first of the anchors that it overlaps most. An anchor that
    several objects ask for goes to the last.

    iou: [B, G, N] of objects with anchors. valid: bool [B, G], False for padding.
    Returns the object's index [B, N] and whether there is one.

    As torchvision's ``SSDMatcher``, and as mmdetection's ``MaxIoUAssigner`` with gt_max_assign_all=False, but for an
    object that no anchor overlaps: there it gets the first anchor of all, here none.
    """
    iou = iou.masked_fill(~valid.unsqueeze(-1), -1.0)
    best_of_anchor, index = iou.max(dim=1)
    best_of_object, anchor = iou.max(dim=2)
    objects = torch.arange(iou.shape[1], device=iou.device).expand_as(anchor)
    asking = torch.where(best_of_object > 0, objects, -1)
    forced = torch.full_like(index, -1).scatter_reduce_(1, anchor, asking, "amax")
    return torch.where(forced >= 0, forced, index), (best_of_anchor >= threshold) | (forced >= 0)


def hardest(loss: Tensor, positive: Tensor, ratio: int) -> Tensor:
    """Whether an anchor [B, N] is one of the negatives of largest loss, ``ratio`` times the positives of its image."""
    order = loss.masked_fill(positive, -torch.inf).argsort(dim=1, descending=True)
    count = (ratio * positive.sum(dim=1, keepdim=True)).minimum((~positive).sum(dim=1, keepdim=True))
    rank = torch.arange(loss.shape[1], device=loss.device).expand_as(order)
    return torch.zeros_like(positive).scatter_(1, order, rank < count)


@lru_cache(maxsize=8)
def ssd_anchors(
    layout: Layout,
    grids: tuple[tuple[int, int], ...],
    limit: tuple[int, int] | None,
    device: torch.device,
) -> Tensor:
    """Anchors of all levels, within a level in order (row, column, shape), each around the middle of its cell.

    Shapes are the square, the larger square, and, wide and tall, each ratio. The result is kept: SSD has one size.

    Args:
        layout: sizes, strides and ratios of the levels.
        grids: height and width of each level's map.
        limit: largest height and width of an anchor, or None. With a limit the order of operations is torchvision's
            (torchvision/models/detection/anchor_utils.py, ``DefaultBoxGenerator``), down to the last bit.
        device: where the anchors are wanted.

    Returns:
        float32 [N, 4], (x1, y1, x2, y2) in pixels.
    """
    of_level = _anchors_of_level if limit is None else partial(_default_boxes, limit=limit)
    return torch.cat([of_level(layout, level, grid) for level, grid in enumerate(grids)]).to(device)


def _shapes(layout: Layout, level: int, unit: float = 1.0) -> Tensor:
    """Width and height of a level's anchors, [A, 2], in ``unit`` pixels."""
    size, next_size = (side / unit for side in layout.sizes[level : level + 2])
    shapes = [(size, size), (math.sqrt(size * next_size),) * 2]
    for ratio in layout.ratios[level]:
        root = math.sqrt(ratio)
        shapes += [(size * root, size / root), (size / root, size * root)]
    return torch.tensor(shapes, dtype=torch.float32)


def _anchors_of_level(layout: Layout, level: int, grid: tuple[int, int]) -> Tensor:
    sides, stride = _shapes(layout, level), layout.strides[level]
    cells = torch.cat([stride / 2 - sides / 2, stride / 2 + sides / 2], dim=1)
    return level_anchors(cells, grid, (stride, stride))


def _default_boxes(layout: Layout, level: int, grid: tuple[int, int], *, limit: tuple[int, int]) -> Tensor:
    """As torchvision: centres and sides as shares of the image, sides at most 1, and pixels last."""
    sides = _shapes(layout, level, layout.image_size).clamp(min=0, max=1)
    y, x = (
        (torch.arange(cells) + 0.5) / (pixels / layout.strides[level])
        for cells, pixels in zip(grid, limit, strict=True)
    )
    shift_y, shift_x = torch.meshgrid(y, x, indexing="ij")
    centres = torch.stack([shift_x, shift_y], dim=-1).view(-1, 1, 2)
    pixels = torch.tensor([limit[1], limit[0]])
    return torch.cat([(centres - 0.5 * sides) * pixels, (centres + 0.5 * sides) * pixels], dim=-1).view(-1, 4)


class SSD(DenseDetector):
    """Images and sizes are given as for ``RCNN``; the images have the size of the head's layout.

    ``candidates``: how many scores of a class, or with ``candidates_per_level`` of a level, go into the suppression of
    duplicates.
    """

    head: SSDHead

    def __init__(self, *parts: nn.Module, candidates_per_level: bool = False, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.candidates_per_level = candidates_per_level

    def output(self, images: Tensor) -> DenseOutput:
        """Raises ValueError for images of another size."""
        size = self.head.layout.image_size
        if images.shape[2:] != (size, size):
            height, width = images.shape[2:]
            raise ValueError(f"this SSD is defined for images of {size}×{size}, not {height}×{width}")
        return super().output(images)

    def candidates_of(self, raw: DenseOutput, image: int) -> Detections:
        """The best scores of each class, or of each level, of an image."""
        scores = full(torch.cat([level[image] for level in raw.logits])).softmax(-1)[:, :-1]
        anchor, labels = (scores > self.score_threshold).nonzero(as_tuple=True)
        scores = scores[anchor, labels]
        group = labels
        if self.candidates_per_level:
            ends = (
                torch.tensor([len(level) for level in raw.anchors])
                .cumsum(0)
                .to(anchor.device, non_blocking=True)
            )
            group = torch.bucketize(anchor, ends, right=True)
        best = best_of_groups(scores, group, self.candidates)
        anchor, labels = anchor[best], labels[best]
        deltas = torch.cat([level[image] for level in raw.deltas])[anchor]
        boxes = self.head.decode(deltas, torch.cat(raw.anchors)[anchor])
        return Detections(boxes, scores[best], labels)


def best_of_groups(scores: Tensor, group: Tensor, limit: int) -> Tensor:
    """Indices of the ``limit`` largest scores [N] of each group [N], one group after the other."""
    order = scores.argsort(descending=True)
    order = order[group[order].argsort(stable=True)]
    sorted_group = group[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(sorted_group, sorted_group)
    return order[rank < limit]


def ssd_vgg16(
    *,
    layout: Layout,
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,  # noqa: ARG001 - VGG has no normalisation
    score_threshold: float = 0.01,
    max_detections: int = 200,
    conventions: str = "torchvision",
) -> SSD:
    """SSD on VGG-16 with the settings of torchvision's ``ssd300_vgg16`` or of mmdetection's configs.

    Arguments and errors are those of ``registry.build``. ``layout``: anchors and extra layers, by the size of the
    images. ``frozen_bn``: of no effect: VGG has no normalisation. There is no ``conventions`` of "paddledet".
    """
    mmdet = conventions_named(conventions, no_paddledet=True) is MMDET
    backbone = VGG16(frozen_stages=frozen_stages)
    neck = SSDNeck(backbone.out_channels, layout.extra)
    head = SSDHead(neck.out_channels, num_classes, layout, clip_anchors=not mmdet, count_empty_images=mmdet)
    return SSD(
        backbone,
        neck,
        head,
        score_threshold=score_threshold,
        nms_threshold=0.45,
        max_detections=max_detections,
        candidates=1000 if mmdet else 400,
        candidates_per_level=mmdet,
        keep_empty=not mmdet,
    )
