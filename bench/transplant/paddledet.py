"""Canonical weights to PaddleDetection (ppdet 2.6): classes and background in the same order, so only names change,
and linear layers, which Paddle keeps as [in, out].
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

MODELS = frozenset({"faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"})

#: Canonical name (a pattern) → ppdet's; the first that matches a beginning is applied.
RENAMES = (
    (r"backbone\.stem\.", "backbone.conv1.conv1."),
    (r"neck\.lateral\.3\.", "neck.fpn_inner_res5_sum."),
    (r"neck\.lateral\.0\.", "neck.fpn_inner_res2_sum_lateral."),
    (r"neck\.lateral\.1\.", "neck.fpn_inner_res3_sum_lateral."),
    (r"neck\.lateral\.2\.", "neck.fpn_inner_res4_sum_lateral."),
    (r"neck\.output\.0\.", "neck.fpn_res2_sum."),
    (r"neck\.output\.1\.", "neck.fpn_res3_sum."),
    (r"neck\.output\.2\.", "neck.fpn_res4_sum."),
    (r"neck\.output\.3\.", "neck.fpn_res5_sum."),
    (r"rpn\.conv\.", "rpn_head.rpn_feat.rpn_conv."),
    (r"rpn\.objectness\.", "rpn_head.rpn_rois_score."),
    (r"rpn\.deltas\.", "rpn_head.rpn_rois_delta."),
    (r"box_head\.fc1\.", "bbox_head.head.fc6."),
    (r"box_head\.fc2\.", "bbox_head.head.fc7."),
    (r"box_head\.classes\.", "bbox_head.bbox_score."),
    (r"box_head\.deltas\.", "bbox_head.bbox_delta."),
    (r"mask_head\.convs\.0\.", "mask_head.head.upsample.mask_inter_feat_1."),
    (r"mask_head\.convs\.1\.", "mask_head.head.upsample.mask_inter_feat_2."),
    (r"mask_head\.convs\.2\.", "mask_head.head.upsample.mask_inter_feat_3."),
    (r"mask_head\.convs\.3\.", "mask_head.head.upsample.mask_inter_feat_4."),
    (r"mask_head\.upsample\.", "mask_head.head.upsample.conv5_mask."),
    (r"mask_head\.logits\.", "mask_head.mask_fcn_logits."),
)
STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}
LAYERS = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "short"}
LINEAR = ("box_head.fc1.weight", "box_head.fc2.weight", "box_head.classes.weight", "box_head.deltas.weight")


def rename(name: str) -> str:
    layer, _, value = name.rpartition(".")
    name = f"{layer}.{STATISTICS.get(value, value)}"
    block = re.match(r"backbone\.stages\.(\d)\.(\d+)\.(conv\d|shortcut)\.((?:conv|norm)\.\w+)$", name)
    if block:
        stage, index, part, rest = block.groups()
        stage_name = f"res{int(stage) + 2}"
        return f"backbone.{stage_name}.{stage_name}{chr(ord('a') + int(index))}.{LAYERS[part]}.{rest}"
    for pattern, replacement in RENAMES:
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(f"no ppdet name for {name}")


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    return {rename(name): _value(name, value) for name, value in state.items()}


def _value(name: str, value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value.reshape(len(value), -1).T) if name in LINEAR else value
