"""What the losses of the RPN are averaged over."""

from __future__ import annotations

import pytest
import torch

from detectors.conventions import conventions_named
from detectors.pyramid import Pyramid
from detectors.rpn import RPN
from detectors.structures import GroundTruth, Target


def test_mmdet_averages_over_one_more_anchor_without_positives() -> None:
    """mmdet/models/task_modules/samplers/sampling_result.py: ``num_pos = max(pos_inds.numel(), 1)``."""
    torch.manual_seed(0)
    scales, size = ((16,), (32,)), (64, 64)
    empty = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    full = Target(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.zeros(1, dtype=torch.int64))
    truth = GroundTruth.from_targets([full, empty], torch.device("cpu"))
    maps = [torch.randn(2, 8, 16, 16), torch.randn(2, 8, 8, 8)]
    losses = {}
    for least in (0, 1):
        torch.manual_seed(1)
        rpn = RPN(8, scales=scales, least_positives=least)
        torch.manual_seed(2)
        found = rpn.losses(Pyramid(maps), truth, torch.tensor([size, size]), size)
        losses[least] = float(found["loss_objectness"].detach())
    assert losses[0] / losses[1] == pytest.approx((2 * 256 + 1) / (2 * 256), rel=1e-6)


def test_fcos_and_ssd_have_no_conventions_of_paddledetection() -> None:
    assert conventions_named("paddledet").forced_iou == 0
    with pytest.raises(ValueError, match=r"there are torchvision, mmdet$"):
        conventions_named("paddledet", no_paddledet=True)
