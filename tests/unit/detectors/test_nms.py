"""torchvision's operators as `detectors` calls them, against torchvision/ops/boxes.py and roi_align.py."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detectors import rpn
from detectors.cpu import crop_and_resize, nms


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
def test_the_boxes_kept_are_torchvisions(count: int, seed: int, threshold: float) -> None:
    from torchvision.ops import batched_nms

    boxes = boxes_of(count, seed)
    found = nms(*boxes, threshold)
    assert found.tolist() == batched_nms(*boxes, threshold).tolist()
    assert count < 1_000 or 0 < len(found) < count


@pytest.mark.parametrize("aligned", [False, True])
def test_masks_are_cut_out_as_torchvision_cuts_them(aligned: bool) -> None:
    from torchvision.ops import roi_align

    boxes = boxes_of(20, 0)[0]
    regions = torch.cat([torch.arange(20).remainder(3).unsqueeze(1).float(), boxes], dim=1)
    masks = (torch.rand(3, 1, 160, 160) < 0.5).float()
    found = crop_and_resize(masks, regions, 28, aligned=aligned)
    torch.testing.assert_close(found, roi_align(masks, regions, (28, 28), aligned=aligned))


def test_boxes_too_small_are_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, scores, _ = boxes_of(300, 0)
    scores[::3] = -1.0  # what the network's proposals of no size get
    offered = []

    def watched(boxes: Tensor, *rest: Tensor | float) -> Tensor:
        offered.append(len(boxes))
        return nms(boxes, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(rpn, "nms", watched)
    found, valid, _ = rpn.RPN(8)._suppress(
        boxes[None], scores[None], torch.zeros(300, dtype=torch.int64), 300
    )
    assert offered == [200]
    large = scores >= 0
    kept = nms(boxes[large], scores[large], torch.zeros(200, dtype=torch.int64), 0.7)
    assert torch.equal(found[valid], boxes[large][kept])
