"""RetinaNet (Lin et al. 2017, arXiv:1708.02002).

By default it is torchvision's, torchvision/models/detection/retinanet.py; with mmdetection's ``conventions`` that of
its retinanet_r50_fpn_1x_coco, mmdet/models/dense_heads/retina_head.py. They differ in:

                          torchvision                          mmdetection
    P6                    made from P5                         made from C5, and P7 from P6 without a ReLU
    anchors               of whole sizes, rounded corners      exact, and as far apart as the level's nominal stride
    an object's best      go to the object that they           go to this object
    anchors               overlap most themselves
    losses divided by     the positive anchors of the image,   the positive anchors of the batch, an image without any
                          averaged over images                 counted as one
    boxes without area    kept                                 dropped

PaddleDetection's retinanet_r50_fpn_2x_coco is mmdetection's but for P6 and the objects of best anchors, which are as
torchvision's; biases of the towers that learn twice as fast; and boxes that may leave the image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.anchors import pyramid_anchors
from detectors.boxes import NEGATIVE, POSITIVE, BoxCoder, match_boxes
from detectors.conventions import MMDET, PADDLEDET, TORCHVISION, conventions_named
from detectors.dense import DenseDetector, DenseOutput, by_anchor, focal_loss, init_head
from detectors.layers import Conv2d
from detectors.necks.p6p7 import P3P7
from detectors.parameter_rules import PADDLE_TOWERS
from detectors.structures import GroundTruth

STRIDES = (8, 16, 32, 64, 128)
#: Sides of the square anchors of each level: from four strides on, three in an octave.
EXACT_SCALES = tuple(tuple(4 * stride * 2 ** (third / 3) for third in range(3)) for stride in STRIDES)
#: Whole numbers, as torchvision rounds them.
SCALES = tuple(tuple(int(scale) for scale in level) for level in EXACT_SCALES)
RATIOS = (0.5, 1.0, 2.0)


class RetinaNetHead(nn.Module):
    """Two towers of four 3×3 convolutions, for classes and for offsets from nine anchors per position.

    ``rounded_anchors``, ``nominal_strides`` and ``forced_to_object`` as in ``Conventions``. ``average_over_images``:
    each image's losses are divided by its own positive anchors, else all by those of the batch.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        rounded_anchors: bool = True,
        nominal_strides: bool = False,
        forced_to_object: bool = False,
        average_over_images: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.rounded_anchors = rounded_anchors
        self.nominal_strides = nominal_strides
        self.forced_to_object = forced_to_object
        self.average_over_images = average_over_images
        self.positive_iou = positive_iou
        self.negative_iou = negative_iou
        self.coder = BoxCoder()
        anchors = len(RATIOS) * len(SCALES[0])
        self.class_tower = _tower(channels)
        self.box_tower = _tower(channels)
        self.classes = Conv2d(channels, anchors * num_classes, 3, padding=1)
        self.deltas = Conv2d(channels, anchors * 4, 3, padding=1)
        init_head((*self.class_tower, *self.box_tower, self.deltas), self.classes)

    def forward(self, maps: Sequence[Tensor], image_size: tuple[int, int]) -> DenseOutput:
        """Maps of all levels to classes and offsets of every anchor.

        Args:
            maps: [B, C, H_i, W_i], finest first.
            image_size: height and width with padding.

        Returns:
            Logits and offsets by level, and the anchors.
        """
        logits = [
            by_anchor(self.classes(_run(self.class_tower, feature)), self.num_classes) for feature in maps
        ]
        deltas = [by_anchor(self.deltas(_run(self.box_tower, feature)), 4) for feature in maps]
        grids = tuple((feature.shape[2], feature.shape[3]) for feature in maps)
        anchors = pyramid_anchors(
            SCALES if self.rounded_anchors else EXACT_SCALES,
            RATIOS,
            grids,
            image_size,
            maps[0].device,
            rounded=self.rounded_anchors,
            strides=STRIDES if self.nominal_strides else None,
        )
        return DenseOutput(logits, deltas, None, list(anchors.split([level.shape[1] for level in deltas])))

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Offsets [..., 4] and anchors [..., 4] to boxes [..., 4]."""
        return self.coder.decode(deltas, anchors)

    def losses(self, output: DenseOutput, truth: GroundTruth) -> dict[str, Tensor]:
        """Focal loss of the classes of all anchors but the ignored, L1 of the positive ones' offsets.

        Args:
            output: of ``forward``, all but the logits in float32.
            truth: the objects of the batch.

        Returns:
            ``classification`` and ``bbox_regression``, numbers.
        """
        anchors = torch.cat(output.anchors)
        index, role = match_boxes(
            truth,
            anchors,
            positive=self.positive_iou,
            negative=self.negative_iou,
            low_quality=True,
            forced_to_object=self.forced_to_object,
        )
        positive = role == POSITIVE
        labels = truth.labels.gather(1, index).where(positive, self.num_classes)
        boxes = truth.boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        goal = self.coder.encode(torch.where(positive.unsqueeze(-1), boxes, anchors), anchors)
        loss_deltas = F.l1_loss(torch.cat(output.deltas, dim=1), goal, reduction="none").sum(-1)
        count = positive.sum(dim=1, keepdim=True).clamp(min=1)
        divisor = count * len(count) if self.average_over_images else count.sum()
        counted = (positive | (role == NEGATIVE)) / divisor
        return {
            "classification": focal_loss(output.logits, labels, counted),
            "bbox_regression": (loss_deltas * positive / divisor).sum(),
        }


def _tower(channels: int, depth: int = 4) -> nn.ModuleList:
    return nn.ModuleList(Conv2d(channels, channels, 3, padding=1) for _ in range(depth))


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
    conventions: str = "torchvision",
) -> DenseDetector:
    """RetinaNet as torchvision's ``retinanet_resnet50_fpn`` or mmdetection's, whose ``max_detections`` is 100.

    Arguments and errors are those of ``registry.build``.
    """
    rules = conventions_named(conventions)
    paddledet, mmdet = rules is PADDLEDET, rules is not TORCHVISION
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    neck = P3P7(body.out_channels[1:], p6_from_c5=rules is MMDET)
    head = RetinaNetHead(
        neck.out_channels,
        num_classes,
        rounded_anchors=rules.rounded_anchors,
        nominal_strides=rules.nominal_strides,
        forced_to_object=rules.forced_to_object,
        average_over_images=not mmdet,
    )
    return DenseDetector(
        body,
        neck,
        head,
        score_threshold=score_threshold,
        nms_threshold=0.5,
        max_detections=max_detections,
        keep_empty=not mmdet,
        clip_boxes=not paddledet,
        parameter_rules=PADDLE_TOWERS if paddledet else (),
    )
