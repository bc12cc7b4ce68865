"""How often the gate is wrong: noise as it was measured, replayed through the gate's own rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest, ttest_1samp

from bench.errors import BenchError
from bench.gate.decide import Launches, Schedule, decide
from bench.gate.metrics import Metric, State
from bench.gate.summaries import trimmed
from bench.judge.steady import Floats
from bench.judge.stopping import Components, best_rounds

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


def noise(rounds: Sequence[Floats]) -> Noise:
    """Noise of an arm against itself.

    Args:
        rounds: log-ratio of each round, an array for each launch.

    Raises:
        BenchError: with fewer than two launches of four rounds, the fewest that give a trimmed mean its error.
    """
    found = [trimmed(values) for values in rounds]
    known = [n.size * one.error**2 for n, one in zip(rounds, found, strict=True) if one.freedom]
    if len(found) < 2 or not known:
        raise BenchError("calibration needs at least two launches of four rounds")
    between = float(np.var([one.value for one in found], ddof=1))
    round_variance = float(np.mean(known))
    launch_variance = max(0.0, between - round_variance * float(np.mean([1 / n.size for n in rounds])))
    sizes = [n.size for n in rounds]
    return Noise(math.sqrt(launch_variance), math.sqrt(round_variance), len(sizes), sum(sizes))


@dataclass(frozen=True)
class Rates:
    """Outcomes of many checks: shares that failed and passed, and the median launches they took."""

    failed: float
    passed: float
    launches: float


def simulate(
    seen: Noise,
    slowdown: float,
    target: Metric,
    plan: Schedule,
    rounds: int,
    checks: int = 500,
    seed: int = 0,
) -> Rates:
    """Outcomes of checks of a time metric under normal noise of the size seen; a slowdown of 0.05 is 5 %."""
    generator = np.random.default_rng(seed)
    shape = (checks, plan.launches)
    drawn = math.log1p(slowdown) + seen.launch_mean_sd(rounds) * generator.standard_normal(shape)
    errors = np.full(plan.launches, seen.round_sd / math.sqrt(rounds))
    freedoms = np.full(plan.launches, max(1, rounds // 2 - 1))
    outcomes = [run_check({"": (target, Launches(values, errors, freedoms))}, plan) for values in drawn]
    states = [state for state, _ in outcomes]
    return Rates(
        states.count("fail") / checks,
        states.count("pass") / checks,
        float(np.median([used for _, used in outcomes])),
    )


def run_check(comparisons: Mapping[str, tuple[Metric, Launches]], plan: Schedule) -> tuple[State, int]:
    """Play a check over recorded or simulated launches, the same number of all comparisons.

    Returns:
        The outcome, and the launches used.
    """
    recorded = min(launches.values.size for _, launches in comparisons.values())
    used = 0
    while True:
        ruling = decide({name: (one, all_.part(0, used)) for name, (one, all_) in comparisons.items()}, plan)
        if not ruling.more_launches:
            return ruling.state, used
        if used + ruling.more_launches > recorded:
            return "inconclusive", used
        used += ruling.more_launches


def smallest_slowdown(
    seen: Noise, target: Metric, plan: Schedule, rounds: int, power: float = 0.95, checks: int = 400
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
    seen: Noise, target: Metric, plan: Schedule, rounds: int, power: float = 0.95, checks: int = 400
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
    launches: Launches, target: Metric, plan: Schedule, checks: int = 300, seed: int = 0
) -> FalseAlarms:
    """False-alarm rate of checks replayed from the launches of an A/A run, drawn with replacement.

    The launches keep their signs: an effect that stays with one side is part of what a check meets. The interval is
    that of the replay: noise that did not occur in the recorded launches is not in it.
    """
    if launches.values.size < 3:
        raise BenchError("a false-alarm rate needs an A/A run of at least three launches")
    generator = np.random.default_rng(seed)
    alarms = 0
    for drawn in generator.integers(0, launches.values.size, (checks, plan.launches)):
        replayed = Launches(launches.values[drawn], launches.errors[drawn], launches.freedoms[drawn])
        alarms += run_check({"": (target, replayed)}, plan)[0] == "fail"
    interval = binomtest(alarms, checks).proportion_ci()
    return FalseAlarms(alarms / checks, float(interval.low), float(interval.high), checks)


@dataclass(frozen=True)
class Bias:
    """Mean of head against base in an A/A run, as a share, with its 95 % interval and the p-value of zero."""

    mean: float
    low: float
    high: float
    p_value: float


def bias(worsening: Floats, target: Metric) -> Bias:
    """Whether one side of an A/A run is slower: it would be so in every check (worsening of each launch [K])."""
    mean = target.share(float(worsening.mean()))
    if worsening.std() == 0:
        return Bias(mean, mean, mean, float(worsening[0] == 0))
    found = ttest_1samp(worsening, 0)
    interval = found.confidence_interval(0.95)
    return Bias(
        mean, target.share(float(interval.low)), target.share(float(interval.high)), float(found.pvalue)
    )


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
    best = best_rounds(Components(seen.launch_sd, seen.round_sd), launch_s, round_s)
    rounds = min(max(3, best), most)
    launches = int(budget_s / (launch_s + rounds * round_s))
    plan = Schedule.within(launches)
    tolerance = smallest_tolerance(seen, target, plan, rounds, checks=checks)
    chosen = replace(target, tolerance=tolerance or target.tolerance)
    slowdown = smallest_slowdown(seen, chosen, plan, rounds, checks=checks)
    return Suggestion(rounds, plan.launches, tolerance, slowdown)


def warn_impossible(
    seen: Noise, target: Metric, plan: Schedule, rounds: int, checks: int = 300
) -> str | None:
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
