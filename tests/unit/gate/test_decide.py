"""The gate's rules, and its error rates on a few simulated machines."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind

from bench.errors import BenchError
from bench.gate import metrics, summaries, values
from bench.gate.decide import (
    Decision,
    Launches,
    Ruling,
    Schedule,
    Spread,
    Stored,
    decide,
    decide_stored,
    holm,
)
from benchmarks.gate import errors

SECONDS = metrics.metric("s/iter", tolerance=0.02)
PLAN = Schedule()
MOST = PLAN.launches


def launches(given: object, **more: object) -> Launches:
    return Launches(np.asarray(given, dtype=np.float64), **more)  # type: ignore[arg-type]


def shares(machine: str, head: str, checks: int = 40) -> dict[str, float]:
    found = [state for state, _ in errors.after(*errors.sides(machine, head, checks))]
    return {state: found.count(state) / checks for state in ("fail", "pass", "inconclusive")}


# -- error rates (tests/statistical has the full size) -------------------------------------------------------


@pytest.mark.parametrize("machine", ["normal", "heavy tails", "two modes, 3 % apart, 1 : 1"])
def test_equal_revisions_pass_and_do_not_fail(machine: str) -> None:
    found = shares(machine, "equal", 40)
    assert found["fail"] == 0
    assert found["pass"] >= 0.8


@pytest.mark.parametrize("head", ["every tenth round 30 % slower", "three of ten launches slow, mean +2.5 %"])
def test_a_regression_of_some_rounds_or_launches_does_not_pass(head: str) -> None:
    assert shares("normal", head)["pass"] <= 0.1


def test_a_slowdown_of_five_percent_is_found() -> None:
    assert shares("normal", "slower by 5 %", 40)["fail"] >= 0.95


# -- several comparisons -------------------------------------------------------------------------------------


def play(given: dict[str, np.ndarray], plan: Schedule = PLAN) -> Ruling:
    used = 0
    while True:
        ruling = decide({name: (SECONDS, launches(all_[:used])) for name, all_ in given.items()}, plan)
        if not ruling.more_launches:
            return ruling
        used += ruling.more_launches


def test_many_arms_do_not_multiply_false_alarms() -> None:
    rng = np.random.default_rng(8)
    lenient = Schedule(false_alarm=0.05)
    at_limit = SECONDS.limit + rng.normal(0, 0.01, (60, 6, MOST))
    checks = [play({str(arm): one for arm, one in enumerate(check)}, lenient) for check in at_limit]
    assert sum(check.state == "fail" for check in checks) <= 6


def test_one_slow_arm_among_many_is_named() -> None:
    rng = np.random.default_rng(2)
    given_ = {str(arm): rng.normal(0, 0.008, MOST) for arm in range(5)}
    given_["3"] += 0.08
    ruling = play(given_)
    assert ruling.state == "fail"
    assert [name for name, decision in ruling.decisions.items() if decision.state == "fail"] == ["3"]


def test_holm_rejects_as_in_the_textbook() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, 0.05) == {"a", "d"}


@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1), min_size=1), st.floats(0.001, 0.2))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: dict[str, float], level: float) -> None:
    rejected = holm(p_values, level)
    assert {name for name, p in p_values.items() if p <= level / len(p_values) * 0.999} <= rejected
    assert rejected <= {name for name, p in p_values.items() if p <= level}


# -- the protocol --------------------------------------------------------------------------------------------


def judge(
    given: object, metric: metrics.Metric = SECONDS, plan: Schedule = PLAN, **options: bool
) -> Decision:
    one = given if isinstance(given, Launches) else launches(given)
    return decide({"arm": (metric, one)}, plan, **options).decisions["arm"]


def test_an_alarm_alone_does_not_fail_a_check() -> None:
    alarm = judge([0.10, 0.11, 0.105])
    assert (alarm.state, alarm.alarm, alarm.more_launches) == ("undecided", 3, 3)
    confirmed = judge([0.10, 0.11, 0.105, 0.11, 0.10, 0.104])
    assert confirmed.state == "fail"
    assert confirmed.low > 0.02
    contradicted = judge([0.10, 0.11, 0.105, 0.001, -0.001, 0.0])
    assert contradicted.state == "undecided"


def test_nothing_passes_before_six_launches() -> None:
    for budget in range(6, 60):
        plan = Schedule.within(budget)
        assert plan.pass_looks[0] >= 6
        assert plan.launches <= budget
    assert judge(np.zeros(5), plan=Schedule.within(6)).state == "undecided"
    assert judge(np.zeros(6), plan=Schedule.within(6)).state == "pass"


def test_the_budget_of_confirmation_goes_into_passing() -> None:
    rng = np.random.default_rng(3)
    noisy = rng.normal(0.01, 0.04, MOST)
    assert judge(noisy[:20]).more_launches == 4
    assert judge(noisy).launches == MOST


def test_launches_that_agree_by_chance_are_no_proof() -> None:
    agreeing = np.linspace(-0.0001, 0.0001, 20)
    assert judge(agreeing).state == "pass"
    rounds = launches(agreeing, errors=np.full(20, 0.06), freedoms=np.full(20, 4.0))
    assert judge(rounds).state != "pass"
    calibrated = launches(agreeing, calibrated=Spread(0.06, 11))
    assert judge(calibrated).state != "pass"


def test_one_slow_launch_is_counted_once_more_before_a_pass() -> None:
    """Launches are slow once in six: with one slow one in 24, more of them are likely."""
    rare = np.zeros(24)
    rare[5] = 0.15
    given_ = launches(rare)
    assert given_.mean < SECONDS.limit
    assert ttest_1samp(rare, SECONDS.limit, alternative="less").pvalue < 0.025
    assert given_.p_fine(SECONDS.limit) > 0.025
    found = judge(rare)
    assert found.state == "inconclusive"
    assert found.high > 0.02, "the interval shown is the one decided by"
    assert judge(np.zeros(24)).state == "pass"


def test_p_values_are_those_of_students_test() -> None:
    given_ = np.random.default_rng(0).normal(0.02, 0.01, 8)
    expected = ttest_1samp(given_, SECONDS.limit, alternative="greater")
    assert launches(given_).p_worse(SECONDS.limit) == pytest.approx(expected.pvalue)
    assert launches(given_).mean - launches(given_).reach(0.05) == pytest.approx(
        ttest_1samp(given_, 0, alternative="greater").confidence_interval(0.95).low
    )


def test_noise_beyond_the_tolerance_is_inconclusive() -> None:
    rng = np.random.default_rng(1)
    ruling = play({"arm": rng.normal(0, 0.2, MOST)})
    assert ruling.state == "inconclusive"
    assert "too noisy" in ruling.decisions["arm"].reason


def test_a_check_that_runs_out_of_time_says_so() -> None:
    assert judge([0.0, 0.001]).state == "undecided"
    ended = judge([0.0, 0.001], out_of_budget=True)
    assert (ended.state, ended.more_launches) == ("inconclusive", 0)
    assert "out of budget" in ended.reason


def test_memory_that_never_varies_is_judged() -> None:
    memory = metrics.metric("max memory", 0.05)
    worse = memory.worsening([100.0] * 20, [110.0] * 20)
    assert judge(worse[:6], memory).state == "fail"
    assert judge(worse * 0, memory).state == "pass"


def test_an_exact_metric_needs_one_value() -> None:
    ap = metrics.metric("AP", 0.002)
    assert judge([], ap).more_launches == 1
    assert judge(ap.worsening([0.400], [0.399]), ap).state == "pass"
    assert judge(ap.worsening([0.400], [0.390]), ap).state == "fail"


def test_fewer_images_per_second_is_worse_by_missing_share() -> None:
    rate = metrics.metric("images/s", 0.05)
    worsening = float(rate.worsening(100.0, 90.0))
    assert worsening > 0
    assert rate.share(worsening) == pytest.approx(0.10)
    assert rate.share(rate.limit) == pytest.approx(0.05)
    assert SECONDS.share(float(SECONDS.worsening(1.0, 1.1))) == pytest.approx(0.10)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(-0.5, 0.5), min_size=0, max_size=MOST))
def test_any_launches_get_an_answer_or_more_launches(given_: list[float]) -> None:
    decision = judge(given_)
    assert (decision.state == "undecided") == (decision.more_launches > 0)
    assert len(given_) + decision.more_launches <= MOST
    assert decision.state != "fail" or decision.low > 0.02
    assert decision.state != "pass" or decision.high <= 0.02 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.metric("s/itr"), "unknown metric"),
        (lambda: metrics.metric("images/s", 1.5), "between 0 and 1"),
        (lambda: Schedule(looks=(3, 3)), "increasing"),
        (lambda: Schedule(pass_looks=(5,)), "increasing launch counts from 6"),
        (lambda: Schedule.within(4), "too few"),
        (lambda: decide({}, PLAN), "nothing to compare"),
        (lambda: judge([math.nan]), "finite"),
    ],
)
def test_impossible_settings_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        call()


# -- values of launches --------------------------------------------------------------------------------------


def test_a_burst_neither_hides_nor_makes_a_slowdown() -> None:
    calm = np.log(np.full(8, 1.05))
    burst = np.log([1.05, 1.05, 4.0, 1.05, 1.05, 1.05, 0.2, 3.0])
    assert summaries.trimmed(burst).value == pytest.approx(summaries.trimmed(calm).value)


def test_the_plain_mean_sees_stalls() -> None:
    base = np.zeros(10)
    head = np.where(np.arange(10) == 4, math.log(1.3), 0.0)
    assert summaries.mean_of(base, head).value == pytest.approx(math.log(1.03))
    assert summaries.trimmed(head - base).value == 0


def test_the_error_of_a_launch_is_its_spread() -> None:
    rng = np.random.default_rng(5)
    base, head = rng.normal(0, 0.02, (2, 800, 20))
    for summary in (summaries.mean_of, lambda b, h: summaries.trimmed(h - b)):
        found = [summary(b, h) for b, h in zip(base, head, strict=True)]
        promised = np.mean([one.error for one in found])
        assert np.std([one.value for one in found]) == pytest.approx(promised, rel=0.1)


def test_launches_are_paired_by_launch_and_round() -> None:
    index = pd.MultiIndex.from_product([[0, 1], [0, 1, 2, 3]], names=["launch", "round"])
    base = pd.Series(np.zeros(8), index=index)
    head = pd.Series(np.repeat(np.log([1.1, 1.2]), 4), index=index).drop((1, 3))
    found = values.launches_of(base, head, SECONDS)
    assert found.values == pytest.approx(np.log([1.1, 1.2]))


# -- stored runs ---------------------------------------------------------------------------------------------

KNOWN = Spread(0.01, 9)


def stored(
    base: np.ndarray, head: np.ndarray, between: Spread = KNOWN, metric: metrics.Metric = SECONDS
) -> Decision:
    return decide_stored({"arm": (metric, Stored(base, head, between))}, PLAN).decisions["arm"]


def test_a_stored_baseline_is_inconclusive_without_known_sessions() -> None:
    base = np.random.default_rng(0).normal(-2, 0.001, 6)
    for change in (0.0, 0.5):
        decision = stored(base, base + change, Spread())
        assert decision.state == "inconclusive"
        assert "sessions" in decision.reason


def test_equal_revisions_of_differing_sessions_seldom_fail() -> None:
    rng = np.random.default_rng(7)
    states = []
    for _ in range(150):
        sessions = rng.normal(0, 0.05, 12)
        base, head = (session + rng.normal(-2, 0.008, 6) for session in sessions[:2])
        states.append(stored(base, head, Spread(float(sessions[2:].std(ddof=1)), 9)).state)
    assert states.count("fail") <= 5


def test_a_clear_change_fails_and_its_absence_passes() -> None:
    base = np.random.default_rng(0).normal(-2, 0.002, 6)
    assert stored(base, base + math.log(1.20)).state == "fail"
    assert stored(base, base - 0.05).state == "pass"
    assert stored(base, base - 0.05).worsening == pytest.approx(math.exp(-0.05) - 1)


def test_stored_launches_are_judged_by_welch() -> None:
    rng = np.random.default_rng(1)
    base, head = rng.normal(-2, 0.01, 6), rng.normal(-1.9, 0.02, 5)
    expected = ttest_ind(head - SECONDS.limit, base, equal_var=False, alternative="greater")
    assert stored(base, head, Spread()).p_value == pytest.approx(expected.pvalue)


def test_a_stored_ap_that_fell_is_a_failure() -> None:
    ap = metrics.metric("AP", 0.002)
    assert stored(ap.badness([0.40]), ap.badness([0.39]), Spread(), ap).state == "fail"
    assert stored(ap.badness([0.40]), ap.badness([0.41]), Spread(), ap).state == "pass"
    with pytest.raises(BenchError, match="two launches"):
        stored(np.zeros(1), np.zeros(5))
