"""Ratios, intervals, warnings and rounding, on simulated runs whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gmean

from bench.errors import BenchError
from bench.judge import ratio
from bench.judge.noise import check as noise_check
from bench.report.text import round_to_interval

RUNS = 2000
TRUE_RATIO = 1.1


def table(seconds: np.ndarray) -> pd.DataFrame:
    """Block times [launches, rounds] as `bench.record.samples.block_times` gives them."""
    launches, rounds = seconds.shape
    launch, round_ = np.divmod(np.arange(launches * rounds), rounds)
    return pd.DataFrame(
        {"launch": launch, "round": round_, "position": 0, "steps": 5, "s_per_step": seconds.ravel()}
    )


# -- coverage ----------------------------------------------------------------------------------------------

NOISES = {
    "normal": lambda rng, shape: rng.normal(0, 0.02, shape),
    "lognormal": lambda rng, shape: np.log1p(0.02 * rng.lognormal(0, 1, shape)),
    "gamma": lambda rng, shape: np.log1p(rng.gamma(0.5, 0.03, shape)),
}


def simulate(noise: str, launches: int, rounds: int, launch_sd: float, drift: float, seed: int) -> np.ndarray:
    """Log-ratios [RUNS, launches, rounds] of runs measured as the session measures: two arms a round, in
    flipping order.

    ``drift``: relative slowing of the machine over a launch (common to both arms); half of it a straight
    line, half a random walk, sampled at the moment each block is timed.
    """
    rng = np.random.default_rng(seed)
    shape = (RUNS, launches, 2 * rounds)  # blocks in order of time
    slope = drift * np.linspace(0, 1, 2 * rounds)
    walk = np.cumsum(rng.normal(0, drift / math.sqrt(2 * rounds), shape), axis=-1)
    log_s = (slope + walk) / 2 + NOISES[noise](rng, shape)
    first, second = log_s[..., 0::2], log_s[..., 1::2]
    arm_first = np.arange(rounds) % 2 == rng.integers(0, 2, (RUNS, launches, 1))
    arm, baseline = np.where(arm_first, first, second), np.where(arm_first, second, first)
    return math.log(TRUE_RATIO) + rng.normal(0, launch_sd, (RUNS, launches, 1)) + baseline - arm


def coverage(log_ratios: np.ndarray, resamples: int = ratio.RESAMPLES) -> float:
    runs, launches, rounds = log_ratios.shape
    launch = np.repeat(np.arange(launches), rounds)
    found = (ratio.ratio(launch, run.ravel(), resamples=resamples) for run in log_ratios)
    return sum(ratio.low <= TRUE_RATIO <= ratio.high for ratio in found) / runs


@pytest.mark.parametrize(
    ("noise", "launches", "rounds", "launch_sd", "drift"),
    [
        ("normal", 2, 3, 0.0, 0.0),
        ("normal", 3, 5, 0.01, 0.0),
        ("normal", 3, 10, 0.0, 0.10),
        ("normal", 5, 4, 0.01, 0.10),
        ("lognormal", 2, 10, 0.01, 0.0),
        ("lognormal", 4, 5, 0.0, 0.10),
        ("gamma", 3, 5, 0.0, 0.0),
        ("gamma", 6, 20, 0.01, 0.10),
        ("gamma", 5, 3, 0.005, 0.0),
    ],
)
def test_a_95_percent_interval_that_does_not_cover_95_percent_would_make_every_report_a_lie(
    noise: str, launches: int, rounds: int, launch_sd: float, drift: float
) -> None:
    share = coverage(simulate(noise, launches, rounds, launch_sd, drift, seed=launches * 100 + rounds))
    assert 0.93 <= share <= 0.97


def test_one_launch_covers_its_own_rounds_but_says_that_it_does_not_cover_launches() -> None:
    own = coverage(simulate("normal", 1, 8, 0.0, 0.0, seed=5), resamples=500)
    other = coverage(simulate("normal", 1, 8, 0.02, 0.0, seed=5), resamples=500)
    assert 0.93 <= own <= 0.97
    assert other < 0.85  # what `method` and `check` warn of
    assert "without launch-to-launch variation" in ratio.ratio([0, 0, 0], [0.0, 0.1, 0.2]).method


def test_launches_of_unequal_length_after_an_interruption_keep_the_interval_honest() -> None:
    full = simulate("normal", 4, 8, 0.01, 0.0, seed=7)
    launch = np.repeat(np.arange(4), [8, 8, 8, 4])
    runs = [run.ravel()[:28] for run in full]
    found = [ratio.ratio(launch, run, resamples=500) for run in runs]
    assert 0.93 <= np.mean([ratio.low <= TRUE_RATIO <= ratio.high for ratio in found]) <= 0.97


def test_the_detectable_effect_is_found_in_four_of_five_runs() -> None:
    launch = np.repeat(np.arange(5), 6)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.005, (400, 5, 1)) + rng.normal(0, 0.02, (400, 5, 6))
    promised = np.median([ratio.ratio(launch, run.ravel(), resamples=500).detectable for run in noise])
    seen = [ratio.ratio(launch, math.log1p(promised) + run.ravel(), resamples=500).low > 1 for run in noise]
    assert 0.7 <= np.mean(seen) <= 0.9


# -- properties --------------------------------------------------------------------------------------------

positive = st.floats(0.01, 1.0)


@st.composite
def two_arms(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    launches, rounds = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    cells = st.lists(positive, min_size=launches * rounds, max_size=launches * rounds)
    shape = (launches, rounds)
    return np.array(draw(cells)).reshape(shape), np.array(draw(cells)).reshape(shape)


def close(left: float, right: float) -> bool:
    return left == right or math.isclose(left, right, rel_tol=1e-4)


@settings(deadline=None, max_examples=60)
@given(two_arms())
def test_swapping_arm_and_baseline_inverts_the_ratio_and_its_interval(
    arms: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = map(table, arms)
    forth, back = ratio.compare(a, b), ratio.compare(b, a)
    assert close(forth.value, 1 / back.value)
    assert close(forth.low, 1 / back.high if back.high < math.inf else 0.0)
    assert close(forth.high, 1 / back.low if back.low > 0 else math.inf)


@settings(deadline=None, max_examples=60)
@given(two_arms(), st.floats(1e-3, 1e3))
def test_the_unit_of_time_and_the_speed_of_the_machine_do_not_change_a_ratio(
    arms: tuple[np.ndarray, np.ndarray], scale: float
) -> None:
    plain, scaled = ratio.compare(*map(table, arms)), ratio.compare(*(table(arm * scale) for arm in arms))
    assert close(plain.value, scaled.value)
    assert math.isclose(plain.low, scaled.low, rel_tol=1e-4)
    assert plain.high == scaled.high or math.isclose(plain.high, scaled.high, rel_tol=1e-4)


@settings(deadline=None, max_examples=60)
@given(two_arms(), st.randoms(use_true_random=False))
def test_the_order_in_which_launches_and_rounds_are_stored_does_not_change_a_ratio(arms, random) -> None:
    a, b = map(table, arms)
    launches = arms[0].shape[0]
    names = list(range(launches))
    random.shuffle(names)
    renamed = [
        t.assign(launch=t["launch"].map(dict(enumerate(names)))).sample(frac=1, random_state=1)
        for t in (a, b)
    ]
    plain, shuffled = ratio.compare(a, b), ratio.compare(*renamed)
    assert close(plain.value, shuffled.value)
    assert math.isclose(plain.low, shuffled.low, rel_tol=1e-4)
    assert plain.high == shuffled.high or math.isclose(plain.high, shuffled.high, rel_tol=1e-4)


@settings(deadline=None, max_examples=60)
@given(two_arms())
def test_the_interval_contains_its_value_and_the_value_is_the_geometric_mean(arms) -> None:
    found = ratio.compare(*map(table, arms))
    assert 0 <= found.low <= found.value <= found.high
    assert math.isclose(found.value, gmean((arms[1] / arms[0]).ravel()), rel_tol=1e-9)
    assert found.detectable >= 0


def test_a_ratio_above_one_means_that_the_arm_is_faster() -> None:
    fast, slow = table(np.full((3, 5), 0.1)), table(np.full((3, 5), 0.2))
    found = ratio.compare(fast, slow)
    assert found.value == pytest.approx(2.0)
    assert found.differs


def test_doubling_and_halving_average_to_one_and_not_to_five_quarters() -> None:
    assert ratio.ratio([0, 1], np.log([2.0, 0.5])).value == pytest.approx(1.0)


def test_constant_times_give_an_interval_without_width_instead_of_a_crash() -> None:
    found = ratio.compare(table(np.full((3, 4), 0.25)), table(np.full((3, 4), 0.25)))
    assert (found.value, found.low, found.high, found.detectable) == (1.0, 1.0, 1.0, 0.0)


def test_a_single_round_claims_nothing() -> None:
    found = ratio.compare(table(np.array([[0.2]])), table(np.array([[0.3]])))
    assert found.value == pytest.approx(1.5)
    assert (found.low, found.high, found.detectable) == (0.0, math.inf, math.inf)


def test_rounds_that_only_one_arm_has_are_left_out_and_counted() -> None:
    arm, baseline = table(np.full((2, 3), 0.1)), table(np.full((2, 3), 0.2))
    pairs = ratio.pair(arm.iloc[:-2], baseline.iloc[1:])
    assert pairs.log_ratio == pytest.approx(np.full(3, math.log(2)))
    assert list(pairs.launch) == [0, 0, 1]
    assert pairs.unpaired == 3


def test_arms_without_a_common_round_are_an_error_that_says_so() -> None:
    arm = table(np.full((1, 2), 0.1))
    with pytest.raises(BenchError, match="no round measured both arms"):
        ratio.compare(arm, arm.assign(launch=1))


def test_a_damaged_block_time_is_not_averaged_in() -> None:
    arm = table(np.array([[0.1, 0.0]]))
    with pytest.raises(BenchError, match="positive"):
        ratio.compare(arm, arm)


def test_the_cost_of_ema_is_its_share_of_the_step() -> None:
    with_ema, without = table(np.full((3, 5), 0.10)), table(np.full((3, 5), 0.08))
    found = ratio.cost(ratio.compare(with_ema, without))
    assert found.share == pytest.approx(0.2)
    assert found.low <= found.share <= found.high


# -- summaries ---------------------------------------------------------------------------------------------


def test_a_step_lasts_as_long_as_its_slowest_rank_and_warm_up_is_not_counted() -> None:
    rows = [
        (0, -1, 0, 0, 0, 0, 9_000_000_000),
        (0, 0, 0, 0, 0, 0, 100_000_000),
        (0, 0, 0, 1, 0, 0, 300_000_000),
    ]
    columns = ["launch", "round", "position", "rank", "step", "start_ns", "duration_ns"]
    seconds = ratio.step_seconds(pd.DataFrame(rows, columns=columns))
    assert seconds == pytest.approx([0.3])
    assert ratio.summarize(seconds, images_per_step=6).images_per_s == pytest.approx(20.0)


def test_a_summary_shows_the_spread_beside_the_median() -> None:
    found = ratio.summarize(np.arange(1.0, 102.0), images_per_step=2)
    assert (found.p5_s, found.median_s, found.p95_s, found.n) == (6.0, 51.0, 96.0, 101)


# -- warnings ----------------------------------------------------------------------------------------------


def quiet(launches: int = 4, rounds: int = 12, seed: int = 0) -> np.ndarray:
    return 0.1 * np.exp(np.random.default_rng(seed).normal(0, 0.01, (launches, rounds)))


def test_a_quiet_measurement_gives_no_warning() -> None:
    alarms = sum(bool(noise_check(table(quiet(seed=seed)))) for seed in range(100))
    assert alarms <= 2


@pytest.mark.parametrize("noise", ["normal", "lognormal", "gamma"])
def test_ordinary_skew_is_not_reported_as_two_modes_or_drift(noise: str) -> None:
    rng = np.random.default_rng(1)
    seconds = (0.1 * np.exp(NOISES[noise](rng, (3, 10))) for _ in range(200))
    alarms = [w for s in seconds for w in noise_check(table(s)) if "two levels" in w or "last third" in w]
    assert len(alarms) <= 6


def test_too_few_launches_and_rounds_are_named_with_their_number() -> None:
    found = " ".join(noise_check(table(quiet(1, 3))))
    assert "1 launch " in found
    assert "only 3 rounds" in found


def test_a_wide_spread_is_named() -> None:
    seconds = 0.1 * np.exp(np.random.default_rng(0).normal(0, 0.3, (4, 12)))
    assert any("standard deviation" in warning for warning in noise_check(table(seconds)))


def test_a_machine_that_slows_down_while_measuring_is_reported() -> None:
    drifting = quiet() * np.linspace(1, 1.1, 12)
    assert any("last third" in warning and "slower" in warning for warning in noise_check(table(drifting)))
    assert not any("last third" in warning for warning in noise_check(table(quiet())))


def test_two_speeds_of_a_clock_are_reported_and_told_from_launches_that_differ() -> None:
    alternating = quiet() * np.where(np.arange(12) % 2, 1.1, 1.0)
    by_launch = quiet() * np.array([[1.0], [1.1], [1.0], [1.1]])
    assert any("two levels" in warning and "clock" in warning for warning in noise_check(table(alternating)))
    assert any("launches differ" in warning for warning in noise_check(table(by_launch)))


def test_outliers_are_counted_and_kept() -> None:
    seconds = quiet()
    seconds[1, 4] *= 1.5
    assert any("1 of 48 blocks" in warning and "kept" in warning for warning in noise_check(table(seconds)))


def test_an_arm_without_blocks_is_a_warning_and_not_a_crash() -> None:
    assert noise_check(table(quiet()).iloc[:0]) == ["no measured block; look at the arm's failure"]


# -- rounding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.23456, 1.20, 1.27, "1.23"),
        (1.23456, 1.22, 1.25, "1.235"),
        (12345.6, 12225.0, 12465.0, "12350"),
        (0.0123456, 0.0120, 0.0127, "0.0123"),
        (1.5, 0.0, math.inf, "1.5"),
        (1.5, 1.5, 1.5, "1.50000"),
        (-0.0001, -0.3, 0.3, "0.0"),
        (math.inf, 0.0, math.inf, "inf"),
        (math.nan, 0.0, 1.0, "nan"),
        (0.0, 0.0, 0.0, "0"),
    ],
)
def test_a_number_shows_the_digits_its_interval_supports(
    value: float, low: float, high: float, text: str
) -> None:
    assert round_to_interval(value, low, high) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_rounding_never_moves_a_number_by_more_than_a_quarter_of_its_half_width(
    value: float, half: float
) -> None:
    shown = float(round_to_interval(value, value - half, value + half))
    assert abs(shown - value) <= max(0.26 * half, 1e-5 * abs(value))
