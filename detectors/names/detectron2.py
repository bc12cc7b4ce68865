"""Canonical weights to detectron2 (`faster_rcnn_R_50_FPN_1x`, `mask_rcnn_R_50_FPN_1x`, and those of C4).

The same order of rows: background last, box offsets and masks of the K classes only; but its anchors of C4 are ordered
by size and then by ratio. Unless the model is in caffe style, its backbone has to be built with
`MODEL.RESNETS.STRIDE_IN_1X1: false`, or the same weights mean another network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

MODELS = frozenset(
    f"{kind}_rcnn_r50_{neck}" for kind in ("faster", "mask") for neck in ("fpn", "c4", "caffe_c4")
)
#: Ratios of C4's anchors.
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
)


def rename(name: str) -> str:
    """Its name for one of ours. Raises KeyError."""
    for pattern, replacement, start in RENAMES:
        if match := re.match(pattern, name):
            groups = match.groups()
            if groups:
                groups = (str(int(groups[0]) + start), *groups[1:])
            return replacement.format(*groups) + name[match.end() :]
    raise KeyError(f"no detectron2 name for {name}")


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our weights in its names and shapes."""
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
