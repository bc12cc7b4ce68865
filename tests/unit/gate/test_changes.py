"""Change points of series whose truth is known."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.gate.changes import change_points
from benchmarks.gate import history
from benchmarks.gate.annotated import hits, score


def series(*levels: tuple[float, int], seed: int = 0, sd: float = 0.01) -> np.ndarray:
    """Seconds per iteration: so many runs at each level, with relative noise."""
    rng = np.random.default_rng(seed)
    return np.concatenate([level * np.exp(rng.normal(0, sd, runs)) for level, runs in levels])


def test_a_lasting_slowdown_is_found_with_its_size() -> None:
    for seed in range(8):
        (found,) = change_points(series((1.0, 20), (1.1, 15), seed=seed), "lower")
        assert abs(found.index - 20) <= 1
        assert found.change == pytest.approx(0.1, abs=0.02)
        assert found.direction == "regression"


def test_the_direction_is_that_of_the_metric() -> None:
    directions = [p.direction for p in change_points(series((100, 15), (90, 15), (105, 15)), "higher")]
    assert directions == ["regression", "improvement"]


def test_a_spike_neither_is_nor_hides_a_change() -> None:
    for seed in range(8):
        quiet = series((1.0, 30), seed=seed)
        quiet[[9, 20]] *= 1.5
        assert change_points(quiet, "lower") == []
        stepped = series((1.0, 20), (1.08, 20), seed=seed)
        stepped[[5, 30]] *= 1.5
        assert [abs(p.index - 20) <= 1 for p in change_points(stepped, "lower")] == [True]


def test_spike_in_newest_run_does_not_alarm_before_it_lasts() -> None:
    values = series((1.0, 20))
    values[-1] *= 1.4
    assert change_points(values, "lower") == []


@pytest.mark.parametrize("runs", [16, 60])
def test_wandering_noise_is_seldom_called_a_change(runs: int) -> None:
    """At full size in tests/statistical."""
    series_ = history.autocorrelated(np.random.default_rng(0), 60, runs)
    assert sum(bool(change_points(values, "lower")) for values in series_) <= 6


def test_changes_too_small_to_matter_are_left_out() -> None:
    values = series((1.0, 40), (1.01, 40), sd=0.001)
    assert change_points(values, "lower") == []
    assert len(change_points(values, "lower", min_change=0.005)) == 1


def test_the_suspects_hold_the_commit_that_did_it() -> None:
    held, widths = 0, []
    for seed in range(60):
        found = change_points(series((1.0, 20), (1.04, 20), seed=seed, sd=0.015), "lower")
        nearest = min(found, key=lambda point: abs(point.index - 20), default=None)
        if nearest:
            first, last = nearest.suspects
            assert first <= nearest.index <= last
            held += first <= 20 <= last
            widths.append(last - first)
    assert len(widths) >= 50
    assert held >= 0.9 * len(widths)
    assert np.median(widths) <= 6


def test_a_step_without_noise_is_found_exactly() -> None:
    (found,) = change_points([1.0] * 8 + [1.2] * 8, "lower")
    assert (found.index, found.suspects) == (8, (8, 8))


def test_a_short_or_constant_history_is_no_crash() -> None:
    assert change_points([], "lower") == []
    assert change_points([1.0, 2.0, 3.0], "lower") == []
    assert change_points([1.0] * 30, "lower") == []


def test_failed_run_has_to_be_left_out_by_caller() -> None:
    with pytest.raises(BenchError, match="positive finite"):
        change_points([1.0] * 10 + [float("nan")], "lower")


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e6))
def test_unit_of_metric_does_not_move_its_change_points(seed: int, scale: float) -> None:
    values = series((1.0, 12), (1.1, 12), (1.0, 12), seed=seed, sd=0.02)
    indices = [point.index for point in change_points(values, "lower")]
    assert [point.index for point in change_points(values * scale, "lower")] == indices


@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(1e-3, 1e3), min_size=0, max_size=60))
def test_any_series_gives_ordered_changes_of_the_asked_size(values: list[float]) -> None:
    found = change_points(values, "lower", min_change=0.05)
    assert [point.index for point in found] == sorted({point.index for point in found})
    assert all(abs(np.log(point.after / point.before)) >= np.log1p(0.05) * 0.999 for point in found)


def test_a_long_series_of_equal_values_takes_no_time() -> None:
    begin = time.process_time()
    values = np.full(2000, 1507.0)
    assert change_points(values, "lower") == []
    values[500] *= 1.5
    values[1000:] *= 1.1
    (found,) = change_points(values, "lower")
    assert found.index == 1000
    assert time.process_time() - begin < 2


def test_marks_of_people_score_a_search() -> None:
    marks = [{10, 50}, {12}, set()]
    assert score(marks, []) == (1.0, pytest.approx((1 / 3 + 1 / 2 + 1) / 3))
    assert score(marks, [11, 80]) == (2 / 3, pytest.approx((2 / 3 + 1 + 1) / 3))
    assert hits({10, 12}, [11]) == 1, "one found change is no two"
