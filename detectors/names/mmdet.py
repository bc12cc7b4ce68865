"""Canonical weights to mmdetection 3.3.

To its `*_1x_coco` configs but for `solov2_r101_fpn_ms-3x_coco`, `solov2-light_r50_fpn_ms-3x_coco`,
`solov2-light_r50-dcn_fpn_ms-3x_coco` and what adapters/mmdet changes in them. The same order of rows: background last,
box offsets and masks of the K classes only. The names of its ResNet are torchvision's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import torchvision, yolox


def supports(model: str) -> bool:
    """All but Fast R-CNN and PaddleDetection's own SOLOv2."""
    return not model.startswith("fast_rcnn") and model != "solov2_light_r50_vd_fpn_dcn_512"


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
    (r"box_heads\.(\d)\.fc1\.", r"roi_head.bbox_head.\1.shared_fcs.0."),  # a cascade's
    (r"box_heads\.(\d)\.fc2\.", r"roi_head.bbox_head.\1.shared_fcs.1."),
    (r"box_heads\.(\d)\.classes\.", r"roi_head.bbox_head.\1.fc_cls."),
    (r"box_heads\.(\d)\.deltas\.", r"roi_head.bbox_head.\1.fc_reg."),
    (r"mask_heads\.(\d)\.convs\.(\d)\.", r"roi_head.mask_head.\1.convs.\2.conv."),
    (r"mask_heads\.(\d)\.upsample\.", r"roi_head.mask_head.\1.upsample."),
    (r"mask_heads\.(\d)\.logits\.", r"roi_head.mask_head.\1.conv_logits."),
    (r"mask_heads\.(\d)\.flow\.", r"roi_head.mask_head.\1.conv_res.conv."),  # HTC's
    (r"semantic_head\.lateral\.(\d)\.", r"roi_head.semantic_head.lateral_convs.\1.conv."),
    (r"semantic_head\.convs\.(\d)\.", r"roi_head.semantic_head.convs.\1.conv."),
    (r"semantic_head\.embedding\.", r"roi_head.semantic_head.conv_embedding.conv."),
    (r"semantic_head\.classes\.", r"roi_head.semantic_head.conv_logits."),
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
    (r"neck\.reduction\.", r"neck.reduction_conv.conv."),
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
    """Its name for one of ours. Raises KeyError."""
    offset = re.match(r"backbone\.stages\.(\d)\.(\d+)\.conv2\.offset\.(\w+)$", name)
    if offset:
        stage, block, value = offset.groups()
        return f"backbone.layer{int(stage) + 1}.{block}.conv2.conv_offset.{value}"
    vgg = re.match(r"backbone\.stages\.(\d)\.(\d)\.(weight|bias)$", name)
    if vgg:
        stage, layer, value = vgg.groups()
        return f"backbone.features.{torchvision.VGG_LAYERS[int(stage)][int(layer)]}.{value}"
    if hrnet := _hrnet_name(name):
        return hrnet
    if name.startswith("box_head.res5."):  # C4's
        layer = name.replace("box_head.res5.", "backbone.stages.3.", 1)
        return torchvision.rename(layer).replace("backbone.body.", "roi_head.shared_head.", 1)
    if name.startswith(("backbone.stem", "backbone.stages")):
        return torchvision.rename(name).replace("backbone.body.", "backbone.", 1)
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(f"no mmdetection name for {name}")


def _hrnet_name(name: str) -> str | None:
    """Of HRNet's own parts; its first stage is one of ResNet."""
    if found := re.match(r"backbone\.stem\.(0|2)\.(conv|norm)\.(\w+)$", name):
        layer, kind, value = found.groups()
        return f"backbone.{'conv' if kind == 'conv' else 'bn'}{int(layer) // 2 + 1}.{value}"
    if not (
        found := re.match(r"backbone\.stages\.(\d)\.(transition|exchanges)\.(.+)\.(conv|norm)\.(\w+)$", name)
    ):
        return None
    stage, part, path, kind, value = found.groups()
    end = f"{0 if kind == 'conv' else 1}.{value}"
    if part == "transition":  # a list by branch, where the new, last one is a list of convolutions
        branch = int(path) if stage == "1" else int(stage)
        return f"backbone.transition{stage}.{branch}.{'0.' if branch == int(stage) else ''}{end}"
    exchange, part, first, second, last = path.split(".")
    begin = f"backbone.stage{int(stage) + 1}.{exchange}"
    if part == "branches":
        return f"{begin}.branches.{first}.{second}.{last if kind == 'conv' else last.replace('conv', 'bn')}.{value}"
    step = "" if int(second) > int(first) else f"{int(last) // 2}."  # from a coarser branch there is one step
    return f"{begin}.fuse_layers.{first}.{second}.{step}{end}"


#: What the prediction layers of a dense head are called.
DENSE = {
    "retinanet": {"head.classes": "bbox_head.retina_cls", "head.deltas": "bbox_head.retina_reg"},
    "fcos": {"head.classes": "bbox_head.conv_cls", "head.deltas": "bbox_head.conv_reg"},
}


def source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """RetinaNet's pyramid and FCOS's head have other layers here than in torchvision.

    The canonical weights have to be those of a model with mmdetection's.
    """
    return {"conventions": "mmdet"} if model.startswith(tuple(DENSE)) else {}


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our weights in its names and shapes."""
    if yolox.supports(model):
        return yolox.to_mmdet(state)
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
            converted[rename(name)] = value.reshape(len(value), -1) if name.endswith("fc1.weight") else value
    if model.startswith("rpn_"):  # a one-stage detector, whose head has their name
        return {re.sub(r"^rpn_head\.", "bbox_head.", name): value for name, value in converted.items()}
    return converted
