"""Matching and sampling of boxes."""

from __future__ import annotations

import pytest
import torch

from detectors import build, list_models
from detectors.boxes import IGNORED, NEGATIVE, POSITIVE, match, pairwise_iou
from detectors.sampling import BalancedSampler


def test_an_object_that_no_box_overlaps_makes_no_box_positive() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [21, 20, 31, 30]])
    objects = torch.tensor([[[20.0, 20, 30, 36], [50, 50, 60, 60]]])
    index, role = match(
        pairwise_iou(objects, boxes),
        torch.ones(1, 2, dtype=bool),
        positive=0.7,
        negative=0.3,
        low_quality=True,
    )
    assert role.tolist() == [[NEGATIVE, POSITIVE, IGNORED]]
    assert index[0, 1] == 0


def test_sampling_fills_up_with_negatives() -> None:
    torch.manual_seed(0)
    role = torch.tensor(
        [[POSITIVE] * 3 + [NEGATIVE] * 20 + [IGNORED] * 9, [POSITIVE] * 20 + [NEGATIVE] * 3 + [IGNORED] * 9]
    )
    sample = BalancedSampler(16, 0.25)(role)
    assert sample.positive.sum(1).tolist() == [3, 4]
    assert sample.valid.sum(1).tolist() == [16, 7]
    for roles, index, positive, valid in zip(role, *sample, strict=True):
        chosen = index[valid]
        assert len(set(chosen.tolist())) == len(chosen)
        assert torch.equal(roles[chosen] == POSITIVE, positive[valid])
        assert (roles[chosen] != IGNORED).all()


def test_an_unknown_model_is_told_with_its_nearest_name() -> None:
    with pytest.raises(KeyError, match="mask_rcnn_r50_fpn"):
        build("mask_rcnn_r50")
    assert "faster_rcnn_r50_fpn" in list_models()
