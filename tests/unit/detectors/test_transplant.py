"""Canonical weights to a codebase's own names; what the values do there is in test_rcnn_vs_torchvision.py."""

from __future__ import annotations

import numpy as np
import pytest

from bench.errors import BenchError
from bench.inputs.weights import source_options, supports, to_codebase


def test_background_moves_from_the_last_row_to_the_first() -> None:
    state = {
        "box_head.classes.bias": np.array([1.0, 2.0, 9.0]),
        "box_head.deltas.bias": np.arange(8.0),
        "mask_head.logits.bias": np.array([5.0, 6.0]),
    }
    mapped = to_codebase("torchvision", "mask_rcnn_r50_fpn", state)
    assert mapped["roi_heads.box_predictor.cls_score.bias"].tolist() == [9, 1, 2]
    assert mapped["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0, 0, 0, 0, *range(8)]
    assert mapped["roi_heads.mask_predictor.mask_fcn_logits.bias"].tolist() == [0, 5, 6]


def test_a_model_without_a_mapping_is_not_supported() -> None:
    assert supports("native", "faster_rcnn_r50_fpn")
    assert not supports("torchvision", "no_such_model")
    assert not supports("no_such_codebase", "faster_rcnn_r50_fpn")
    assert not supports("../torchvision", "faster_rcnn_r50_fpn")
    with pytest.raises(BenchError, match="have no mapping"):
        to_codebase("no_such_codebase", "faster_rcnn_r50_fpn", {})


def test_arms_start_from_weights_of_their_own_convention() -> None:
    mmdets = {"conventions": "mmdet"}
    assert source_options("mmdet", "retinanet_r50_fpn", {}) == mmdets
    assert source_options("native", "retinanet_r50_fpn", mmdets) == mmdets
    assert source_options("native", "retinanet_r50_fpn", {"channels_last": True}) == {}
    # The same layers with all conventions: one set of weights for all.
    assert source_options("mmdet", "faster_rcnn_r50_fpn", {}) == {}
    assert source_options("native", "faster_rcnn_r50_fpn", mmdets) == {}
    assert source_options("torchvision", "retinanet_r50_fpn", {}) == {}
    assert source_options("no_such_codebase", "retinanet_r50_fpn", {}) == {}
