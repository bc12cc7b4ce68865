"""Ratios and their intervals: properties, and coverage of a few simulated runs."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import gmean, ttest_1samp

from bench.errors import BenchError
from bench.judge import ratio
from bench.judge.steady import warms_up
from benchmarks import intervals, noises
from tests.helpers.blocks import table


def compare(arm: pd.DataFrame, baseline: pd.DataFrame) -> ratio.Ratio:
    pairs = ratio.pair(arm, baseline)
    return ratio.ratio(pairs.launch, pairs.log_ratio)


# -- the interval --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", [(2, 3), (3, 3), (3, 5), (6, 5)])
@pytest.mark.parametrize("noise", ["normal", "AR(1) 0.8 in a launch", "bursts in both arms", "heavy tails"])
def test_interval_covers_under_rough_noise(noise: str, design: tuple[int, int]) -> None:
    held, _ = intervals.coverage(ratio.ratio, noises.NOISES[noise], design, runs=250)
    assert held >= 0.90  # 0.94 with the error of 250 runs; tests/statistical has the full size


def test_launches_that_agree_by_chance_keep_the_width_of_rounds() -> None:
    launch = np.repeat([0, 1], 3)
    agreeing = [0.0, 0.1, -0.1, 0.1, 0.0, -0.1]
    found = ratio.ratio(launch, agreeing)
    assert found.high > 1.1
    assert "not narrower than over rounds" in found.method


def test_interval_of_even_launches_is_the_t_test() -> None:
    means = np.array([0.05, 0.12, 0.07, 0.02])
    found = ratio.ratio(np.arange(4), means)
    expected = ttest_1samp(means, 0).confidence_interval(0.95)
    assert (math.log(found.low), math.log(found.high)) == pytest.approx(tuple(expected))


def test_sessions_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    session, launch = np.divmod(np.arange(9).repeat(4), 3)
    rounds = rng.normal(0, 0.01, 36)
    alike = ratio.ratio(launch, rounds, session=session)
    apart = ratio.ratio(launch, rounds + np.array([-0.1, 0.0, 0.1])[session], session=session)
    assert (alike.sessions, alike.launches) == (3, 9)
    assert apart.high > 1.2 > 1.05 > alike.high
    assert apart.method.startswith("Student's t over sessions")


def test_pooled_sessions_count_alike_whatever_their_launches() -> None:
    session = [0, 0, 0, 0, 1]
    found = ratio.ratio([0, 1, 2, 3, 0], [0.1] * 4 + [0.3], session=session)
    assert math.log(found.value) == pytest.approx(0.2)


def test_runs_are_pooled_as_sessions() -> None:
    rng = np.random.default_rng(3)
    runs = [ratio.pair(table(np.exp(rng.normal(0, 0.01, (2, 3)))), table(np.ones((2, 3)))) for _ in range(3)]
    found = ratio.pooled(runs)
    assert (found.sessions, found.launches, found.rounds) == (3, 6, 18)
    assert ratio.pooled(runs[:1]) == ratio.ratio(runs[0].launch, runs[0].log_ratio)


def test_session_level_covers_where_sessions_differ() -> None:
    rng = np.random.default_rng(1)
    session, launch = np.divmod(np.arange(9).repeat(2), 3)
    held = [0, 0]
    for _ in range(300):
        y = rng.normal(0, 0.05, 3)[session] + rng.normal(0, 0.02, 18)
        for index, sessions in enumerate((None, session)):
            found = ratio.ratio(3 * session + launch, y, session=sessions)
            held[index] += found.low <= 1 <= found.high
    assert held[0] < 0.85 * 300  # launches of several sessions are not independent
    assert held[1] >= 0.92 * 300


def test_one_launch_says_that_it_knows_no_launches() -> None:
    assert "without launch-to-launch variation" in ratio.ratio([0, 0, 0], [0.0, 0.1, 0.2]).method
    assert "(one session)" in ratio.ratio([0, 1], [0.0, 0.1]).method


def test_unequal_launches_keep_the_interval_honest() -> None:
    rng = np.random.default_rng(7)
    launch = np.repeat(np.arange(4), [8, 8, 8, 1])
    noise = rng.normal(0, 0.01, (400, 4))[:, launch] + rng.normal(0, 0.02, (400, 25))
    found = [ratio.ratio(launch, run) for run in noise]
    assert np.mean([one.low <= 1 <= one.high for one in found]) >= 0.93


def test_detectable_effect_is_found_in_four_of_five_runs() -> None:
    launch = np.repeat(np.arange(5), 6)
    rng = np.random.default_rng(3)
    noise = rng.normal(0, 0.01, (400, 5, 1)) + rng.normal(0, 0.01, (400, 5, 6))
    error = math.sqrt((0.01**2 + 0.01**2 / 6) / 5)
    effect = ratio.Level("launches", error, 4).detectable(0.95)
    seen = [ratio.ratio(launch, effect + run.ravel()).low > 1 for run in noise]
    assert 0.75 <= np.mean(seen) <= 0.85


# -- the first round -----------------------------------------------------------------------------------------


def test_a_first_round_that_warms_up_is_left_out() -> None:
    rng = np.random.default_rng(2)
    arm = 0.1 * np.exp(rng.normal(0, 0.01, (3, 3)))
    arm[:, 0] *= 1.5
    pairs = ratio.pair(table(arm), table(0.2 * np.exp(rng.normal(0, 0.01, (3, 3)))))
    assert (pairs.unsteady, pairs.log_ratio.size) == (3, 6)
    assert np.exp(pairs.log_ratio.mean()) == pytest.approx(2.0, rel=0.02)


def test_steady_rounds_are_seldom_left_out() -> None:
    rng = np.random.default_rng(4)
    times = [table(0.1 * np.exp(rng.normal(0, 0.05, (3, 3)))) for _ in range(150)]
    assert sum(map(warms_up, times)) <= 5


# -- properties ----------------------------------------------------------------------------------------------

positive = st.floats(0.01, 1.0)


@st.composite
def two_arms(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    launches, rounds = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    cells = st.lists(positive, min_size=launches * rounds, max_size=launches * rounds)
    shape = (launches, rounds)
    return np.array(draw(cells)).reshape(shape), np.array(draw(cells)).reshape(shape)


def close(left: float, right: float) -> bool:
    return left == right or math.isclose(left, right, rel_tol=1e-4)


@settings(deadline=None, max_examples=25)
@given(two_arms())
def test_swapping_the_arms_inverts_the_interval(arms: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = map(table, arms)
    forth, back = compare(a, b), compare(b, a)
    assert close(forth.value, 1 / back.value)
    assert close(forth.low, 1 / back.high if back.high < math.inf else 0.0)
    assert close(forth.high, 1 / back.low if back.low > 0 else math.inf)


@settings(deadline=None, max_examples=25)
@given(two_arms(), st.floats(1e-3, 1e3))
def test_the_unit_of_time_does_not_change_a_ratio(arms: tuple[np.ndarray, np.ndarray], scale: float) -> None:
    plain, scaled = compare(*map(table, arms)), compare(*(table(arm * scale) for arm in arms))
    assert close(plain.value, scaled.value)
    assert close(plain.low, scaled.low)
    assert close(plain.high, scaled.high)


@settings(deadline=None, max_examples=25)
@given(two_arms(), st.randoms(use_true_random=False))
def test_stored_order_does_not_change_a_ratio(arms, random) -> None:
    a, b = map(table, arms)
    names = list(range(arms[0].shape[0]))
    random.shuffle(names)
    renamed = [
        t.assign(launch=t["launch"].map(dict(enumerate(names)))).sample(frac=1, random_state=1)
        for t in (a, b)
    ]
    plain, shuffled = compare(a, b), compare(*renamed)
    assert close(plain.value, shuffled.value)
    assert close(plain.low, shuffled.low)
    assert close(plain.high, shuffled.high)


@settings(deadline=None, max_examples=25)
@given(two_arms())
def test_the_value_is_the_geometric_mean_of_steady_rounds(arms) -> None:
    pairs = ratio.pair(*map(table, arms))
    found = ratio.ratio(pairs.launch, pairs.log_ratio)
    assert 0 <= found.low <= found.value <= found.high
    steady = (arms[1] / arms[0])[:, int(pairs.unsteady > 0) :]
    assert math.isclose(found.value, gmean(steady.ravel()), rel_tol=1e-9)
    assert found.detectable >= 0


def test_a_ratio_above_one_means_a_faster_arm() -> None:
    fast, slow = table(np.full((3, 5), 0.1)), table(np.full((3, 5), 0.2))
    found = compare(fast, slow)
    assert found.value == pytest.approx(2.0)
    assert found.differs


def test_doubling_and_halving_average_to_one() -> None:
    assert ratio.ratio([0, 1], np.log([2.0, 0.5])).value == pytest.approx(1.0)


def test_constant_times_give_an_interval_without_width() -> None:
    found = compare(table(np.full((3, 4), 0.25)), table(np.full((3, 4), 0.25)))
    assert (found.value, found.low, found.high, found.detectable) == (1.0, 1.0, 1.0, 0.0)


def test_a_single_round_claims_nothing() -> None:
    found = compare(table(np.array([[0.2]])), table(np.array([[0.3]])))
    assert found.value == pytest.approx(1.5)
    assert (found.low, found.high, found.detectable) == (0.0, math.inf, math.inf)


def test_rounds_of_one_arm_only_are_counted() -> None:
    arm, baseline = table(np.full((2, 3), 0.1)), table(np.full((2, 3), 0.2))
    pairs = ratio.pair(arm.iloc[:-2], baseline.iloc[1:])
    assert pairs.log_ratio == pytest.approx(np.full(3, math.log(2)))
    assert list(pairs.launch) == [0, 0, 1]
    assert pairs.unpaired == 3


def test_arms_without_a_common_round_are_an_error() -> None:
    arm = table(np.full((1, 2), 0.1))
    with pytest.raises(BenchError, match="no round measured both arms"):
        compare(arm, arm.assign(launch=1))


def test_a_damaged_block_time_is_refused() -> None:
    arm = table(np.array([[0.1, 0.0]]))
    with pytest.raises(BenchError, match="positive"):
        compare(arm, arm)


def test_the_cost_of_ema_is_its_share_of_the_step() -> None:
    with_ema, without = table(np.full((3, 5), 0.10)), table(np.full((3, 5), 0.08))
    found = ratio.cost(compare(with_ema, without))
    assert found.share == pytest.approx(0.2)
    assert found.low <= found.share <= found.high


# -- summaries -----------------------------------------------------------------------------------------------


def test_a_summary_shows_the_spread_beside_the_median() -> None:
    found = ratio.summarize(np.arange(1.0, 102.0), images_per_step=2)
    assert (found.p5_s, found.median_s, found.p95_s, found.n) == (6.0, 51.0, 96.0, 101)
    assert found.images_per_s == pytest.approx(2 / 51)
