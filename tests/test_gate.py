"""Error rates of the gate on simulated machines, and the rules around them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import trim_mean

from bench.errors import BenchError
from bench.gate import decide, metrics, simulate
from bench.judge import ratio
from bench.record.models import Block, RunRecord
from bench.record.run import Run
from benchmarks.gate import replay, rules

ROUNDS = 10
SECONDS = metrics.metric("s/iter", tolerance=0.02)
PLAN = decide.Plan()
MOST = PLAN.launches

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def autocorrelated(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Rounds that depend on each other: a first-order process with coefficient 0.8 and a spread of 2.5 %."""
    steps = rng.normal(0, 0.025 * math.sqrt(1 - 0.8**2), shape)
    steps[..., 0] /= math.sqrt(1 - 0.8**2)
    for index in range(1, shape[-1]):
        steps[..., index] += 0.8 * steps[..., index - 1]
    return steps


# Noise of the log-ratio of one round; head and base each contribute to skewed noise, as two blocks do.
NOISES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.normal(0, 0.025, shape),
    "skewed": lambda rng, shape: np.log1p(0.02 * rng.lognormal(0, 1, shape))
    - np.log1p(0.02 * rng.lognormal(0, 1, shape)),
    "bursts": lambda rng, shape: rng.normal(0, 0.015, shape)
    + (rng.random(shape) < 0.05) * rng.gamma(1, 0.2, shape)
    - (rng.random(shape) < 0.05) * rng.gamma(1, 0.2, shape),
    "autocorrelated": autocorrelated,
}  # fmt: skip


def outcomes(
    noise: str, slowdown: float, checks: int, seed: int = 0, plan: decide.Plan = PLAN
) -> list[tuple[str, int]]:
    """Play checks on launches of `ROUNDS` rounds, 0.5 % between launches: state and launches used of each."""
    rng = np.random.default_rng(seed)
    shape = (checks, plan.launches, ROUNDS)
    rounds = math.log1p(slowdown) + rng.normal(0, 0.005, (*shape[:2], 1)) + NOISES[noise](rng, shape)
    launches = trim_mean(rounds, metrics.TRIMMED, axis=2)
    return [simulate.run_check(list(means), SECONDS, plan) for means in launches]


def share(found: list[tuple[str, int]], state: str) -> float:
    return sum(outcome == state for outcome, _ in found) / len(found)


@pytest.mark.parametrize("noise", NOISES)
def test_equal_revisions_are_failed_in_at_most_one_check_of_a_hundred(noise: str) -> None:
    found = outcomes(noise, slowdown=0.0, checks=400)
    assert share(found, "fail") <= 0.01
    assert share(found, "pass") >= 0.6  # or the gate would say nothing at all


@pytest.mark.parametrize("noise", NOISES)
def test_a_change_exactly_at_the_tolerance_is_failed_no_more_often_than_promised(noise: str) -> None:
    strict = decide.Plan(false_alarm=0.04)
    found = outcomes(noise, slowdown=0.02, checks=1500, plan=strict)
    assert share(found, "fail") <= 0.04
    assert share(found, "pass") <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1500)


@pytest.mark.parametrize("noise", ["normal", "skewed", "autocorrelated"])
def test_a_slowdown_of_five_percent_is_found_in_95_of_100_checks(noise: str) -> None:
    found = outcomes(noise, slowdown=0.05, checks=300)
    assert share(found, "fail") >= 0.95
    assert share(found, "pass") == 0.0


def test_a_slowdown_of_ten_percent_takes_the_fewest_launches() -> None:
    found = outcomes("normal", slowdown=0.10, checks=200)
    assert share(found, "fail") >= 0.99
    assert np.median([used for _, used in found]) <= 2 * PLAN.looks[0] + 1


def test_a_speed_up_passes() -> None:
    assert share(outcomes("normal", slowdown=-0.05, checks=100), "pass") >= 0.99


def test_looking_after_every_launch_without_paying_for_it_would_raise_alarms_that_we_do_not() -> None:
    rng = np.random.default_rng(4)
    launches = SECONDS.limit + rng.normal(0, 0.01, (600, MOST))
    naive = paid = 0
    for values in launches:
        looks = [decide._p_values(values[:n], SECONDS.limit)[0] for n in range(3, MOST + 1)]
        naive += min(looks) <= 0.05
        paid += decide._sequence(values, SECONDS.limit, PLAN.looks)[-1].p_worse <= 0.05
    assert naive / 600 > 0.12
    assert paid / 600 <= 0.05


# -- several comparisons -----------------------------------------------------------------------------------


def play(launches: dict[str, np.ndarray], plan: decide.Plan = PLAN) -> decide.Verdict:
    used = 0
    while True:
        verdict = decide.decide({name: (SECONDS, values[:used]) for name, values in launches.items()}, plan)
        if not verdict.more_launches:
            return verdict
        used += verdict.more_launches


def test_checking_many_arms_at_once_does_not_multiply_false_alarms() -> None:
    rng = np.random.default_rng(8)
    lenient = decide.Plan(false_alarm=0.05)
    at_limit = SECONDS.limit + rng.normal(0, 0.01, (150, 6, MOST))
    checks = [play({str(arm): values for arm, values in enumerate(check)}, lenient) for check in at_limit]
    assert sum(check.state == "fail" for check in checks) / 150 <= 0.05


def test_one_slow_arm_among_many_is_named_and_fails_the_check() -> None:
    rng = np.random.default_rng(2)
    launches = {str(arm): rng.normal(0, 0.008, MOST) for arm in range(5)}
    launches["3"] += 0.08
    verdict = play(launches)
    assert verdict.state == "fail"
    assert [name for name, decision in verdict.decisions.items() if decision.state == "fail"] == ["3"]


def test_holm_rejects_as_in_the_textbook_and_weights_move_the_budget() -> None:
    p_values = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}
    even = dict.fromkeys(p_values, 1.0)
    assert decide.holm(p_values, even, 0.05) == {"a", "d"}
    assert decide.holm(p_values, {**even, "c": 10.0}, 0.05) == {"c", "d", "a", "b"}


@given(st.dictionaries(st.text("abcdef", min_size=1), st.floats(0, 1), min_size=1), st.floats(0.001, 0.2))
def test_holm_lies_between_no_correction_and_bonferroni(p_values: dict[str, float], level: float) -> None:
    rejected = decide.holm(p_values, dict.fromkeys(p_values, 1.0), level)
    assert {name for name, p in p_values.items() if p <= level / len(p_values) * 0.999} <= rejected
    assert rejected <= {name for name, p in p_values.items() if p <= level}


# -- the protocol ------------------------------------------------------------------------------------------


def judge(values: list[float], metric: metrics.Metric = SECONDS, **options: bool) -> decide.Decision:
    return decide.decide({"arm": (metric, values)}, PLAN, **options).decisions["arm"]


def test_an_alarm_alone_does_not_fail_a_check_before_fresh_launches_confirm_it() -> None:
    alarm = judge([0.10, 0.11, 0.105])
    assert (alarm.state, alarm.alarm, alarm.more_launches) == ("undecided", 3, 3)
    confirmed = judge([0.10, 0.11, 0.105, 0.11, 0.10, 0.104])
    assert confirmed.state == "fail"
    assert confirmed.low > 0.02
    contradicted = judge([0.10, 0.11, 0.105, 0.001, -0.001, 0.0])
    assert contradicted.state == "inconclusive"
    assert "contradict" in contradicted.reason


def test_noise_beyond_the_tolerance_is_inconclusive_and_not_a_pass() -> None:
    rng = np.random.default_rng(1)
    verdict = play({"arm": rng.normal(0, 0.2, MOST)})
    assert verdict.state == "inconclusive"
    assert "too noisy" in verdict.decisions["arm"].reason


def test_a_check_that_runs_out_of_time_says_so() -> None:
    assert judge([0.0, 0.001]).state == "undecided"
    ended = judge([0.0, 0.001], out_of_budget=True)
    assert (ended.state, ended.more_launches) == ("inconclusive", 0)
    assert "out of budget" in ended.reason


def test_memory_that_never_varies_is_judged_without_a_crash() -> None:
    memory = metrics.metric("max memory", 0.05)
    worse = memory.worsening([100.0] * 6, [110.0] * 6)
    assert judge(list(worse), memory).state == "fail"
    assert judge(list(worse[:3] * 0), memory).state == "pass"


def test_an_exact_metric_needs_one_value_and_its_tolerance_is_in_its_own_unit() -> None:
    ap = metrics.metric("AP", 0.002)
    assert judge([], ap).more_launches == 1
    assert judge(list(ap.worsening([0.400], [0.399])), ap).state == "pass"
    assert judge(list(ap.worsening([0.400], [0.390])), ap).state == "fail"


def test_fewer_images_per_second_is_worse_by_the_share_that_is_missing() -> None:
    rate = metrics.metric("images/s", 0.05)
    worsening = float(rate.worsening(100.0, 90.0))
    assert worsening > 0
    assert rate.share(worsening) == pytest.approx(0.10)
    assert rate.share(rate.limit) == pytest.approx(0.05)
    assert SECONDS.share(float(SECONDS.worsening(1.0, 1.1))) == pytest.approx(0.10)


def test_the_paired_log_ratios_of_a_slower_head_are_a_worsening() -> None:
    launch, log_ratio = [0, 0, 1, 1], np.log([0.9, 0.9, 0.8, 0.8])  # throughput of head over base
    assert decide.launch_means(launch, -np.asarray(log_ratio)) == pytest.approx(-np.log([0.9, 0.8]))


def test_a_burst_in_a_few_rounds_neither_hides_nor_makes_a_slowdown() -> None:
    calm = np.log([1.05, 1.05, 1.05, 1.05, 1.05, 1.05, 1.05, 1.05])
    burst = np.log([1.05, 1.05, 4.0, 1.05, 1.05, 1.05, 0.2, 3.0])
    assert decide.launch_means([0] * 8, burst) == pytest.approx(decide.launch_means([0] * 8, calm))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(-0.5, 0.5), min_size=0, max_size=MOST))
def test_any_launches_get_an_answer_or_a_number_of_launches_to_add(values: list[float]) -> None:
    decision = judge(values)
    assert (decision.state == "undecided") == (decision.more_launches > 0)
    assert len(values) + decision.more_launches <= MOST
    assert decision.state != "fail" or decision.low > 0.02
    assert decision.state != "pass" or decision.high <= 0.02 * (1 + 1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.metric("s/itr"), "unknown metric"),
        (lambda: metrics.metric("images/s", 1.5), "between 0 and 1"),
        (lambda: decide.Plan(looks=(3, 3)), "increasing"),
        (lambda: decide.Plan.within(4), "too few"),
        (lambda: decide.decide({}, PLAN), "nothing to compare"),
        (lambda: judge([math.nan]), "finite"),
    ],
)
def test_impossible_settings_are_refused_with_a_reason(call: Callable[[], object], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        call()


def test_a_plan_never_takes_more_launches_than_its_budget() -> None:
    for budget in range(6, 80):
        assert decide.Plan.within(budget).launches <= budget


# -- calibration -------------------------------------------------------------------------------------------


def test_calibration_recovers_the_noise_of_the_machine() -> None:
    rng = np.random.default_rng(5)
    rounds = rng.normal(0, 0.01, (60, 1)) + rng.normal(0, 0.03, (60, 20))
    seen = simulate.noise(np.repeat(np.arange(60), 20), rounds.ravel())
    assert seen.launch_sd == pytest.approx(0.01, rel=0.35)
    assert seen.round_sd == pytest.approx(0.03, rel=0.1)


def test_the_slowdown_promised_by_calibration_is_the_one_that_checks_find() -> None:
    seen = simulate.Noise(launch_sd=0.005, round_sd=0.025, launches=10, rounds=100)
    promised = simulate.smallest_slowdown(seen, SECONDS, PLAN, ROUNDS, checks=200)
    assert 0.02 < promised < 0.05
    assert share(outcomes("normal", promised, checks=200, seed=9), "fail") >= 0.88
    assert (
        simulate.smallest_slowdown(simulate.Noise(3.0, 3.0, 10, 100), SECONDS, PLAN, ROUNDS, checks=50)
        == math.inf
    )


def test_the_tolerance_suggested_by_calibration_is_one_that_equal_revisions_pass() -> None:
    seen = simulate.Noise(launch_sd=0.005, round_sd=0.025, launches=10, rounds=100)
    tolerance = simulate.smallest_tolerance(seen, SECONDS, PLAN, ROUNDS, checks=200)
    assert tolerance in (0.015, 0.02)
    assert (
        simulate.smallest_tolerance(simulate.Noise(3.0, 3.0, 10, 100), SECONDS, PLAN, ROUNDS, checks=50)
        is None
    )


def test_the_false_alarm_rate_of_an_aa_run_comes_with_its_interval() -> None:
    launches = np.random.default_rng(6).normal(0, 0.01, 40)
    found = simulate.false_alarms(launches, SECONDS, PLAN, checks=300)
    assert found.share <= 0.01
    assert found.low == 0.0
    assert 0.01 < found.high < 0.03  # 300 clean checks prove no more than that


def test_a_suggestion_fits_its_budget_and_takes_more_rounds_where_launches_are_dear() -> None:
    seen = simulate.Noise(launch_sd=0.005, round_sd=0.025, launches=10, rounds=100)
    cheap = simulate.suggest(seen, launch_s=1.0, round_s=0.5, budget_s=180.0, target=SECONDS, checks=100)
    dear = simulate.suggest(seen, launch_s=10.0, round_s=0.5, budget_s=180.0, target=SECONDS, checks=100)
    assert cheap.rounds < dear.rounds
    assert cheap.launches * (1.0 + cheap.rounds * 0.5) <= 180.0
    assert dear.launches * (10.0 + dear.rounds * 0.5) <= 180.0
    assert cheap.tolerance is not None
    assert cheap.tolerance < cheap.smallest_slowdown < 0.05
    with pytest.raises(BenchError, match="too short"):
        simulate.suggest(seen, launch_s=40.0, round_s=0.5, budget_s=180.0, target=SECONDS)


def test_who_asks_for_the_impossible_is_told_what_is_possible() -> None:
    noisy = simulate.Noise(launch_sd=0.02, round_sd=0.06, launches=10, rounds=100)
    warning = simulate.warn_impossible(noisy, SECONDS, PLAN, ROUNDS, checks=100)
    assert warning is not None
    assert "tolerance of 2 %" in warning
    quiet = simulate.Noise(launch_sd=0.002, round_sd=0.01, launches=10, rounds=100)
    assert simulate.warn_impossible(quiet, SECONDS, PLAN, ROUNDS, checks=100) is None


def stored(base: np.ndarray, head: np.ndarray, metric: metrics.Metric = SECONDS) -> decide.Decision:
    return decide.decide_stored({"arm": (metric, base, head)}, PLAN).decisions["arm"]


def test_stored_runs_fail_and_pass_without_measuring_and_keep_their_error_rates() -> None:
    rng = np.random.default_rng(7)
    base = rng.normal(-2, 0.008, (3000, 6))
    at_limit = rng.normal(-2 + SECONDS.limit, 0.016, (3000, 5))
    states = [stored(b, h).state for b, h in zip(base, at_limit, strict=True)]
    assert states.count("fail") / 3000 <= 0.018
    assert states.count("pass") / 3000 <= 0.065
    assert stored(base[0], base[0] + math.log(1.10)).state == "fail"
    assert stored(base[0], base[0] - 0.05).state == "pass"
    assert stored(base[0], base[0] - 0.05).worsening == pytest.approx(math.exp(-0.05) - 1)


def test_a_stored_ap_that_fell_is_a_failure_and_one_launch_of_times_is_refused() -> None:
    ap = metrics.metric("AP", 0.002)
    assert stored(ap.badness([0.40]), ap.badness([0.39]), ap).state == "fail"
    assert stored(ap.badness([0.40]), ap.badness([0.41]), ap).state == "pass"
    with pytest.raises(BenchError, match="two launches"):
        stored(np.zeros(1), np.zeros(5))


def test_blocks_of_a_run_lead_to_a_verdict_end_to_end() -> None:
    rng = np.random.default_rng(3)

    def blocks(seconds: float) -> pd.DataFrame:
        launch, round_ = np.divmod(np.arange(MOST * ROUNDS), ROUNDS)
        times = seconds * np.exp(rng.normal(0, 0.02, MOST * ROUNDS))
        return pd.DataFrame(
            {"launch": launch, "round": round_, "position": 0, "steps": 1, "s_per_step": times}
        )

    pairs = ratio.pair(blocks(0.106), blocks(0.100))
    worsening = decide.launch_means(pairs.launch, -pairs.log_ratio)
    assert simulate.run_check(list(worsening), SECONDS, PLAN)[0] == "fail"


# -- what users do today -----------------------------------------------------------------------------------


def test_the_rules_of_other_tools_decide_as_those_tools_do() -> None:
    even, slower = np.linspace(0.99, 1.01, 10), np.linspace(0.99, 1.01, 10) * 1.06
    assert rules.pytest_benchmark(even, slower, percent=5)
    assert not rules.pytest_benchmark(even, slower, percent=7)
    assert not rules.github_action_benchmark(even, slower)  # the default alerts at twice the time
    assert rules.github_action_benchmark(even, slower, threshold=1.05)
    assert not rules.asv(even, slower)  # below the default factor
    assert rules.asv(even, slower, factor=1.05)
    assert not rules.asv(
        np.array([1.0] * 9 + [1.2]), np.array([1.0] * 4 + [1.2] * 6), factor=1.1
    )  # told apart?
    with pytest.raises(ValueError, match="too few"):
        rules.asv(even[:3], slower[:3])


def test_on_a_wandering_machine_our_gate_is_right_where_comparing_two_runs_is_not() -> None:
    counts = replay.alarms(replay.Recording.made_up(), PLAN, tolerance=0.015, checks=100)
    ours = next(name for name, _ in counts if name.startswith("bench check"))
    false, *found = counts[ours, "interleaved"]
    assert false <= 1
    assert found[1] >= 95
    assert counts["github-action-benchmark 105 %", "sequential"][0] >= 5
    assert f"| {ours} | interleaved |" in replay.table(counts, 100)


def test_an_aa_run_is_replayed_from_its_folder(tmp_path: Path) -> None:
    record = RunRecord(
        id="x", recipe={}, started_utc="2026-01-01T00:00:00Z", bench_version="0", arms=["a", "b"], aa=True
    )
    run = Run(tmp_path)
    run.write_record(record)
    for arm, position in (("a", 0), ("b", 1)):
        for launch, round_ in np.ndindex(3, 4):
            edges = {"start_ns": [0, 100], "end_ns": 200 + 100 * launch}
            keys = {"launch": int(launch), "round": int(round_), "position": position}
            run.append_block(Block(arm=arm, **keys, ranks=[edges]))
    found = replay.Recording.of_run(tmp_path)
    assert found.seconds.shape == (3, 2, 4)
    assert found.seconds[2] == pytest.approx(np.full((2, 4), 200e-9))
