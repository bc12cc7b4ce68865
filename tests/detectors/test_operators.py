"""torchvision's operators as `detectors` calls them, against torchvision/ops/boxes.py and roi_align.py."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors import operators
from tests.conftest import ROOT


def boxes_of(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores without equal ones, of which torchvision leaves the order open, and groups."""
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * 100
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=random) * 60], dim=1)
    scores = torch.randperm(count, generator=random) / max(count, 1)
    return boxes, scores, torch.randint(5, (count,), generator=random)


@settings(deadline=None, max_examples=40)
@given(
    count=st.sampled_from([0, 1, 7, 300, 1_000, 1_001, 2_500]),
    seed=st.integers(0, 99),
    threshold=st.sampled_from([0.3, 0.5, 0.7]),
)
def test_the_boxes_kept_are_those_that_torchvision_keeps_in_its_order(
    count: int, seed: int, threshold: float
) -> None:
    from torchvision.ops import batched_nms

    boxes = boxes_of(count, seed)
    found = operators.batched_nms(*boxes, threshold)
    assert found.tolist() == batched_nms(*boxes, threshold).tolist()
    assert count < 1_000 or 0 < len(found) < count


@pytest.mark.parametrize("aligned", [False, True])
def test_masks_are_cut_out_as_torchvision_cuts_them(aligned: bool) -> None:
    from torchvision.ops import roi_align

    boxes = boxes_of(20, 0)[0]
    regions = torch.cat([torch.arange(20).remainder(3).unsqueeze(1).float(), boxes], dim=1)
    masks = (torch.rand(3, 1, 160, 160) < 0.5).float()
    found = operators.crop_and_resize(masks, regions, 28, aligned=aligned)
    torch.testing.assert_close(found, roi_align(masks, regions, (28, 28), aligned=aligned))


def fresh(program: str) -> Any:
    """What a program prints as JSON, in a process that has imported nothing else."""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_a_process_that_detects_has_no_compiler_in_its_memory() -> None:
    """160 MiB and two seconds of every process: what torchvision's package and torch's FLOP counter bring along."""
    program = """
import json, sys, torch
import detectors
model = detectors.build("faster_rcnn_r50_fpn").eval()
with torch.no_grad():
    sizes = torch.tensor([[64, 64]])
    model.postprocess(model.network(torch.rand(1, 3, 64, 64), sizes), [(64, 64)], [(64, 64)])
print(json.dumps([name for name in ("torchvision", "torch._dynamo", "triton") if name in sys.modules]))
"""
    assert fresh(program) == []


def test_torchvision_can_be_imported_before_and_after() -> None:
    for first, second in (("torchvision", "detectors"), ("detectors", "torchvision")):
        program = f"""
import json, torch, {first}, {second}
from torchvision.ops import nms, roi_align
features = torch.rand(1, 2, 9, 9, requires_grad=True)
roi_align(features, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], 2).sum().backward()
from detectors.operators import batched_nms
boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0]])
scores = torch.tensor([0.5, 0.9])
kept = [nms(boxes, scores, 0.5), batched_nms(boxes, scores, torch.zeros(2, dtype=torch.int64), 0.5)]
print(json.dumps([[*map(int, one)] for one in kept] + [float(features.grad.sum()) > 0]))
"""
        assert fresh(program) == [[1], [1], True]
