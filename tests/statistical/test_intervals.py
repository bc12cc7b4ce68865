"""Coverage of intervals at full size: the table of docs/explanation/ratios-and-intervals.md."""

from __future__ import annotations

import pytest

from bench.judge.ratio import ratio
from benchmarks.images import coverage as ap_coverage
from benchmarks.intervals import coverage
from benchmarks.noises import NOISES

RUNS = 4000
LEAST = 0.94 - 3 * (0.06 * 0.94 / RUNS) ** 0.5
HONEST = [name for name in NOISES if "two modes" not in name and "one arm" not in name]


@pytest.mark.parametrize("design", [(2, 3), (3, 3), (3, 5), (4, 3), (6, 5), (12, 5)])
@pytest.mark.parametrize("noise", HONEST)
def test_interval_covers_the_truth(noise: str, design: tuple[int, int]) -> None:
    assert coverage(ratio, NOISES[noise], design, RUNS)[0] >= LEAST


@pytest.mark.parametrize("design", [(6, 5), (12, 5)])
def test_even_modes_are_covered_from_six_launches_on(design: tuple[int, int]) -> None:
    noise = NOISES["two modes of launches, 5 % apart, 1 : 1"]
    assert coverage(ratio, noise, design, RUNS)[0] >= LEAST


def test_documented_gaps_are_no_wider_than_the_docs_say() -> None:
    assert coverage(ratio, NOISES["two modes of launches, 5 % apart, 1 : 1"], (3, 5), RUNS)[0] >= 0.70
    assert coverage(ratio, NOISES["two modes of launches, 5 % apart, 1 : 3"], (12, 5), RUNS)[0] >= 0.90
    assert coverage(ratio, NOISES["bursts in one arm"], (6, 5), RUNS)[0] >= 0.78


@pytest.mark.parametrize("images", [4, 8, 20, 50])
def test_ap_of_few_images_is_covered(images: int) -> None:
    assert ap_coverage(images, runs=400, replicates=200)[1] >= 0.94 - 3 * (0.06 * 0.94 / 400) ** 0.5
