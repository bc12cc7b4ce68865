"""Canonical weights to torchvision.models.detection (0.29).

In the R-CNNs background is class 0 and has rows of its own; its box offsets and masks are never used and get zeros.
RetinaNet and FCOS are built with the K classes only (adapters/torchvision).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

MODELS = frozenset({"faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "retinanet_r50_fpn", "fcos_r50_fpn"})

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
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(f"no torchvision name for {name}")


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    return {rename(name): _value(name, value) for name, value in state.items()}


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
