"""Canonical weights to torchvision.models.detection (0.29).

In the R-CNNs background is class 0 and has rows of its own; its box offsets and masks are never used and get zeros.
In SSD it is class 0 of every anchor. RetinaNet and FCOS are built with the K classes only (adapters/torchvision).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

MODELS = frozenset(
    {"faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "retinanet_r50_fpn", "fcos_r50_fpn", "ssd300_vgg16"}
)


def supports(model: str) -> bool:
    """The models of ``MODELS``."""
    return model in MODELS


#: Where VGG-16's convolutions are in torchvision's list of all its layers, by stage.
VGG_LAYERS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
#: Of these, SSD puts the layers from the fourth pooling on into a list of their own.
VGG_FOURTH_POOLING = 23

#: Canonical name (a pattern) → torchvision's; the first that matches a beginning is applied.
RENAMES = (
    (r"backbone\.stem\.conv\.", r"backbone.body.conv1."),
    (r"backbone\.stem\.norm\.", r"backbone.body.bn1."),
    (r"neck\.lateral\.(\d)\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"neck\.output\.(\d)\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"neck\.p(\d)\.", r"backbone.fpn.extra_blocks.p\1."),
    (r"head\.class_tower\.(\d)\.(weight|bias)", r"head.classification_head.conv.\1.0.\2"),  # RetinaNet's
    (r"head\.box_tower\.(\d)\.(weight|bias)", r"head.regression_head.conv.\1.0.\2"),
    (r"head\.classes\.", r"head.classification_head.cls_logits."),
    (r"head\.deltas\.", r"head.regression_head.bbox_reg."),
    (r"head\.centreness\.", r"head.regression_head.bbox_ctrness."),
    (r"backbone\.fc6\.", r"backbone.extra.0.7.1."),  # SSD's, and those that follow
    (r"backbone\.fc7\.", r"backbone.extra.0.7.3."),
    (r"neck\.scale$", r"backbone.scale_weight"),
    (r"rpn\.conv\.", r"rpn.head.conv.0.0."),
    (r"rpn\.objectness\.", r"rpn.head.cls_logits."),
    (r"rpn\.deltas\.", r"rpn.head.bbox_pred."),
    (r"box_head\.fc1\.", r"roi_heads.box_head.fc6."),
    (r"box_head\.fc2\.", r"roi_heads.box_head.fc7."),
    (r"box_head\.classes\.", r"roi_heads.box_predictor.cls_score."),
    (r"box_head\.deltas\.", r"roi_heads.box_predictor.bbox_pred."),
    (r"mask_head\.convs\.(\d)\.", r"roi_heads.mask_head.\1.0."),
    (r"mask_head\.upsample\.", r"roi_heads.mask_predictor.conv5_mask."),
    (r"mask_head\.logits\.", r"roi_heads.mask_predictor.mask_fcn_logits."),
)


def rename(name: str) -> str:
    """Its name for one of ours. Raises KeyError."""
    block = re.match(r"backbone\.stages\.(\d)\.(\d+)\.(conv(\d)|shortcut)\.(conv|norm)\.(\w+)$", name)
    if block:
        stage, index, _, convolution, kind, value = block.groups()
        if convolution is None:
            layer = "downsample.0" if kind == "conv" else "downsample.1"
        else:
            layer = f"conv{convolution}" if kind == "conv" else f"bn{convolution}"
        return f"backbone.body.layer{int(stage) + 1}.{index}.{layer}.{value}"
    tower_layer = re.match(r"head\.(class|box)_tower\.(\d)\.(conv|norm)\.(\w+)$", name)
    if tower_layer:  # of FCOS, where one list holds convolution, norm and ReLU of every layer
        tower, index, kind, value = tower_layer.groups()
        branch = {"class": "classification", "box": "regression"}[tower]
        return f"head.{branch}_head.conv.{3 * int(index) + (kind == 'norm')}.{value}"
    ssd = re.match(
        r"(backbone\.stages|neck\.extra|head\.classes|head\.deltas)\.(\d)\.(?:(\d)\.)?(\w+)$", name
    )
    if ssd:
        return _ssd_name(*ssd.groups())
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(f"no torchvision name for {name}")


def _ssd_name(part: str, index: str, layer: str, value: str) -> str:
    """Of SSD's lists. index: the stage, the extra layer or the level. layer: which of its convolutions."""
    if part == "neck.extra":
        return f"backbone.extra.{int(index) + 1}.{2 * int(layer)}.{value}"
    if part == "backbone.stages":
        place = VGG_LAYERS[int(index)][int(layer)]
        if place > VGG_FOURTH_POOLING:
            return f"backbone.extra.0.{place - VGG_FOURTH_POOLING}.{value}"
        return f"backbone.features.{place}.{value}"
    branch = {"head.classes": "classification", "head.deltas": "regression"}[part]
    return f"head.{branch}_head.module_list.{index}.{value}"


#: What a name was called before torchvision 0.14, whose published files keep it.
OLDER = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.0\.", r"\1."),
    (r"rpn\.head\.conv\.0\.0\.", r"rpn.head.conv."),
)


def older(name: str) -> str:
    """The name that a file of an earlier torchvision has for a layer."""
    if found := re.match(r"roi_heads\.mask_head\.(\d)\.0\.(\w+)$", name):
        return f"roi_heads.mask_head.mask_fcn{int(found[1]) + 1}.{found[2]}"
    if found := re.match(r"(head\.\w+_head\.conv)\.(\d)\.0\.(\w+)$", name):  # RetinaNet's, with ReLUs between
        return f"{found[1]}.{2 * int(found[2])}.{found[3]}"
    for pattern, replacement in OLDER:
        name = re.sub(f"^{pattern}", replacement, name)
    return name


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our weights in its names and shapes."""
    if model.startswith("ssd"):
        return {rename(name): _background_first(name, value, state) for name, value in state.items()}
    return {rename(name): _value(name, value) for name, value in state.items()}


def _background_first(name: str, value: np.ndarray, state: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of SSD: in every anchor's rows of classes, background from the last to the first."""
    if not name.startswith("head.classes."):
        return value
    anchors = len(state[name.replace("classes", "deltas")]) // 4
    return np.roll(value.reshape(anchors, -1, *value.shape[1:]), 1, axis=1).reshape(value.shape)


def _value(name: str, value: np.ndarray) -> np.ndarray:
    if name == "box_head.fc1.weight":
        return value.reshape(len(value), -1)
    if name.startswith("box_head.classes."):
        return np.roll(value, 1, axis=0)  # background from the last row to the first
    rows = {"box_head.deltas.": 4, "mask_head.logits.": 1}
    for prefix, count in rows.items():
        if name.startswith(prefix):
            return np.concatenate([np.zeros_like(value[:count]), value])
    return value
