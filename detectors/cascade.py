"""Cascade R-CNN and Cascade Mask R-CNN (Cai & Vasconcelos 2018, arXiv:1712.00726; 2019, arXiv:1906.09756)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from detectors.box_head import BoxHead, RoISample
from detectors.boxes import clip
from detectors.conventions import Conventions, conventions_named
from detectors.mask_head import MaskHead, regions_of, with_masks
from detectors.necks.fpn import FPN
from detectors.precision import full
from detectors.pyramid import Pyramid
from detectors.rcnn import Builder, RegionDetector, box_settings, pool_settings, rpn_settings
from detectors.rpn import RPN, Proposals
from detectors.sampling import positions
from detectors.structures import Detections, GroundTruth, Target

#: Of each stage: the IoU of a positive region, the weight of its losses, and those of its box offsets.
IOUS = (0.5, 0.6, 0.7)
STAGE_WEIGHTS = (1.0, 0.5, 0.25)
CODER_WEIGHTS = tuple(
    (1 / centre, 1 / centre, 1 / size, 1 / size) for centre, size in ((0.1, 0.2), (0.05, 0.1), (0.033, 0.067))
)


class CascadeRCNN(RegionDetector):
    """Box heads one after the other, each on the boxes that the one before refined, and perhaps a mask head for each.

    Scores are the mean over the heads, boxes those of the last; masks the mean over the mask heads, which see the
    same pooled features: these are made once. Settings and results as
    mmdet/models/roi_heads/cascade_roi_head.py.
    """

    box_heads: Sequence[BoxHead]
    mask_heads: Sequence[MaskHead]
    #: Whether a mask head learns from the boxes that its stage refined, or from those that the stage got.
    masks_of_refined = False

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        rpn: RPN,
        box_heads: Sequence[BoxHead],
        mask_heads: Sequence[MaskHead] = (),
        *,
        stage_weights: Sequence[float] = STAGE_WEIGHTS,
        grid_paste: bool = False,
    ) -> None:
        super().__init__(backbone, neck, rpn, grid_paste=grid_paste)
        self.box_heads = nn.ModuleList(box_heads)
        self.mask_heads = nn.ModuleList(mask_heads)
        self.stage_weights = tuple(stage_weights)

    def pool(self, pyramid: Pyramid, head: BoxHead | MaskHead, boxes: Tensor, image: Tensor) -> Tensor:
        """Features [R, C, S, S] of regions [R, 4] of images [R] for a head, of S = ``head.pool_size``."""
        return head.pool(pyramid, boxes, image)

    # -- training ------------------------------------------------------------------------------------------------

    def losses(
        self,
        images: Tensor,
        image_sizes: Tensor,
        targets: Sequence[Target],
        proposals: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Loss terms, those of stage i as ``s<i>.<term>`` and times its weight.

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
        losses.update(self.stage_losses(pyramid, regions, truth, image_sizes, targets))
        return losses

    def stage_losses(
        self,
        pyramid: Pyramid,
        regions: Proposals,
        truth: GroundTruth,
        image_sizes: Tensor,
        targets: Sequence[Target],
    ) -> dict[str, Tensor]:
        """Loss terms of all stages; arguments as of ``losses``, ``regions`` the proposals to begin with."""
        terms, samples = [], []
        for stage, head in enumerate(self.box_heads):
            sample = head.sample(regions, truth)
            logits, deltas = head.predict(self.pool(pyramid, head, sample.boxes, sample.image))
            terms.append(head.losses_of(logits, deltas, sample))
            if stage < len(self.box_heads) - 1 or self.masks_of_refined:
                regions = refined_sample(head, deltas.detach(), sample, image_sizes)
            samples.append(head.sample(regions, truth) if self.masks_of_refined else sample)
        # The masks come last, so that the host waits once for the number of positive regions of all stages.
        for stage, found in enumerate(self.mask_losses(pyramid, samples, targets)):
            terms[stage].update(found)
        return {
            f"s{stage}.{name}": value * self.stage_weights[stage]
            for stage, found in enumerate(terms)
            for name, value in found.items()
        }

    def mask_losses(
        self, pyramid: Pyramid, samples: Sequence[RoISample], targets: Sequence[Target]
    ) -> list[dict[str, Tensor]]:
        """Loss terms of each mask head on the sample of its stage."""
        if not self.mask_heads:
            return []
        positives = positions(*(sample.positive(self.mask_heads[0].num_classes) for sample in samples))
        losses = []
        for stage, (head, sample, here) in enumerate(zip(self.mask_heads, samples, positives, strict=True)):
            pooled = self.pool(pyramid, head, sample.boxes[here], sample.image[here])
            losses.append(head.losses_of(self.convolve(pooled, stage), here, sample, targets))
        return losses

    def convolve(self, pooled: Tensor, stage: int) -> Tensor:
        """What the convolutions of a stage's mask head make of pooled features [R, C, S, S]."""
        return self.mask_heads[stage].convolve(pooled)

    # -- inference -----------------------------------------------------------------------------------------------

    def network(
        self, images: Tensor, image_sizes: Tensor, proposals: Sequence[Tensor] | None = None
    ) -> list[Detections]:
        """Detections of each image in input pixels, masks as probabilities [N, 28, 28] within their boxes."""
        pyramid = self.features(images)
        found = self.detect(pyramid, self.propose(pyramid, images, image_sizes, proposals), image_sizes)
        return self.predict_masks(pyramid, found) if self.mask_heads else found

    def detect(self, pyramid: Pyramid, proposals: Proposals, image_sizes: Tensor) -> list[Detections]:
        """Detections of each image in input pixels, without masks."""
        image, slot = proposals.valid.nonzero(as_tuple=True)
        boxes = proposals.boxes[image, slot]
        scores = []
        for stage, head in enumerate(self.box_heads):
            logits, deltas = head.predict(self.pool(pyramid, head, boxes, image))
            scores.append(full(logits))
            if stage < len(self.box_heads) - 1:
                boxes = refine(head, deltas, boxes, image, image_sizes)
        mean = torch.stack(scores).mean(dim=0)
        return self.box_heads[-1].detections(mean, deltas, boxes, image, image_sizes)

    def predict_masks(self, pyramid: Pyramid, found: Sequence[Detections]) -> list[Detections]:
        """The detections with the mean of the heads' mask probabilities [N, 28, 28]."""
        boxes, image, labels = regions_of(found)
        pooled = self.pool(pyramid, self.mask_heads[0], boxes, image)
        masks = [full(head.logits_of(head.convolve(pooled), labels)).sigmoid() for head in self.mask_heads]
        return with_masks(found, torch.stack(masks).mean(dim=0))


@torch.no_grad()
def refine(head: BoxHead, deltas: Tensor, boxes: Tensor, image: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes [R, 4] of images [R] moved by class-agnostic offsets [R, 1, 4] and cut to their image."""
    moved = head.coder.decode(deltas.squeeze(1), boxes)
    return clip(moved.unsqueeze(1), image_sizes[image]).squeeze(1)


@torch.no_grad()
def refined_sample(head: BoxHead, deltas: Tensor, sample: RoISample, image_sizes: Tensor) -> Proposals:
    """The sample's boxes, refined, as the next stage's proposals; but for the objects' own, which it adds itself."""
    boxes = refine(head, deltas, sample.boxes, sample.image, image_sizes)
    shape = (len(image_sizes), min(head.sampler.size, len(boxes)))
    padded = boxes.new_zeros((*shape, 4))
    valid = torch.zeros(shape, dtype=torch.bool, device=boxes.device)
    padded[sample.image, sample.slot] = boxes
    valid[sample.image, sample.slot] = ~sample.is_object & (sample.labels >= 0)
    return Proposals(padded, valid)


# -- models --------------------------------------------------------------------------------------------------


def cascade_conventions(name: str) -> Conventions:
    """Conventions by name, with the losses and proposals that mmdetection's cascades have."""
    return replace(conventions_named(name), rpn_beta=1 / 9, box_beta=1.0, post_nms=(2000, 1000))


def cascade_box_heads(
    channels: int, num_classes: int, *, forced: bool = False, **settings: Any
) -> list[BoxHead]:
    """A head for each stage. ``settings``: of ``BoxHead``, the same for all."""
    return [
        BoxHead(
            channels,
            num_classes,
            iou_threshold=iou,
            coder_weights=weights,
            class_agnostic=True,
            forced=forced,
            **settings,
        )
        for iou, weights in zip(IOUS, CODER_WEIGHTS, strict=True)
    ]


def cascade_rcnn_fpn(
    *,
    backbone: Builder,
    neck: Builder = FPN,
    masks: bool,
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    conventions: str = "mmdet",
) -> CascadeRCNN:
    """Cascade R-CNN, with masks Cascade Mask R-CNN, as mmdetection's ``cascade-(mask-)rcnn_r50_fpn``.

    Arguments and errors are those of ``registry.build``. ``masks``: whether each stage has a mask head.
    """
    chosen = cascade_conventions(conventions)
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    pyramid = neck(body.out_channels)
    channels = pyramid.out_channels
    mask_heads = [
        MaskHead(channels, num_classes, binary_targets=chosen.binary_masks, **pool_settings(chosen))
        for _ in IOUS[: len(IOUS) if masks else 0]
    ]
    return CascadeRCNN(
        body,
        pyramid,
        RPN(channels, inside_only=True, **rpn_settings(chosen)),
        cascade_box_heads(channels, num_classes, **box_settings(chosen, score_threshold, max_detections)),
        mask_heads,
        grid_paste=chosen.grid_paste,
    )
