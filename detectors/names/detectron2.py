"""Canonical weights to detectron2 (`retinanet`, `faster_rcnn` and `mask_rcnn_R_50_FPN_1x`, those of C4, and FCOS).

The same order of rows: background last, box offsets and masks of the K classes only; but its anchors of C4 and of
RetinaNet are ordered by size and then by ratio. Unless the model is in caffe style, its backbone has to be built with
`MODEL.RESNETS.STRIDE_IN_1X1: false`, or the same weights mean another network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

MODELS = frozenset(
    f"{kind}_rcnn_r50_{neck}" for kind in ("faster", "mask") for neck in ("fpn", "c4", "caffe_c4")
) | {"retinanet_r50_fpn", "fcos_r50_fpn"}
#: Ratios of the anchors of C4 and of RetinaNet.
RATIOS = 3


def supports(model: str) -> bool:
    """The models of ``MODELS``."""
    return model in MODELS


#: Canonical name (a pattern) → detectron2's, and where it starts to count what the first group counts from 0.
RENAMES = (
    (r"backbone\.stem\.conv\.", "backbone.bottom_up.stem.conv1.", 0),
    (r"backbone\.stem\.norm\.", "backbone.bottom_up.stem.conv1.norm.", 0),
    (r"backbone\.stages\.(\d)\.(\d+)\.(conv\d|shortcut)\.conv\.", "backbone.bottom_up.res{}.{}.{}.", 2),
    (r"backbone\.stages\.(\d)\.(\d+)\.(conv\d|shortcut)\.norm\.", "backbone.bottom_up.res{}.{}.{}.norm.", 2),
    (r"neck\.lateral\.(\d)\.", "backbone.fpn_lateral{}.", 2),
    (r"neck\.output\.(\d)\.", "backbone.fpn_output{}.", 2),
    (r"rpn\.conv\.", "proposal_generator.rpn_head.conv.", 0),
    (r"rpn\.objectness\.", "proposal_generator.rpn_head.objectness_logits.", 0),
    (r"rpn\.deltas\.", "proposal_generator.rpn_head.anchor_deltas.", 0),
    (r"box_head\.res5\.(\d)\.(conv\d|shortcut)\.conv\.", "roi_heads.res5.{}.{}.", 0),
    (r"box_head\.res5\.(\d)\.(conv\d|shortcut)\.norm\.", "roi_heads.res5.{}.{}.norm.", 0),
    (r"box_head\.fc(\d)\.", "roi_heads.box_head.fc{}.", 0),
    (r"box_head\.classes\.", "roi_heads.box_predictor.cls_score.", 0),
    (r"box_head\.deltas\.", "roi_heads.box_predictor.bbox_pred.", 0),
    (r"mask_head\.convs\.(\d)\.", "roi_heads.mask_head.mask_fcn{}.", 1),
    (r"mask_head\.upsample\.", "roi_heads.mask_head.deconv.", 0),
    (r"mask_head\.logits\.", "roi_heads.mask_head.predictor.", 0),
    (r"neck\.p(\d)\.", "backbone.top_block.p{}.", 0),
    (r"head\.classes\.", "head.cls_score.", 0),
    (r"head\.deltas\.", "head.bbox_pred.", 0),
    (r"head\.centreness\.", "head.ctrness.", 0),
)
#: Of a dense detector: the layers of its towers, and of its pyramid, which begins with P3.
TOWER = re.compile(r"head\.(class|box)_tower\.(\d)\.(conv\.|norm\.)?(\w+)$")
PYRAMID = re.compile(r"neck\.(lateral|output)\.(\d)\.(\w+)$")


def rename(name: str) -> str:
    """Its name for one of ours. Raises KeyError."""
    for pattern, replacement, start in RENAMES:
        if match := re.match(pattern, name):
            groups = match.groups()
            if groups:
                groups = (str(int(groups[0]) + start), *groups[1:])
            return replacement.format(*groups) + name[match.end() :]
    raise KeyError(f"no detectron2 name for {name}")


def dense_name(name: str) -> str:
    """Of RetinaNet and FCOS. One list holds a tower's convolutions, ReLUs, and FCOS's norms between them."""
    if tower := TOWER.match(name):
        branch, layer, part, value = tower.groups()
        place = 3 * int(layer) + (part == "norm.") if part else 2 * int(layer)
        return f"head.{'cls' if branch == 'class' else 'bbox'}_subnet.{place}.{value}"
    if pyramid := PYRAMID.match(name):
        kind, level, value = pyramid.groups()
        return f"backbone.fpn_{kind}{int(level) + 3}.{value}"
    return rename(name)


def source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """RetinaNet's pyramid has mmdetection's layers."""
    return {"conventions": "mmdet"} if model.startswith("retinanet") else {}


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our weights in its names and shapes."""
    if model.startswith(("retinanet", "fcos")):
        anchors = {"head.classes": len(state["head.classes.bias"]) // RATIOS**2, "head.deltas": 4}
        sides = anchors if model.startswith("retinanet") else {}
        return {
            dense_name(name): _by_size(value, sides.get(name.rpartition(".")[0]))
            for name, value in state.items()
        }
    if not model.endswith("c4"):
        return {
            rename(name): value.reshape(len(value), -1) if name == "box_head.fc1.weight" else value
            for name, value in state.items()
        }
    anchors = {"rpn.objectness": 1, "rpn.deltas": 4}
    return {
        rename(name).replace(".bottom_up", ""): _by_size(value, anchors.get(name.rpartition(".")[0]))
        for name, value in state.items()
    }


def _by_size(value: np.ndarray, sides: int | None) -> np.ndarray:
    """Rows [ratio, size, side] of the anchors of one position as [size, ratio, side]; other layers as they are."""
    if sides is None:
        return value
    parts = value.reshape(RATIOS, -1, sides, *value.shape[1:])
    return parts.swapaxes(0, 1).reshape(value.shape)
