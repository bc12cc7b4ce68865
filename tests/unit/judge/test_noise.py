"""Warnings about samples: they fire where something is wrong, and stay silent where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from bench.judge.noise import check
from tests.helpers.blocks import table

NOISES = {
    "normal": lambda rng, shape: rng.normal(0, 0.02, shape),
    "skewed": lambda rng, shape: np.log1p(0.02 * rng.lognormal(0, 1, shape)),
    "gamma": lambda rng, shape: np.log1p(rng.gamma(0.5, 0.03, shape)),
}


def quiet(launches: int = 4, rounds: int = 12, seed: int = 0) -> np.ndarray:
    return 0.1 * np.exp(np.random.default_rng(seed).normal(0, 0.01, (launches, rounds)))


def said(seconds: np.ndarray) -> str:
    return "; ".join(check(table(seconds)))


@pytest.mark.parametrize("rounds", [5, 12])
def test_a_quiet_measurement_gives_no_warning(rounds: int) -> None:
    assert sum(bool(check(table(quiet(3, rounds, seed)))) for seed in range(50)) <= 2


@pytest.mark.parametrize("noise", NOISES)
def test_ordinary_skew_is_neither_modes_nor_drift(noise: str) -> None:
    rng = np.random.default_rng(1)
    texts = [said(0.1 * np.exp(NOISES[noise](rng, (3, 10)))) for _ in range(80)]
    assert sum("two levels" in text or "round of a launch is" in text for text in texts) <= 6


def test_too_few_launches_and_rounds_are_named() -> None:
    assert "1 launch " in said(quiet(1, 3))
    assert "only 3 rounds" in said(quiet(1, 3))


def test_a_wide_spread_is_named() -> None:
    seconds = 0.1 * np.exp(np.random.default_rng(0).normal(0, 0.3, (4, 12)))
    assert "standard deviation" in said(seconds)


@pytest.mark.parametrize("rounds", [3, 5, 12])
def test_a_drift_is_reported_in_small_designs(rounds: int) -> None:
    texts = [said(quiet(3, rounds, seed) * np.linspace(1, 1.3, rounds)) for seed in range(8)]
    assert all("last round of a launch is" in text and "slower" in text for text in texts)


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_a_first_round_that_warms_up_is_reported(rounds: int) -> None:
    seconds = quiet(3, rounds)
    seconds[:, 0] *= 1.4
    text = said(seconds)
    assert "first round of a launch is" in text
    assert "left out of ratios" in text
    assert "outlier" not in text


@pytest.mark.parametrize("rounds", [3, 5, 12])
def test_launches_of_two_speeds_are_told_from_a_clock(rounds: int) -> None:
    by_launch = quiet(4, rounds) * np.array([[1.0], [1.15], [1.0], [1.15]])
    assert "launches differ" in said(by_launch)


def test_two_speeds_of_a_clock_are_reported() -> None:
    for rounds in (5, 12):
        alternating = quiet(3, rounds) * np.where(np.arange(rounds) % 2, 1.15, 1.0)
        text = said(alternating)
        assert "two levels" in text
        assert "clock" in text


@pytest.mark.parametrize("rounds", [3, 5, 12])
def test_outliers_are_counted_and_kept(rounds: int) -> None:
    seconds = quiet(3, rounds)
    seconds[1, 1] *= 1.5
    assert f"1 of {3 * rounds} blocks" in said(seconds)
    assert "kept" in said(seconds)


def test_an_arm_without_blocks_is_a_warning() -> None:
    assert check(table(quiet()).iloc[:0]) == ["no measured block; look at the arm's failure"]
