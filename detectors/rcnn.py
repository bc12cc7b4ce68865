"""Faster and Mask R-CNN: a backbone with a pyramid, proposals, and heads on regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from detectors.box_head import BoxHead
from detectors.mask_head import MaskHead
from detectors.masks import paste_masks
from detectors.necks.fpn import FPN
from detectors.pyramid import Pyramid
from detectors.rpn import RPN
from detectors.structures import Detections, GroundTruth, Target


class RCNN(nn.Module):
    """Faster R-CNN, or with a mask head Mask R-CNN.

    All methods take images [B, 3, H, W], normalised and padded right and bottom, and image_sizes int64 [B, 2], the
    (height, width) of each without padding.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: RPN,
        box_head: BoxHead,
        mask_head: MaskHead | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.box_head = box_head
        self.mask_head = mask_head

    def features(self, images: Tensor) -> Pyramid:
        return Pyramid(self.neck(self.backbone(images)))

    def losses(self, images: Tensor, image_sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Loss terms; their sum is what to minimise."""
        image_size = (images.shape[2], images.shape[3])
        truth = GroundTruth.from_targets(targets, images.device)
        pyramid = self.features(images)
        losses = self.rpn.losses(pyramid, truth, image_size)
        proposals = self.rpn.propose(pyramid, image_sizes, image_size)
        sample = self.box_head.sample(proposals, truth)
        losses.update(self.box_head.losses(pyramid, sample))
        if self.mask_head is not None:
            losses.update(self.mask_head.losses(pyramid, sample, targets))
        return losses

    def network(self, images: Tensor, image_sizes: Tensor) -> list[Detections]:
        """Detections of each image in input pixels, masks as probabilities [N, 28, 28] within their boxes.

        Suppression of duplicates belongs here: the mask head works on what is left after it.
        """
        pyramid = self.features(images)
        proposals = self.rpn.propose(pyramid, image_sizes, (images.shape[2], images.shape[3]))
        found = self.box_head.detect(pyramid, proposals, image_sizes)
        return found if self.mask_head is None else self.mask_head.predict(pyramid, found)

    def postprocess(
        self,
        raw: Sequence[Detections],
        image_sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections in pixels of the original images; sizes are (height, width)."""
        return [
            to_original(detections, image_size, original_size)
            for detections, image_size, original_size in zip(raw, image_sizes, original_sizes, strict=True)
        ]


def to_original(
    detections: Detections, image_size: tuple[int, int], original_size: tuple[int, int]
) -> Detections:
    """Scale boxes from the resized to the original image and paste masks there."""
    # float32 ratios, as torchvision's ``resize_boxes``: a pixel of a pasted mask may hang on the last bit.
    ratios = torch.tensor(original_size, dtype=torch.float32) / torch.tensor(image_size, dtype=torch.float32)
    boxes = detections.boxes * ratios.flip(0).repeat(2).to(detections.boxes.device)
    if detections.masks is None:
        return detections._replace(boxes=boxes)
    return detections._replace(boxes=boxes, masks=paste_masks(detections.masks, boxes, original_size))


def rcnn_fpn(
    *,
    backbone: Callable[..., nn.Module],
    masks: bool,
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.05,
    max_detections: int = 100,
) -> RCNN:
    """Faster or Mask R-CNN on ResNet-FPN with the settings of torchvision's ``fasterrcnn_resnet50_fpn``."""
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    neck = FPN(body.out_channels)
    channels = neck.out_channels
    box_head = BoxHead(channels, num_classes, score_threshold=score_threshold, max_detections=max_detections)
    mask_head = MaskHead(channels, num_classes) if masks else None
    return RCNN(body, neck, RPN(channels), box_head, mask_head)
