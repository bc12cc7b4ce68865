"""The R-CNN family on C4.

Regions are cut out of the backbone's last but one stage, and the last stage is their head (He et al. 2015,
arXiv:1512.03385, appendix A; He et al. 2017, arXiv:1703.06870).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from detectors.box_head import BoxHead
from detectors.conventions import Conventions, conventions_named
from detectors.mask_head import MaskHead, regions_of, with_masks
from detectors.precision import full
from detectors.pyramid import Pyramid, roi_align
from detectors.rcnn import RCNN, Builder, ProposalDetector, box_settings, rpn_settings
from detectors.rpn import RPN
from detectors.sampling import positions
from detectors.structures import Detections, GroundTruth, Target

#: Anchors of all sizes on the only map, of stride 16.
SCALES = ((32.0, 64.0, 128.0, 256.0, 512.0),)
STRIDE = 16


class Res5BoxHead(BoxHead):
    """Regions pooled to 14×14, through the backbone's last stage ``res5`` to 7×7, and their mean to classes and boxes.

    As mmdetection's ``BBoxHead(with_avg_pool=True)`` behind a ``ResLayer``
    (mmdet/models/roi_heads/shared_heads/res_layer.py).
    """

    def __init__(self, res5: nn.Module, channels: int, num_classes: int, **settings: Any) -> None:
        super().__init__(channels, num_classes, pool_size=14, **settings)
        self.res5 = res5

    def _make_layers(self, channels: int, hidden: int) -> None:  # noqa: ARG002
        self._make_predictors(channels)

    def pool(self, pyramid: Pyramid, boxes: Tensor, image: Tensor) -> Tensor:
        """[R, C, 7, 7], behind ``res5``."""
        pooled = roi_align(
            pyramid,
            boxes,
            image,
            size=self.pool_size,
            levels=1,
            stride=STRIDE,
            samples=self.samples,
            aligned=self.aligned,
        )
        return self.res5(pooled)

    def predict(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Features [R, C, 7, 7] to class logits [R, K + 1] and offsets [R, K, 4]."""
        hidden = pooled.mean(dim=(2, 3))
        return self.classes(hidden), self.deltas(hidden).unflatten(1, (-1, 4))


class C4RCNN(RCNN):
    """Faster or Mask R-CNN on C4. The mask head shares the features of the box head; masks are 14×14."""

    box_head: Res5BoxHead

    def losses(
        self,
        images: Tensor,
        image_sizes: Tensor,
        targets: Sequence[Target],
        proposals: Sequence[Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """As of ``RCNN``."""
        if self.mask_head is None:
            return super().losses(images, image_sizes, targets, proposals)
        truth = GroundTruth.from_targets(targets, images.device)
        pyramid = self.features(images)
        losses, regions = self.first_stage(pyramid, images, image_sizes, truth, proposals)
        sample = self.box_head.sample(regions, truth)
        pooled = self.box_head.pool(pyramid, sample.boxes, sample.image)
        losses.update(self.box_head.losses_of(*self.box_head.predict(pooled), sample))
        (positive,) = positions(sample.positive(self.mask_head.num_classes))
        losses.update(self.mask_head.losses_of(pooled[positive], positive, sample, targets))
        return losses

    def network(
        self, images: Tensor, image_sizes: Tensor, proposals: Sequence[Tensor] | None = None
    ) -> list[Detections]:
        """Detections of each image in input pixels, masks as probabilities [N, 14, 14] within their boxes."""
        pyramid = self.features(images)
        found = self.box_head.detect(
            pyramid, self.propose(pyramid, images, image_sizes, proposals), image_sizes
        )
        if self.mask_head is None:
            return found
        boxes, image, labels = regions_of(found)
        pooled = self.box_head.pool(pyramid, boxes, image)
        return with_masks(found, full(self.mask_head.logits_of(pooled, labels)).sigmoid())


# -- models --------------------------------------------------------------------------------------------------


def c4_conventions(name: str) -> Conventions:
    """One level in place of five has more candidates, as in mmdetection's ``*_r50-caffe-c4`` models."""
    return replace(conventions_named(name), pre_nms=(12000, 6000), post_nms=(2000, 1000))


def c4_rpn(channels: int, chosen: Conventions, **settings: Any) -> RPN:
    """The region proposal network on one map of stride 16. ``settings``: of ``RPN``, over the conventions."""
    strides = (STRIDE,) if chosen.nominal_strides else None
    return RPN(channels, scales=SCALES, **{**rpn_settings(chosen), "strides": strides, **settings})


def whole_backbone(model: nn.Module) -> nn.Module:
    """A detector's backbone as it is when pretrained, for `load_backbone`.

    On C4 with its last stage, which is the head now. As ``init_cfg`` of mmdetection's ``shared_head``, which loads
    the stage from the backbone's checkpoint.
    """
    head = getattr(model, "box_head", None)
    if not isinstance(head, Res5BoxHead):
        return model.backbone
    body = model.backbone
    return nn.ModuleDict({"stem": body.stem, "stages": nn.ModuleList([*body.stages, head.res5])})


def c4_backbone(backbone: Builder, frozen_stages: int, frozen_bn: bool) -> tuple[nn.Module, nn.Module]:
    """A ResNet without its last stage, and that stage."""
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    res5 = body.stages.pop(-1)
    body.out_channels.pop()
    return body, res5


def rpn_c4(
    *,
    backbone: Builder,
    num_classes: int,  # noqa: ARG001 - proposals have none
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.0,  # noqa: ARG001 - all proposals are wanted
    max_detections: int = 2000,
    conventions: str = "mmdet",
) -> ProposalDetector:
    """The region proposal network of mmdetection's ``rpn_r50-caffe-c4``; its scores have no threshold.

    Arguments and errors are those of ``registry.build``.
    """
    chosen = replace(
        c4_conventions(conventions), pre_nms=(12000, 12000), post_nms=(max_detections, max_detections)
    )
    body, _ = c4_backbone(backbone, frozen_stages, frozen_bn)
    return ProposalDetector(body, None, c4_rpn(body.out_channels[-1], chosen))


def rcnn_c4(
    *,
    backbone: Builder,
    masks: bool,
    proposals: bool = True,
    num_classes: int,
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    conventions: str = "mmdet",
) -> C4RCNN:
    """Faster or Mask R-CNN on C4, as mmdetection's ``*-rcnn_r50-caffe-c4``, or Fast R-CNN.

    Arguments and errors are those of ``registry.build``. ``masks``: whether there is a mask head. ``proposals``:
    whether the model makes its own; Fast R-CNN does not.
    """
    chosen = c4_conventions(conventions)
    body, res5 = c4_backbone(backbone, frozen_stages, frozen_bn)
    channels = body.out_channels[-1]
    region_channels = 2 * channels
    settings = box_settings(chosen, score_threshold, max_detections)
    box_head = Res5BoxHead(res5, region_channels, num_classes, **settings)
    mask_head = (
        MaskHead(region_channels, num_classes, convs=0, binary_targets=chosen.binary_masks) if masks else None
    )
    # In mmdetection Mask R-CNN's anchors have to be inside the image and Faster R-CNN's not.
    rpn = c4_rpn(channels, chosen, inside_only=masks) if proposals else None
    return C4RCNN(body, None, rpn, box_head, mask_head, grid_paste=chosen.grid_paste)
