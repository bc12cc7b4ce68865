"""RetinaNet (Lin et al. 2017, arXiv:1708.02002)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.anchors import pyramid_anchors
from detectors.boxes import NEGATIVE, POSITIVE, BoxCoder, match, pairwise_iou
from detectors.dense import DenseDetector, DenseOutput, by_anchor, focal_loss, init_head
from detectors.necks.p6p7 import P3P7
from detectors.structures import GroundTruth

#: Three scales per octave. Whole numbers, as torchvision rounds them.
SCALES = tuple((size, int(size * 2 ** (1 / 3)), int(size * 2 ** (2 / 3))) for size in (32, 64, 128, 256, 512))
RATIOS = (0.5, 1.0, 2.0)


class RetinaNetHead(nn.Module):
    """Two towers of four 3×3 convolutions, for classes and for offsets from nine anchors per position.

    Settings and results as torchvision's ``RetinaNetHead`` and ``Matcher``.
    """

    def __init__(
        self, channels: int, num_classes: int, *, positive_iou: float = 0.5, negative_iou: float = 0.4
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.coder = BoxCoder()
        anchors = len(RATIOS) * len(SCALES[0])
        self.class_tower = _tower(channels)
        self.box_tower = _tower(channels)
        self.classes = nn.Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(channels, anchors * 4, 3, padding=1)
        init_head((*self.class_tower, *self.box_tower, self.deltas), self.classes)

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> DenseOutput:
        logits = [
            by_anchor(self.classes(_run(self.class_tower, feature)), self.num_classes) for feature in maps
        ]
        deltas = [by_anchor(self.deltas(_run(self.box_tower, feature)), 4) for feature in maps]
        grids = tuple((feature.shape[2], feature.shape[3]) for feature in maps)
        anchors = pyramid_anchors(SCALES, RATIOS, grids, image_size, maps[0].device)
        return DenseOutput(logits, deltas, None, list(anchors.split([level.shape[1] for level in deltas])))

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        return self.coder.decode(deltas, anchors)

    def losses(self, output: DenseOutput, truth: GroundTruth) -> dict[str, Tensor]:
        """Focal loss of the classes of all anchors but the ignored, L1 of the positive ones' offsets.

        Both are divided by the image's number of positive anchors, then averaged over images.
        """
        anchors = torch.cat(output.anchors)
        index, role = match(
            pairwise_iou(truth.boxes, anchors),
            truth.valid,
            positive=self.positive_iou,
            negative=self.negative_iou,
            low_quality=True,
        )
        positive = role == POSITIVE
        labels = truth.labels.gather(1, index).where(positive, self.num_classes)
        boxes = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        goal = self.coder.encode(torch.where(positive.unsqueeze(-1), boxes, anchors), anchors)
        loss_deltas = F.l1_loss(torch.cat(output.deltas, dim=1), goal, reduction="none").sum(-1)
        per_image = 1 / (positive.sum(dim=1, keepdim=True).clamp(min=1) * len(role))
        counted = (positive | (role == NEGATIVE)) * per_image
        return {
            "classification": focal_loss(output.logits, labels, counted),
            "bbox_regression": (loss_deltas * positive * per_image).sum(),
        }


def _tower(channels: int, depth: int = 4) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth))


def _run(tower: nn.ModuleList, x: Tensor) -> Tensor:
    for conv in tower:
        x = F.relu_(conv(x))
    return x


def retinanet_fpn(
    *,
    backbone: Callable[..., nn.Module],
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.05,
    max_detections: int = 300,
) -> DenseDetector:
    """RetinaNet on ResNet-FPN with the settings of torchvision's ``retinanet_resnet50_fpn``."""
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    neck = P3P7(body.out_channels[1:])
    return DenseDetector(
        body,
        neck,
        RetinaNetHead(neck.out_channels, num_classes),
        score_threshold=score_threshold,
        nms_threshold=0.5,
        max_detections=max_detections,
    )
