"""Canonical weights to mmdetection 3.3 (`faster-rcnn_r50_fpn_1x_coco`, `mask-rcnn_r50_fpn_1x_coco`, both on R-101 too,
`solov2_r50_fpn_1x_coco`, `solov2-light_r50_fpn_ms-3x_coco`).

The same order of rows: background last, box offsets and masks of the K classes only. The names of its ResNet are
torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from bench.transplant import torchvision

MODELS = frozenset(
    {
        "faster_rcnn_r50_fpn",
        "faster_rcnn_r101_fpn",
        "mask_rcnn_r50_fpn",
        "mask_rcnn_r101_fpn",
        "solov2_r50_fpn",
        "solov2_light_r50_fpn",
    }
)

#: Canonical name (a pattern) → mmdetection's; the first that matches a beginning is applied.
RENAMES = (
    (r"neck\.lateral\.(\d)\.", r"neck.lateral_convs.\1.conv."),
    (r"neck\.output\.(\d)\.", r"neck.fpn_convs.\1.conv."),
    (r"rpn\.conv\.", r"rpn_head.rpn_conv."),
    (r"rpn\.objectness\.", r"rpn_head.rpn_cls."),
    (r"rpn\.deltas\.", r"rpn_head.rpn_reg."),
    (r"box_head\.fc1\.", r"roi_head.bbox_head.shared_fcs.0."),
    (r"box_head\.fc2\.", r"roi_head.bbox_head.shared_fcs.1."),
    (r"box_head\.classes\.", r"roi_head.bbox_head.fc_cls."),
    (r"box_head\.deltas\.", r"roi_head.bbox_head.fc_reg."),
    (r"mask_head\.convs\.(\d)\.", r"roi_head.mask_head.convs.\1.conv."),
    (r"mask_head\.upsample\.", r"roi_head.mask_head.upsample."),
    (r"mask_head\.logits\.", r"roi_head.mask_head.conv_logits."),
    (
        r"mask_features\.branches\.(\d)\.(\d)\.conv\.",
        r"mask_head.mask_feature_head.convs_all_levels.\1.conv\2.conv.",
    ),
    (
        r"mask_features\.branches\.(\d)\.(\d)\.norm\.",
        r"mask_head.mask_feature_head.convs_all_levels.\1.conv\2.gn.",
    ),
    (r"mask_features\.output\.conv\.", r"mask_head.mask_feature_head.conv_pred.conv."),
    (r"mask_features\.output\.norm\.", r"mask_head.mask_feature_head.conv_pred.gn."),
    (r"head\.class_convs\.(\d)\.conv\.", r"mask_head.cls_convs.\1.conv."),
    (r"head\.class_convs\.(\d)\.norm\.", r"mask_head.cls_convs.\1.gn."),
    (r"head\.kernel_convs\.(\d)\.conv\.", r"mask_head.kernel_convs.\1.conv."),
    (r"head\.kernel_convs\.(\d)\.norm\.", r"mask_head.kernel_convs.\1.gn."),
    (r"head\.classes\.", r"mask_head.conv_cls."),
    (r"head\.kernels\.", r"mask_head.conv_kernel."),
)


def rename(name: str) -> str:
    if name.startswith("backbone."):
        return torchvision.rename(name).replace("backbone.body.", "backbone.", 1)
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(f"no mmdetection name for {name}")


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    return {
        rename(name): value.reshape(len(value), -1) if name == "box_head.fc1.weight" else value
        for name, value in state.items()
    }
