"""What SOLOv2 learns from, and how it suppresses duplicates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from detectors import Target
from detectors.drop_block import DropBlock
from detectors.matrix_nms import keep_local_peaks, matrix_nms
from detectors.solov2 import coordinates
from detectors.solov2_targets import assign, quarter_masks
from tests.helpers.models import random_target
from tests.helpers.solov2 import CLASSES, LEVELS, cells_in_a_loop, matrix_nms_in_a_loop, small_model


@pytest.mark.parametrize("size", [(96, 160), (64, 64)])
@pytest.mark.parametrize("seed", range(6))
def test_objects_are_learned_by_the_cells_of_a_loop(seed: int, size: tuple[int, int]) -> None:
    target = random_target(seed, size)
    (assigned,) = assign([target], LEVELS, CLASSES, size)
    first = found = 0
    for level in LEVELS:
        labels, pairs = cells_in_a_loop(target, level)
        last = first + level.cells**2
        assert np.array_equal(assigned.labels[first:last].numpy(), labels.flatten())
        here = (assigned.cell >= first) & (assigned.cell < last)
        cells = (assigned.cell[here] - first).tolist()
        assert list(zip(cells, assigned.object[here].tolist(), strict=True)) == pairs
        first, found = last, found + len(pairs)
    assert found == len(assigned.cell) > 10


def test_an_image_without_objects_or_pixels_has_no_positive_cell() -> None:
    empty = Target(
        torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([1]), torch.zeros(1, 64, 64, dtype=torch.uint8)
    )
    for target in (empty, random_target(0, (64, 64), objects=0)):
        (assigned,) = assign([target], LEVELS, CLASSES, (64, 64))
        assert len(assigned.cell) == len(assigned.object) == 0
        assert (assigned.labels == CLASSES).all()


def test_a_quarter_of_a_mask_is_the_rounded_mean() -> None:
    masks = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (3, 18, 24), dtype=np.uint8))
    quarter = quarter_masks(masks, (5, 6))
    for number in range(3):
        for row in range(5):
            for column in range(6):
                middle = masks[number, 4 * row + 1 : 4 * row + 3, 4 * column + 1 : 4 * column + 3]
                assert quarter[number, row, column] == math.floor(middle.sum() / 4 + 0.5)


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_matrix_nms_lowers_scores_as_the_papers_equations_say(kernel: str) -> None:
    target = random_target(4, (32, 48), objects=25)
    masks = target.masks[target.masks.sum(dim=(1, 2)) > 0].flatten(1)
    masks = torch.cat([masks, masks[:2]])  # duplicates
    labels = torch.cat([target.labels[: len(masks) - 2], target.labels[:2]])
    scores = torch.linspace(0.9, 0.1, len(masks))
    decayed = matrix_nms(masks.float(), labels, scores, kernel=kernel)
    expected = matrix_nms_in_a_loop(masks.numpy(), labels.numpy(), scores.numpy(), kernel)
    np.testing.assert_allclose(decayed.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert (decayed < 0.99 * scores).sum() > 5
    assert len(matrix_nms(masks[:0].float(), labels[:0], scores[:0])) == 0


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_many_copies_of_one_mask_leave_one_and_no_nan(kernel: str) -> None:
    masks = torch.ones(5, 12)
    scores = matrix_nms(masks, torch.zeros(5, dtype=torch.int64), torch.full((5,), 0.8), kernel=kernel)
    assert scores[0] == pytest.approx(0.8)
    assert scores[1:].max() < 0.2
    with pytest.raises(ValueError, match="gaussian"):
        matrix_nms(masks, torch.zeros(5), torch.ones(5), kernel="hard")


def test_of_neighbouring_cells_only_the_best_keeps_its_score() -> None:
    scores = torch.rand(2, 3, 7, 7, generator=torch.Generator().manual_seed(0))
    kept = keep_local_peaks(scores)
    for image, label, row, column in np.ndindex(2, 3, 7, 7):
        around = scores[image, label, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
        own = scores[image, label, row, column]
        assert kept[image, label, row, column] == (own if own == around.max() else 0)


def test_mask_features_are_the_sum_of_all_levels() -> None:
    model = small_model().mask_features
    maps = [torch.randn(2, 32, 16 // 2**level, 32 // 2**level) for level in range(4)]
    total = torch.zeros(())
    for level, convs in enumerate(model.branches):
        x = maps[level]
        if level == 3:
            x = torch.cat([x, coordinates(x).expand(2, -1, -1, -1)], dim=1)
        for conv in convs:
            x = F.relu(conv(x))
            if level > 0:
                x = F.interpolate(x, scale_factor=2.0, mode="bilinear")
        total = total + x
    torch.testing.assert_close(model(maps), F.relu(model.output(total)))


def test_drop_block_takes_squares_away_while_training() -> None:
    torch.manual_seed(0)
    block, x = DropBlock(size=3, keep=0.9), torch.ones(4, 16, 24, 24)
    dropped = block(x)
    assert 0.08 < (dropped == 0).float().mean() < 0.12
    assert dropped.mean().item() == pytest.approx(1, abs=1e-4)
    missing = (dropped == 0).float()
    centres = F.avg_pool2d(F.pad(missing, (1, 1, 1, 1), value=1.0), 3, stride=1) == 1
    # All that is missing is part of a square of nine, of which some may be outside.
    assert torch.equal(F.max_pool2d(centres.float(), 3, stride=1, padding=1), missing)
    assert torch.equal(block.eval()(x), x)
