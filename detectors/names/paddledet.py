"""Canonical weights to PaddleDetection (ppdet 2.6).

Classes and background in the same order, so only names change, and linear layers, which Paddle keeps as [in, out].

Its SOLOv2 registers some layers under two names, and has a bias in the head's deformable convolutions, as ours has with
its conventions; where a model of other conventions, or a published one of 2020-12, has none, it gets zeros. Its FCOS
always has a factor per level, as the first edition had: where the canonical model has none, it starts at 1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from . import transformers
from .rtdetr import to_paddledet

MODELS = frozenset(
    {
        "fcos_r50_fpn",
        "faster_rcnn_r50_fpn",
        "mask_rcnn_r50_fpn",
        "retinanet_r50_fpn",
        "solov2_r50_fpn",
        "solov2_r101_fpn",
        "solov2_light_r50_fpn",
        "solov2_light_r50_dcn_fpn",
        "solov2_light_r50_vd_fpn_dcn_512",
    }
)


def supports(model: str) -> bool:
    """The models of ``MODELS``, and RT-DETR."""
    return model in MODELS or transformers.supports(model)


#: Canonical name (a pattern) → ppdet's; the first that matches a beginning is applied.
RENAMES = (
    (r"backbone\.stem\.0\.", "backbone.conv1.conv1_1."),  # of ResNet-vd
    (r"backbone\.stem\.2\.", "backbone.conv1.conv1_2."),
    (r"backbone\.stem\.4\.", "backbone.conv1.conv1_3."),
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
    (
        r"mask_features\.branches\.(\d)\.(\d)\.",
        r"mask_head.conv_pre_feat\1.mask_feat_head.convs_all_levels.\1.conv\2.",
    ),
    (r"mask_features\.output\.", "mask_head.conv_pred."),
    (r"head\.class_convs\.", "solov2_head.bbox_head.cate_convs."),
    (r"head\.kernel_convs\.", "solov2_head.bbox_head.kernel_convs."),
    (r"head\.classes\.", "solov2_head.solo_cate."),
    (r"head\.kernels\.", "solov2_head.solo_kernel."),
)
#: Of RetinaNet and FCOS, whose pyramids begin at the second of the stages.
DENSE = (
    (r"neck\.lateral\.2\.", "neck.fpn_inner_res5_sum."),
    (r"neck\.lateral\.0\.", "neck.fpn_inner_res3_sum_lateral."),
    (r"neck\.lateral\.1\.", "neck.fpn_inner_res4_sum_lateral."),
    (r"neck\.output\.0\.", "neck.fpn_res3_sum."),
    (r"neck\.output\.1\.", "neck.fpn_res4_sum."),
    (r"neck\.output\.2\.", "neck.fpn_res5_sum."),
    (r"neck\.p(\d)\.", r"neck.fpn_\1."),
)
RETINANET = (
    *DENSE,
    (r"head\.class_tower\.(\d)\.", r"head.conv_feat.fcos_head_cls_tower_conv_\1.conv."),
    (r"head\.box_tower\.(\d)\.", r"head.conv_feat.fcos_head_reg_tower_conv_\1.conv."),
    (r"head\.classes\.", "head.retina_cls."),
    (r"head\.deltas\.", "head.retina_reg."),
)
FCOS = (
    *DENSE,
    (r"head\.class_tower\.(\d)\.", r"fcos_head.fcos_feat.fcos_head_cls_tower_conv_\1."),
    (r"head\.box_tower\.(\d)\.", r"fcos_head.fcos_feat.fcos_head_reg_tower_conv_\1."),
    (r"head\.classes\.", "fcos_head.fcos_head_cls."),
    (r"head\.deltas\.", "fcos_head.fcos_head_reg."),
    (r"head\.centreness\.", "fcos_head.fcos_head_centerness."),
)
FCOS_LEVELS = (3, 4, 5, 6, 7)
STATISTICS = {"running_mean": "_mean", "running_var": "_variance"}
LAYERS = {"conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c", "shortcut": "short"}
#: The other name of a layer that ppdet registers twice.
TWICE = {
    "mask_head.conv_pred.": "mask_head.mask_feat_head.conv_pred.0.",
    "solov2_head.solo_cate.": "solov2_head.bbox_head.solo_cate.",
    "solov2_head.solo_kernel.": "solov2_head.bbox_head.solo_kernel.",
}
LINEAR = ("box_head.fc1.weight", "box_head.fc2.weight", "box_head.classes.weight", "box_head.deltas.weight")


def rename(name: str, *, deep: bool = False, vd: bool = False, heads: Sequence[tuple[str, str]] = ()) -> str:
    """Its name for one of ours. Raises KeyError.

    ``heads``: patterns of this model that come before `RENAMES`. ``deep``: of a ResNet-101, whose many blocks of the
    third stage have numbers (ppdet's NameAdapter). ``vd``: of a ResNet-vd.
    """
    layer, _, value = name.rpartition(".")
    name = f"{layer}.{STATISTICS.get(value, value)}"
    block = re.match(r"backbone\.stages\.(\d)\.(\d+)\.(conv\d|shortcut)\.((?:conv|norm|offset)\.\w+)$", name)
    if block:
        number, index, part, rest = block.groups()
        stage = f"res{int(number) + 2}"
        letter = chr(ord("a") + int(index))
        if deep and stage == "res4" and index != "0":
            letter = f"b{index}"
        layer = LAYERS[part]
        if vd and part == "shortcut" and stage != "res2":
            layer = "short.conv"  # behind the pooling
        return f"backbone.{stage}.{stage}{letter}.{layer}.{rest.replace('offset.', 'conv_offset.')}"
    for pattern, replacement in (*heads, *RENAMES):
        renamed, count = re.subn(f"^{pattern}", replacement, name)
        if count:
            return renamed
    raise KeyError(f"no ppdet name for {name}")


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our weights in its names and shapes."""
    if transformers.supports(model):
        return to_paddledet(model, state)
    deep, vd = "101" in model, "_vd_" in model
    heads = RETINANET if model.startswith("retinanet") else FCOS if model.startswith("fcos") else ()
    converted = {
        rename(name, deep=deep, vd=vd, heads=heads): _value(model, name, value)
        for name, value in state.items()
        if not name.endswith((".num_batches_tracked", "head.scales"))  # torch's own; and FCOS's, one by one
    }
    if model.startswith("fcos"):
        scales = state.get("head.scales", np.ones(len(FCOS_LEVELS), np.float32))
        for level, scale in zip(FCOS_LEVELS, scales, strict=True):
            converted[f"fcos_head.p{level}_feat.scale_reg"] = np.reshape(scale, 1).astype(np.float32)
    return _solov2(model, converted) if model.startswith("solov2") else converted


def _solov2(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Names but for these are ppdet's already: deformable convolutions of the head, and second names."""
    converted = dict(state)
    if "dcn" in model:
        for name, value in state.items():
            if match := re.match(r"(solov2_head\..*_convs\.2\.)(conv|offset)\.(\w+)$", name):
                layer, part, kind = match.groups()
                own = "conv_dcn" if part == "conv" else "conv_offset"
                converted[f"{layer}conv.{own}.{kind}"] = converted.pop(name)
                if part == "conv" and f"{layer}conv.bias" not in state:
                    converted[f"{layer}conv.conv_dcn.bias"] = np.zeros(len(value), value.dtype)
    for name, value in state.items():
        for layer, other in TWICE.items():
            if name.startswith(layer):
                converted[other + name.removeprefix(layer)] = value
    return converted


def _value(model: str, name: str, value: np.ndarray) -> np.ndarray:
    if name in LINEAR:
        return np.ascontiguousarray(value.reshape(len(value), -1).T)
    if model.startswith("retinanet") and name.startswith(("head.classes.", "head.deltas.")):
        # Its anchors of a place are in order of size, then of ratio; ours of ratio, then of size: three of each.
        anchors = value.reshape(3, 3, -1, *value.shape[1:])
        return np.ascontiguousarray(anchors.swapaxes(0, 1)).reshape(value.shape)
    return value
