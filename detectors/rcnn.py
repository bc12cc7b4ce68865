"""Fast, Faster and Mask R-CNN and the region proposal network alone: a backbone, proposals, and heads on regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detectors.box_head import BoxHead
from detectors.conventions import Conventions, conventions_named
from detectors.mask_head import MaskHead
from detectors.masks import paste_masks, paste_masks_on_grid
from detectors.necks.fpn import FPN
from detectors.pyramid import Pyramid
from detectors.rpn import RPN, Proposals
from detectors.structures import Detections, GroundTruth, Target


class RegionDetector(nn.Module):
    """What detectors with a region proposal network share.

    All methods take images [B, 3, H, W], normalised and padded right and bottom, and image_sizes int64 [B, 2], the
    (height, width) of each without padding. ``neck``: None where the regions are pooled from the backbone's last map.
    ``rpn``: None if proposals are given, [P_i, 4] of each image in input pixels, best first.
    """

    def __init__(
        self, backbone: nn.Module, neck: nn.Module | None, rpn: RPN | None, *, grid_paste: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.rpn = rpn
        self.paste = paste_masks_on_grid if grid_paste else paste_masks

    def features(self, images: Tensor) -> Pyramid:
        """The pyramid of images [B, 3, H, W]."""
        maps = self.backbone(images)
        return Pyramid(maps[-1:] if self.neck is None else self.neck(maps))

    def propose(
        self, pyramid: Pyramid, images: Tensor, image_sizes: Tensor, given: Sequence[Tensor] | None = None
    ) -> Proposals:
        """Raises ValueError when proposals are neither given nor made."""
        if given is not None:
            return Proposals.from_boxes(given)
        if self.rpn is None:
            raise ValueError("this model makes no proposals; pass the boxes of each image as `proposals`")
        return self.rpn.propose(pyramid, image_sizes, (images.shape[2], images.shape[3]))

    def first_stage(
        self,
        pyramid: Pyramid,
        images: Tensor,
        image_sizes: Tensor,
        truth: GroundTruth,
        given: Sequence[Tensor] | None,
    ) -> tuple[dict[str, Tensor], Proposals]:
        """Losses of the region proposal network, none where proposals are given, and the proposals to learn from."""
        losses = {}
        if self.rpn is not None and given is None:
            losses = self.rpn.losses(pyramid, truth, image_sizes, (images.shape[2], images.shape[3]))
        return losses, self.propose(pyramid, images, image_sizes, given)

    def postprocess(
        self,
        raw: Sequence[Detections],
        image_sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[int, int]],
    ) -> list[Detections]:
        """Detections in pixels of the original images; sizes are (height, width)."""
        return [
            to_original(detections, image_size, original_size, self.paste)
            for detections, image_size, original_size in zip(raw, image_sizes, original_sizes, strict=True)
        ]


class ProposalDetector(RegionDetector):
    """The region proposal network alone. Its detections are proposals, all of class 0."""

    rpn: RPN

    def losses(self, images: Tensor, image_sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """Loss terms of a batch. The targets' labels do not matter.

        Args:
            images: float32 [B, 3, H, W], normalised, padded right and bottom.
            image_sizes: int64 [B, 2], height and width of each without padding.
            targets: the objects of each image.

        Returns:
            A number for each term; their sum is what to minimise.
        """
        truth = GroundTruth.from_targets(targets, images.device)
        return self.rpn.losses(self.features(images), truth, image_sizes, (images.shape[2], images.shape[3]))

    def network(self, images: Tensor, image_sizes: Tensor) -> list[Detections]:
        """Proposals of each image in input pixels."""
        proposals = self.propose(self.features(images), images, image_sizes)
        assert proposals.scores is not None
        return [
            Detections(boxes[valid], scores[valid], torch.zeros_like(scores[valid], dtype=torch.int64))
            for boxes, valid, scores in zip(*proposals, strict=True)
        ]


class RCNN(RegionDetector):
    """Faster R-CNN, with a mask head Mask R-CNN, and without a region proposal network Fast R-CNN."""

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module | None,
        rpn: RPN | None,
        box_head: BoxHead,
        mask_head: MaskHead | None = None,
        *,
        grid_paste: bool = False,
    ) -> None:
        super().__init__(backbone, neck, rpn, grid_paste=grid_paste)
        self.box_head = box_head
        self.mask_head = mask_head

    def losses(
        self,
        images: Tensor,
        image_sizes: Tensor,
        targets: Sequence[Target],
        proposals: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms of a batch.

        Args:
            images: float32 [B, 3, H, W], normalised, padded right and bottom.
            image_sizes: int64 [B, 2], height and width of each without padding.
            targets: the objects of each image.
            proposals: [P_i, 4] of each image, for a model that makes none.

        Returns:
            A number for each term; their sum is what to minimise.
        """
        truth = GroundTruth.from_targets(targets, images.device)
        pyramid = self.features(images)
        losses, regions = self.first_stage(pyramid, images, image_sizes, truth, proposals)
        sample = self.box_head.sample(regions, truth)
        losses.update(self.box_head.losses(pyramid, sample))
        if self.mask_head is not None:
            losses.update(self.mask_head.losses(pyramid, sample, targets))
        return losses

    def network(
        self, images: Tensor, image_sizes: Tensor, proposals: Sequence[Tensor] | None = None
    ) -> list[Detections]:
        """Detections of each image in input pixels, masks as probabilities [N, 28, 28] within their boxes.

        Suppression of duplicates belongs here: the mask head works on what is left after it.
        """
        pyramid = self.features(images)
        found = self.box_head.detect(
            pyramid, self.propose(pyramid, images, image_sizes, proposals), image_sizes
        )
        return found if self.mask_head is None else self.mask_head.predict(pyramid, found)


def to_original(
    detections: Detections,
    image_size: tuple[int, int],
    original_size: tuple[int, int],
    paste: Callable[[Tensor, Tensor, tuple[int, int]], Tensor] = paste_masks,
) -> Detections:
    """Scale boxes from the resized to the original image and paste masks there."""
    # float32 ratios, as torchvision's ``resize_boxes``: a pixel of a pasted mask may hang on the last bit.
    ratios = torch.tensor(original_size, dtype=torch.float32) / torch.tensor(image_size, dtype=torch.float32)
    boxes = detections.boxes * ratios.flip(0).repeat(2).to(detections.boxes.device)
    if detections.masks is None:
        return detections._replace(boxes=boxes)
    return detections._replace(boxes=boxes, masks=paste(detections.masks, boxes, original_size))


# -- models --------------------------------------------------------------------------------------------------

Builder = Callable[..., nn.Module]


def rpn_settings(chosen: Conventions, levels: int = 5) -> dict[str, Any]:
    """Keywords of ``RPN`` on a pyramid from stride 4 on."""
    return {
        "pre_nms": chosen.pre_nms,
        "post_nms": chosen.post_nms,
        "forced_iou": chosen.forced_iou,
        "forced_to_object": chosen.forced_to_object,
        "least_positives": chosen.least_positives,
        "rounded_anchors": chosen.rounded_anchors,
        "strides": tuple(4 * 2**level for level in range(levels)) if chosen.nominal_strides else None,
        "min_size": chosen.min_proposal,
        "beta": chosen.rpn_beta,
    }


def pool_settings(chosen: Conventions) -> dict[str, Any]:
    """Keywords of heads on pooled regions."""
    return {"samples": chosen.samples, "aligned": chosen.aligned}


def box_settings(chosen: Conventions, score_threshold: float, max_detections: int) -> dict[str, Any]:
    """Keywords of ``BoxHead``."""
    return {
        "score_threshold": score_threshold,
        "max_detections": max_detections,
        "min_size": chosen.min_detection,
        "beta": chosen.box_beta,
        **pool_settings(chosen),
    }


def rpn_fpn(
    *,
    backbone: Builder,
    neck: Builder = FPN,
    num_classes: int,  # noqa: ARG001 - proposals have none
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.0,  # noqa: ARG001 - all proposals are wanted
    max_detections: int = 1000,
    conventions: str = "mmdet",
) -> ProposalDetector:
    """The region proposal network of mmdetection's ``rpn_r50_fpn``; its scores have no threshold.

    Arguments and errors are those of ``registry.build``.
    """
    chosen = replace(
        conventions_named(conventions), pre_nms=(2000, 2000), post_nms=(max_detections, max_detections)
    )
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    pyramid = neck(body.out_channels)
    return ProposalDetector(body, pyramid, RPN(pyramid.out_channels, **rpn_settings(chosen)))


def rcnn_fpn(
    *,
    backbone: Builder,
    neck: Builder = FPN,
    masks: bool,
    proposals: bool = True,
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    conventions: str = "torchvision",
    mask_head_of: Callable[..., MaskHead] = MaskHead,
) -> RCNN:
    """Faster or Mask R-CNN on a feature pyramid, or Fast R-CNN, which makes no proposals.

    Arguments and errors are those of ``registry.build``. ``masks``: whether there is a mask head. ``proposals``:
    whether the model makes its own. ``mask_head_of``: builds the mask head from the arguments of ``MaskHead``.
    """
    chosen = conventions_named(conventions)
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    pyramid = neck(body.out_channels)
    channels = pyramid.out_channels
    of_box = box_settings(chosen, score_threshold, max_detections)
    # In mmdetection Mask R-CNN's regions are matched with this and Faster R-CNN's without.
    box_head = BoxHead(channels, num_classes, forced=masks and chosen.forced_to_object, **of_box)
    mask_head = None
    if masks:
        settings = {"binary_targets": chosen.binary_masks, **pool_settings(chosen)}
        mask_head = mask_head_of(channels, num_classes, **settings)
    rpn = RPN(channels, **rpn_settings(chosen)) if proposals else None
    return RCNN(body, pyramid, rpn, box_head, mask_head, grid_paste=chosen.grid_paste)
