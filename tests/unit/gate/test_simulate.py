"""What calibration promises, and the rules of other tools beside ours."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bench.errors import BenchError
from bench.gate import metrics, simulate
from bench.gate.decide import Launches, Schedule
from bench.record.models import Block, RunRecord
from bench.record.run import Run
from benchmarks.gate import replay, rules

ROUNDS = 10
SECONDS = metrics.metric("s/iter", tolerance=0.02)
PLAN = Schedule()
SEEN = simulate.Noise(launch_sd=0.005, round_sd=0.025, launches=10, rounds=100)
HOPELESS = simulate.Noise(3.0, 3.0, 10, 100)


def test_calibration_recovers_the_noise_of_the_machine() -> None:
    rng = np.random.default_rng(5)
    rounds = rng.normal(0, 0.01, (60, 1)) + rng.normal(0, 0.03, (60, 20))
    seen = simulate.noise(list(rounds))
    assert seen.launch_sd == pytest.approx(0.01, rel=0.35)
    assert seen.round_sd == pytest.approx(0.03, rel=0.1)


def test_the_slowdown_promised_by_calibration_is_found() -> None:
    promised = simulate.smallest_slowdown(SEEN, SECONDS, PLAN, ROUNDS, checks=60)
    assert 0.02 < promised < 0.05
    assert simulate.simulate(SEEN, promised, SECONDS, PLAN, ROUNDS, checks=100, seed=9).failed >= 0.85
    assert simulate.smallest_slowdown(HOPELESS, SECONDS, PLAN, ROUNDS, checks=30) == math.inf


def test_the_suggested_tolerance_is_one_that_equal_revisions_pass() -> None:
    assert simulate.smallest_tolerance(SEEN, SECONDS, PLAN, ROUNDS, checks=60) in (0.01, 0.015)
    assert simulate.smallest_tolerance(HOPELESS, SECONDS, PLAN, ROUNDS, checks=20) is None


def test_a_side_that_is_always_slower_shows_in_calibration() -> None:
    biased = np.random.default_rng(6).normal(0.03, 0.005, 12)
    found = simulate.bias(biased, SECONDS)
    assert found.low < 0.03 < found.high
    assert found.p_value < 0.001
    assert simulate.false_alarms(Launches(biased, *np.zeros((2, 12))), SECONDS, PLAN, checks=40).share > 0.5
    assert simulate.bias(biased - biased.mean(), SECONDS).p_value > 0.9
    assert simulate.bias(np.zeros(5), SECONDS).p_value == 1


def test_the_false_alarm_rate_comes_with_its_interval() -> None:
    even = np.random.default_rng(6).normal(0, 0.01, 40)
    found = simulate.false_alarms(Launches(even, *np.zeros((2, 40))), SECONDS, PLAN, checks=100)
    assert found.share <= 0.01
    assert found.low == 0.0
    assert 0.03 < found.high < 0.06  # a hundred clean checks prove no more than that


def test_a_suggestion_fits_its_budget() -> None:
    cheap = simulate.suggest(SEEN, launch_s=1.0, round_s=0.5, budget_s=180.0, target=SECONDS, checks=30)
    dear = simulate.suggest(SEEN, launch_s=10.0, round_s=0.5, budget_s=180.0, target=SECONDS, checks=30)
    assert cheap.rounds < dear.rounds  # where launches are dear
    assert cheap.launches * (1.0 + cheap.rounds * 0.5) <= 180.0
    assert dear.launches * (10.0 + dear.rounds * 0.5) <= 180.0
    assert cheap.tolerance is not None
    assert cheap.tolerance < cheap.smallest_slowdown < 0.05
    with pytest.raises(BenchError, match="too short"):
        simulate.suggest(SEEN, launch_s=40.0, round_s=0.5, budget_s=180.0, target=SECONDS)


def test_who_asks_for_the_impossible_is_told_what_is_possible() -> None:
    noisy = simulate.Noise(launch_sd=0.04, round_sd=0.06, launches=10, rounds=100)
    warning = simulate.warn_impossible(noisy, SECONDS, PLAN, ROUNDS, checks=60)
    assert warning is not None
    assert "a tolerance of" in warning
    quiet = simulate.Noise(launch_sd=0.002, round_sd=0.01, launches=10, rounds=100)
    assert simulate.warn_impossible(quiet, SECONDS, PLAN, ROUNDS, checks=60) is None


# -- what users do today -------------------------------------------------------------------------------------


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


def test_our_gate_is_right_on_a_wandering_machine() -> None:
    counts = replay.alarms(replay.Recording.made_up(), PLAN, tolerance=0.015, checks=12)
    ours = next(name for name, _ in counts if name.startswith("bench check"))
    false, *found = counts[ours, "interleaved"]
    assert false == 0
    assert found[1] >= 10
    assert counts["github-action-benchmark 105 %", "sequential"][0] >= 1
    assert f"| {ours} | interleaved |" in replay.table(counts, 12)


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
