"""Hybrid Task Cascade (Chen et al. 2019, arXiv:1901.07518), with and without its semantic branch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.box_head import BoxHead
from detectors.cascade import (
    IOUS,
    CascadeRCNN,
    cascade_box_heads,
    cascade_conventions,
)
from detectors.layers import Conv2d
from detectors.mask_head import MaskHead, regions_of, with_masks
from detectors.necks.fpn import FPN
from detectors.precision import full
from detectors.pyramid import Pyramid, roi_align
from detectors.rcnn import Builder, box_settings, pool_settings, rpn_settings
from detectors.rpn import RPN, Proposals
from detectors.structures import Detections, GroundTruth, Target

#: Semantic label of pixels that do not count.
IGNORED_LABEL = 255
#: The semantic labels are read at every eighth pixel, the stride of the fused map.
SEMANTIC_STRIDE = 8
#: Regions of the fused map are pooled to this size, and averaged for a head that wants fewer.
SEMANTIC_POOL_SIZE = 14


class HTCMaskHead(MaskHead):
    """A mask head that adds to its input what the convolutions of the one before gave, after a 1×1 of its own.

    As mmdet/models/roi_heads/mask_heads/htc_mask_head.py.
    """

    def __init__(self, channels: int, num_classes: int, *, first: bool = False, **settings: Any) -> None:
        super().__init__(channels, num_classes, **settings)
        self.flow = None if first else nn.Conv2d(channels, channels, 1)
        if self.flow is not None:
            nn.init.kaiming_normal_(self.flow.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(self.flow.bias)

    def convolve(self, x: Tensor, before: Tensor | None = None) -> Tensor:
        """Features [R, C, S, S] and what the head before made of them to the same shape."""
        if self.flow is not None and before is not None:
            x = x + F.relu_(self.flow(before))
        return super().convolve(x)


class SemanticHead(nn.Module):
    """Classes of pixels, and features for the other heads, from all levels of the pyramid.

    The levels are added up on that of stride 8 and go through four 3×3 convolutions. As
    mmdet/models/roi_heads/mask_heads/fused_semantic_head.py.
    """

    def __init__(
        self, channels: int, num_classes: int, *, levels: int = 5, fused: int = 1, loss_weight: float = 0.2
    ) -> None:
        super().__init__()
        self.fused = fused
        self.loss_weight = loss_weight
        self.lateral = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(levels))
        self.convs = nn.ModuleList(Conv2d(channels, channels, 3, padding=1) for _ in range(4))
        self.embedding = nn.Conv2d(channels, channels, 1)
        self.classes = nn.Conv2d(channels, num_classes, 1)
        for layer in (*self.lateral, *self.convs, self.embedding, self.classes):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps of the pyramid to class logits [B, K, H / 8, W / 8] and features [B, C, H / 8, W / 8]."""
        size = maps[self.fused].shape[-2:]
        total = F.relu_(self.lateral[self.fused](maps[self.fused]))
        for level, (feature, lateral) in enumerate(zip(maps, self.lateral, strict=True)):
            if level != self.fused:
                resized = F.interpolate(feature, size=size, mode="bilinear", align_corners=True)
                total = total + F.relu_(lateral(resized))
        for conv in self.convs:
            total = F.relu_(conv(total))
        return self.classes(total), F.relu_(self.embedding(total))

    def losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross-entropy, the mean over all pixels. labels: int64 [B, H, W] of the whole image."""
        coarse = labels[:, ::SEMANTIC_STRIDE, ::SEMANTIC_STRIDE]
        loss = F.cross_entropy(full(logits), coarse, ignore_index=IGNORED_LABEL, reduction="sum")
        return {"loss_semantic_seg": self.loss_weight * loss / coarse.numel()}


class FusedPyramid(Pyramid):
    """A pyramid with what the semantic head, if there is one, made of it: its features as a map, and its logits."""

    def __init__(self, maps: Sequence[Tensor], semantic: tuple[Tensor, Tensor] | None) -> None:
        super().__init__(maps)
        self.semantic_logits, features = (None, None) if semantic is None else semantic
        self.semantic = None if features is None else Pyramid([features])


class HTC(CascadeRCNN):
    """Cascade Mask R-CNN whose mask heads see the boxes of their own stage, and the features of the one before.

    With a semantic head, its features are added to those of all regions. Masks are those of the last head. Settings and
    results as mmdet/models/roi_heads/htc_roi_head.py.
    """

    mask_heads: Sequence[HTCMaskHead]
    masks_of_refined = True

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: RPN,
        box_heads: Sequence[BoxHead],
        mask_heads: Sequence[HTCMaskHead],
        semantic_head: SemanticHead | None = None,
        *,
        grid_paste: bool = False,
    ) -> None:
        super().__init__(backbone, neck, rpn, box_heads, mask_heads, grid_paste=grid_paste)
        self.semantic_head = semantic_head

    def features(self, images: Tensor) -> FusedPyramid:
        """The pyramid of images [B, 3, H, W], with what the semantic head made of it."""
        maps = super().features(images).maps
        return FusedPyramid(maps, None if self.semantic_head is None else self.semantic_head(maps))

    def pool(self, pyramid: Pyramid, head: BoxHead | MaskHead, boxes: Tensor, image: Tensor) -> Tensor:
        """Features [R, C, S, S] of regions [R, 4], those of the semantic head added."""
        pooled = head.pool(pyramid, boxes, image)
        assert isinstance(pyramid, FusedPyramid)
        if pyramid.semantic is None:
            return pooled
        added = roi_align(
            pyramid.semantic,
            boxes,
            image,
            size=SEMANTIC_POOL_SIZE,
            levels=1,
            stride=SEMANTIC_STRIDE,
            samples=head.samples,
            aligned=head.aligned,
        )
        if head.pool_size != SEMANTIC_POOL_SIZE:
            added = F.adaptive_avg_pool2d(added, head.pool_size)
        return pooled + added

    def stage_losses(
        self,
        pyramid: Pyramid,
        regions: Proposals,
        truth: GroundTruth,
        image_sizes: Tensor,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Loss terms of all stages and of the semantic head.

        Raises:
            ValueError: for targets without classes of pixels, which a semantic head learns from.
        """
        assert isinstance(pyramid, FusedPyramid)
        losses = {}
        if self.semantic_head is not None and pyramid.semantic_logits is not None:
            labels = [target.semantic for target in targets if target.semantic is not None]
            if len(labels) < len(targets):
                raise ValueError(
                    "this HTC learns classes of pixels; give Target.semantic, or take htc_without_semantic"
                )
            losses.update(self.semantic_head.losses(pyramid.semantic_logits, torch.stack(labels)))
        losses.update(super().stage_losses(pyramid, regions, truth, image_sizes, targets))
        return losses

    def predict_masks(self, pyramid: Pyramid, found: Sequence[Detections]) -> list[Detections]:
        """The detections with the last head's mask probabilities [N, 28, 28]."""
        boxes, image, labels = regions_of(found)
        last = self.mask_heads[-1]
        hidden = self.convolve(self.pool(pyramid, last, boxes, image), len(self.mask_heads) - 1)
        return with_masks(found, full(last.logits_of(hidden, labels)).sigmoid())

    def convolve(self, pooled: Tensor, stage: int) -> Tensor:
        """As of a cascade, but each head sees what the one before it made of the features."""
        hidden = None
        for head in self.mask_heads[: stage + 1]:
            hidden = head.convolve(pooled, hidden)
        assert hidden is not None
        return hidden


# -- models --------------------------------------------------------------------------------------------------


def htc_fpn(
    *,
    backbone: Builder,
    neck: Builder = FPN,
    semantic_classes: int = 0,
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.001,
    max_detections: int = 100,
    conventions: str = "mmdet",
) -> HTC:
    """HTC as mmdetection's ``htc_r50_fpn_1x_coco``, or its ``htc-without-semantic_r50_fpn_1x_coco``.

    Arguments and errors are those of ``registry.build``. ``semantic_classes``: of pixels, things and stuff; 0 for no
    semantic head.
    """
    chosen = cascade_conventions(conventions)
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    pyramid = neck(body.out_channels)
    channels = pyramid.out_channels
    settings = {"binary_targets": chosen.binary_masks, **pool_settings(chosen)}
    return HTC(
        body,
        pyramid,
        RPN(channels, inside_only=True, **rpn_settings(chosen)),
        cascade_box_heads(
            channels,
            num_classes,
            forced=chosen.forced_to_object,
            **box_settings(chosen, score_threshold, max_detections),
        ),
        [HTCMaskHead(channels, num_classes, first=stage == 0, **settings) for stage in range(len(IOUS))],
        SemanticHead(channels, semantic_classes) if semantic_classes else None,
        grid_paste=chosen.grid_paste,
    )
