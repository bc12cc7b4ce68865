"""The focal loss and the choice of scores."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from detectors.dense import best_scores, focal_loss


def test_the_focal_loss_equals_the_plain_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, size, 4, generator=generator, dtype=torch.float64) * 5 for size in (7, 3)]
    levels[0][0, 0] = torch.tensor([-200.0, 200.0, 0.0, 30.0])
    labels = torch.randint(5, (2, 10), generator=generator)
    labels[0, 0] = 1
    weight = torch.rand(2, 10, generator=generator, dtype=torch.float64)
    ours, plain = ([level.clone().requires_grad_() for level in levels] for _ in range(2))
    loss = focal_loss(ours, labels, weight)
    truth = nn.functional.one_hot(labels, 5)[..., :4].double()
    expected = (sigmoid_focal_loss(torch.cat(plain, dim=1), truth).sum(-1) * weight).sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_the_best_scores_are_those_of_a_full_sort(threshold: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, quality = torch.randn(50, 4, generator=generator), torch.randn(50, generator=generator)
    for trust in (None, quality):
        score = logits.sigmoid() if trust is None else (logits.sigmoid() * trust.sigmoid()[:, None]).sqrt()
        best, place = score.flatten().sort(descending=True)
        count = min(20, int((best > threshold).sum()))
        scores, anchors, labels = best_scores(logits, trust, threshold=threshold, limit=20)
        torch.testing.assert_close(scores, best[:count])
        assert torch.equal(anchors * 4 + labels, place[:count])
