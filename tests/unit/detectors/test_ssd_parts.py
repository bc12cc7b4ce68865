"""How SSD matches, mines and chooses."""

from __future__ import annotations

import torch
from torchvision.models.detection._utils import SSDMatcher

from detectors.ssd import assign, best_of_groups, hardest


def test_every_object_gets_an_anchor() -> None:
    generator = torch.Generator().manual_seed(0)
    iou = torch.rand(3, 6, 40, generator=generator) * 0.6
    iou[0, :3, 7] = torch.tensor([0.9, 0.8, 0.7])  # three want the same anchor
    iou[1, 4] = 0.0  # overlaps nothing
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[2, 3:] = False
    index, positive = assign(iou, valid, 0.5)
    for image in range(3):
        overlapping = [g for g in range(6) if valid[image, g] and iou[image, g].max() > 0]
        expected = SSDMatcher(0.5)(iou[image, overlapping])
        assert torch.equal(positive[image], expected >= 0)
        assert torch.equal(index[image][positive[image]], torch.tensor(overlapping)[expected[expected >= 0]])
    assert index[0, 7] == 2


def test_mining_counts_three_negatives_per_positive_or_all_there_are() -> None:
    loss = torch.tensor([[5.0, 1.0, 4.0, 3.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]])
    positive = torch.tensor([[True, *[False] * 4], [False] * 5, [True, True, True, False, False]])
    assert hardest(loss, positive, 3).tolist() == [
        [False, False, True, True, True],
        [False] * 5,
        [False, False, False, True, True],
    ]


def test_the_best_of_groups_are_those_of_a_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, group = torch.rand(60, generator=generator), torch.randint(5, (60,), generator=generator)
    chosen = best_of_groups(scores, group, 4)
    for number in range(5):
        mine = chosen[group[chosen] == number]
        assert torch.equal(scores[mine], scores[group == number].sort(descending=True).values[:4])
    assert len(best_of_groups(scores[:0], group[:0], 4)) == 0
