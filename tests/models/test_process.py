"""torchvision's operators as `detectors` calls them, against torchvision/ops/boxes.py and roi_align.py."""

from __future__ import annotations

import pytest

from tests.helpers.process import fresh


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


@pytest.mark.nightly
def test_torchvision_can_be_imported_before_and_after() -> None:
    for first, second in (("torchvision", "detectors"), ("detectors", "torchvision")):
        program = f"""
import json, torch, {first}, {second}
from torchvision.ops import nms, roi_align
features = torch.rand(1, 2, 9, 9, requires_grad=True)
roi_align(features, [torch.tensor([[0.0, 0.0, 8.0, 8.0]])], 2).sum().backward()
from detectors.cpu import nms as ours
boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0]])
scores = torch.tensor([0.5, 0.9])
kept = [nms(boxes, scores, 0.5), ours(boxes, scores, torch.zeros(2, dtype=torch.int64), 0.5)]
print(json.dumps([[*map(int, one)] for one in kept] + [float(features.grad.sum()) > 0]))
"""
        assert fresh(program) == [[1], [1], True]
