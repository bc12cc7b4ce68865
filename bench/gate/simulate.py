"""How often the gate is wrong: noise as it was measured, replayed through the gate's own rules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest
from scipy.stats.mstats import winsorize

from bench.errors import BenchError
from bench.gate.decide import Plan, _by_launch, decide, launch_means
from bench.gate.metrics import TRIMMED, Metric, State
from bench.judge.steady import Floats

# -- calibration -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Noise:
    """What an A/A run shows: standard deviations of the log-ratio, between launches and between rounds of one."""

    launch_sd: float
    round_sd: float
    launches: int
    rounds: int

    def launch_mean_sd(self, rounds: int) -> float:
        """Standard deviation of a launch's mean over so many rounds."""
        return math.hypot(self.launch_sd, self.round_sd / math.sqrt(rounds))


def noise(launch: npt.ArrayLike, log_ratio: npt.ArrayLike) -> Noise:
    """Noise of paired log-ratios (`stats.pair`) of an arm against itself; needs two launches of two rounds.

    ``round_sd`` is what the trimmed means make of it, sqrt(n) times their standard error (Yuen, Biometrika 1974).
    """
    by_launch = _by_launch(launch, log_ratio)
    if len(by_launch) < 2 or max(map(len, by_launch)) < 2:
        raise BenchError("calibration needs at least two launches of two rounds")
    round_variance = float(np.mean([r.size * _squared_error(r) for r in by_launch if r.size > 1]))
    between = float(launch_means(launch, log_ratio).var(ddof=1))
    sizes = np.array([rounds.size for rounds in by_launch])
    launch_variance = max(0.0, between - round_variance * float((1 / sizes).mean()))
    return Noise(math.sqrt(launch_variance), math.sqrt(round_variance), sizes.size, int(sizes.sum()))


def _squared_error(rounds: Floats) -> float:
    """Of a trimmed mean: the sum of squares of the winsorised values over h (h - 1), with h values left."""
    left = rounds.size - 2 * int(TRIMMED * rounds.size)
    kept = np.asarray(winsorize(rounds, (TRIMMED, TRIMMED)))
    return float(((kept - kept.mean()) ** 2).sum()) / (left * (left - 1))


@dataclass(frozen=True)
class Rates:
    """Outcomes of many checks: shares that failed and passed, and the median launches they took."""

    failed: float
    passed: float
    launches: float


def simulate(
    seen: Noise, slowdown: float, target: Metric, plan: Plan, rounds: int, checks: int = 500, seed: int = 0
) -> Rates:
    """Outcomes of checks of a time metric under normal noise of the size seen; a slowdown of 0.05 is 5 %."""
    generator = np.random.default_rng(seed)
    shape = (checks, plan.launches)
    launches = math.log1p(slowdown) + seen.launch_mean_sd(rounds) * generator.standard_normal(shape)
    outcomes = [run_check(list(values), target, plan) for values in launches]
    states = [state for state, _ in outcomes]
    return Rates(
        states.count("fail") / checks,
        states.count("pass") / checks,
        float(np.median([used for _, used in outcomes])),
    )


def run_check(launches: Sequence[float], target: Metric, plan: Plan) -> tuple[State, int]:
    """Play a check of one comparison over recorded or simulated launches: outcome, and launches used."""
    used = 0
    while True:
        verdict = decide({target.name: (target, launches[:used])}, plan)
        if not verdict.more_launches:
            return verdict.state, used
        if used + verdict.more_launches > len(launches):
            return "inconclusive", used
        used += verdict.more_launches


def smallest_slowdown(
    seen: Noise, target: Metric, plan: Plan, rounds: int, power: float = 0.95, checks: int = 400
) -> float:
    """The smallest slowdown that a check fails with the given probability, to a tenth; infinite above 100 %."""
    low, high = target.tolerance, 1.0
    if simulate(seen, high, target, plan, rounds, checks).failed < power:
        return math.inf
    while high - low > 0.1 * (high - target.tolerance) and high - low > 1e-4:
        middle = (low + high) / 2
        if simulate(seen, middle, target, plan, rounds, checks).failed >= power:
            high = middle
        else:
            low = middle
    return high


def smallest_tolerance(
    seen: Noise, target: Metric, plan: Plan, rounds: int, power: float = 0.95, checks: int = 400
) -> float | None:
    """The smallest usual tolerance at which a check of equal revisions passes with the given probability."""
    for tolerance in (0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.10, 0.15, 0.20):
        candidate = replace(target, tolerance=tolerance)
        if simulate(seen, 0.0, candidate, plan, rounds, checks).passed >= power:
            return tolerance
    return None


@dataclass(frozen=True)
class FalseAlarms:
    """Share of replayed A/A checks that failed, with its 95 % interval (Clopper and Pearson)."""

    share: float
    low: float
    high: float
    checks: int


def false_alarms(
    worsening: npt.ArrayLike, target: Metric, plan: Plan, checks: int = 300, seed: int = 0
) -> FalseAlarms:
    """False-alarm rate of checks replayed from the launches of an A/A run, worsening [K].

    Launches are drawn with replacement and with random signs, since in an A/A run either arm may be the head. The
    interval is that of the replay: noise that did not occur in the recorded launches is not in it.
    """
    recorded = np.asarray(worsening, dtype=np.float64)
    if recorded.size < 3:
        raise BenchError("a false-alarm rate needs an A/A run of at least three launches")
    generator = np.random.default_rng(seed)
    shape = (checks, plan.launches)
    drawn = generator.choice(recorded, shape) * generator.choice([-1.0, 1.0], shape)
    alarms = sum(run_check(list(launches), target, plan)[0] == "fail" for launches in drawn)
    interval = binomtest(alarms, checks).proportion_ci()
    return FalseAlarms(alarms / checks, float(interval.low), float(interval.high), checks)


@dataclass(frozen=True)
class Suggestion:
    """Settings that make the most of a time budget on this machine; `tolerance` is None where none would do."""

    rounds: int
    launches: int
    tolerance: float | None
    smallest_slowdown: float


def suggest(
    seen: Noise, launch_s: float, round_s: float, budget_s: float, target: Metric, checks: int = 400
) -> Suggestion:
    """Rounds, launches and tolerance for a budget, with ``launch_s`` to start all arms and ``round_s`` for a round.

    A launch of n rounds costs launch_s + n round_s and its mean has the variance T² + R² / n (spreads between launches
    and rounds). The product of both is smallest at n = R / T sqrt(launch_s / round_s)
    (Kalibera and Jones, ISMM 2013, section 6), kept between 3 and 50 and small enough for six launches.
    """
    most = int((budget_s / 6 - launch_s) / round_s)
    if most < 3:
        raise BenchError(
            f"a budget of {budget_s:.0f} s is too short for six launches of three rounds",
            hint=f"allow {6 * (launch_s + 3 * round_s):.0f} s, or make blocks shorter (measure.steps)",
        )
    spread = seen.round_sd / seen.launch_sd if seen.launch_sd > 0 else math.inf
    best = min(spread * math.sqrt(launch_s / round_s), 50.0)
    rounds = min(max(3, round(best)), most)
    launches = int(budget_s / (launch_s + rounds * round_s))
    plan = Plan.within(launches)
    tolerance = smallest_tolerance(seen, target, plan, rounds, checks=checks)
    chosen = replace(target, tolerance=tolerance or target.tolerance)
    slowdown = smallest_slowdown(seen, chosen, plan, rounds, checks=checks)
    return Suggestion(rounds, plan.launches, tolerance, slowdown)


def warn_impossible(seen: Noise, target: Metric, plan: Plan, rounds: int, checks: int = 300) -> str | None:
    """What to say before a check that would mostly be inconclusive on this machine; None when it is fine."""
    passed = simulate(seen, 0.0, target, plan, rounds, checks).passed
    if passed >= 0.8:
        return None
    tolerance = smallest_tolerance(seen, target, plan, rounds, checks=checks)
    advice = f"a tolerance of {100 * tolerance:g} %, " if tolerance else ""
    return (
        f"on this machine {plan.launches} launches of {rounds} rounds would pass equal revisions in only "
        f"{100 * passed:.0f} % of checks at a tolerance of {100 * target.tolerance:g} %: "
        f"use {advice}more rounds or launches"
    )
