"""Launches are planned from the noise, and stopping early keeps the coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.errors import BenchError
from bench.judge.ratio import ratio
from bench.judge.stopping import Components, Until, best_rounds, components_of, launches_needed

SEEN = Components(launch_sd=0.01, round_sd=0.03)


def run(rng: np.random.Generator, launches: int, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    effects = rng.normal(0, SEEN.launch_sd, (launches, 1)) + rng.normal(0, SEEN.round_sd, (launches, rounds))
    return np.repeat(np.arange(launches), rounds), effects.ravel()


def test_the_components_of_launches_and_rounds_is_told_apart() -> None:
    found = components_of(*run(np.random.default_rng(0), 200, 5))
    assert found.launch_sd == pytest.approx(0.01, rel=0.2)
    assert found.round_sd == pytest.approx(0.03, rel=0.1)
    with pytest.raises(BenchError, match="two of them"):
        components_of([0, 0], [0.0, 0.1])


def test_the_planned_launches_give_the_width() -> None:
    needed = launches_needed(SEEN, rounds=5, half_width=0.01)
    widths = [ratio(*run(np.random.default_rng(seed), needed, 5)).high - 1 for seed in range(40)]
    assert np.median(widths) == pytest.approx(0.01, rel=0.2)
    assert launches_needed(SEEN, rounds=5, half_width=0.5) == 2


def test_rounds_are_worth_more_where_launches_are_dear() -> None:
    assert best_rounds(SEEN, launch_s=9.0, round_s=1.0) == 9
    assert best_rounds(SEEN, launch_s=1.0, round_s=1.0) == 3
    assert best_rounds(Components(0.0, 0.1), 1.0, 1.0) == 50


def test_stopping_at_a_width_keeps_the_coverage() -> None:
    rng = np.random.default_rng(1)
    until = Until.within(0.02, launches=30)
    held = naive = reached = 0
    for _ in range(200):
        launch, y = run(rng, 30, 3)
        progress = until.ask(launch[: 3 * 4], y[: 3 * 4])
        while progress.more_launches:
            count = 3 * (progress.ratio.launches + progress.more_launches)
            progress = until.ask(launch[:count], y[:count])
        count = progress.ratio.rounds
        plain = ratio(launch[:count], y[:count])
        reached += progress.reached
        held += progress.ratio.low <= 1 <= progress.ratio.high
        naive += plain.low <= 1 <= plain.high
    assert reached >= 150
    assert held >= 0.95 * 200
    assert naive <= held


def test_looks_end_at_the_most_launches() -> None:
    until = Until.within(0.03, 30)
    assert until.looks == (4, 6, 9, 14, 20, 30)
    assert until.confidence_of_a_look == pytest.approx(1 - 0.05 / 6)
    quiet = until.ask(np.arange(4), [0.0, 0.001, -0.001, 0.0])
    assert (quiet.reached, quiet.more_launches) == (True, 0)
    noisy = until.ask(np.arange(4), [0.0, 0.2, -0.2, 0.1])
    assert (noisy.reached, noisy.more_launches) == (False, 2)
    assert noisy.planned > 100


@pytest.mark.parametrize(("width", "launches"), [(0.03, 3), (0.0, 10), (math.inf, 10)])
def test_widths_that_cannot_be_reached_are_refused(width: float, launches: int) -> None:
    with pytest.raises(BenchError):
        Until.within(width, launches)
