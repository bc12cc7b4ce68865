"""Canonical weights to mmdetection 3.3 (`faster-rcnn_r50_fpn_1x_coco`, `mask-rcnn_r50_fpn_1x_coco`, both on R-101 too,
`solov2_r50_fpn_1x_coco`, `solov2_r101_fpn_ms-3x_coco`, `solov2-light_r50_fpn_ms-3x_coco`,
`solov2-light_r50-dcn_fpn_ms-3x_coco`).

The same order of rows: background last, box offsets and masks of the K classes only. The names of its ResNet are
torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.transplant import torchvision

MODELS = frozenset(
    {
        "faster_rcnn_r50_fpn",
        "faster_rcnn_r101_fpn",
        "mask_rcnn_r50_fpn",
        "mask_rcnn_r101_fpn",
        "solov2_r50_fpn",
        "solov2_r101_fpn",
        "solov2_light_r50_fpn",
        "solov2_light_r50_dcn_fpn",
        "retinanet_r50_fpn",
        "fcos_r50_fpn",
        "ssd300_vgg16",
        "ssd512_vgg16",
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
    (r"head\.class_convs\.(\d)\.offset\.", r"mask_head.cls_convs.\1.conv.conv_offset."),
    (r"head\.kernel_convs\.(\d)\.conv\.", r"mask_head.kernel_convs.\1.conv."),
    (r"head\.kernel_convs\.(\d)\.norm\.", r"mask_head.kernel_convs.\1.gn."),
    (r"head\.kernel_convs\.(\d)\.offset\.", r"mask_head.kernel_convs.\1.conv.conv_offset."),
    (r"neck\.p6\.", r"neck.fpn_convs.3.conv."),  # RetinaNet's and FCOS's, and those that follow
    (r"neck\.p7\.", r"neck.fpn_convs.4.conv."),
    (r"head\.class_tower\.(\d)\.(weight|bias)", r"bbox_head.cls_convs.\1.conv.\2"),
    (r"head\.box_tower\.(\d)\.(weight|bias)", r"bbox_head.reg_convs.\1.conv.\2"),
    (r"head\.class_tower\.(\d)\.conv\.", r"bbox_head.cls_convs.\1.conv."),
    (r"head\.class_tower\.(\d)\.norm\.", r"bbox_head.cls_convs.\1.gn."),
    (r"head\.box_tower\.(\d)\.conv\.", r"bbox_head.reg_convs.\1.conv."),
    (r"head\.box_tower\.(\d)\.norm\.", r"bbox_head.reg_convs.\1.gn."),
    (r"head\.centreness\.", r"bbox_head.conv_centerness."),
    (r"backbone\.fc6\.", r"backbone.features.31."),  # SSD's, and those that follow
    (r"backbone\.fc7\.", r"backbone.features.33."),
    (r"neck\.scale$", r"neck.l2_norm.weight"),
    (r"neck\.extra\.(\d)\.(\d)\.", r"neck.extra_layers.\1.\2.conv."),
    (r"head\.classes\.(\d)\.", r"bbox_head.cls_convs.\1.0."),
    (r"head\.deltas\.(\d)\.", r"bbox_head.reg_convs.\1.0."),
    (r"head\.classes\.", r"mask_head.conv_cls."),
    (r"head\.kernels\.", r"mask_head.conv_kernel."),
)


def rename(name: str) -> str:
    offset = re.match(r"backbone\.stages\.(\d)\.(\d+)\.conv2\.offset\.(\w+)$", name)
    if offset:
        stage, block, value = offset.groups()
        return f"backbone.layer{int(stage) + 1}.{block}.conv2.conv_offset.{value}"
    vgg = re.match(r"backbone\.stages\.(\d)\.(\d)\.(weight|bias)$", name)
    if vgg:
        stage, layer, value = vgg.groups()
        return f"backbone.features.{torchvision.VGG_LAYERS[int(stage)][int(layer)]}.{value}"
    if name.startswith(("backbone.stem", "backbone.stages")):
        return torchvision.rename(name).replace("backbone.body.", "backbone.", 1)
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(f"no mmdetection name for {name}")


#: What the prediction layers of a dense head are called.
DENSE = {
    "retinanet": {"head.classes": "bbox_head.retina_cls", "head.deltas": "bbox_head.retina_reg"},
    "fcos": {"head.classes": "bbox_head.conv_cls", "head.deltas": "bbox_head.conv_reg"},
}


def source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """RetinaNet's pyramid and FCOS's head have other layers here than in torchvision: the canonical weights have to be
    those of a model with mmdetection's."""
    return {"conventions": "mmdet"} if model.startswith(tuple(DENSE)) else {}


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    layers = DENSE.get(model.partition("_")[0], {})
    converted = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if layer in layers:
            converted[f"{layers[layer]}.{kind}"] = value
        elif name == "head.scales":  # FCOS's, there a module per level
            converted |= {
                f"bbox_head.scales.{level}.scale": np.asarray(one) for level, one in enumerate(value)
            }
        else:
            converted[rename(name)] = (
                value.reshape(len(value), -1) if name == "box_head.fc1.weight" else value
            )
    return converted
