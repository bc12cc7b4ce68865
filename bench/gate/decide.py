"""Has it become slower? A sequential test with known error rates. No input or output: `bench check` feeds it.

**What is tested.** A *launch* starts the base and the head revision afresh and times them in interleaved
rounds. It yields one number per comparison, the *worsening*: the trimmed mean over its rounds of
log(t_head / t_base), or what `Metric` says for other metrics. Launches are the unit of replication (see
`bench.judge.ratio`), so that rounds may depend on each other in any way. The true worsening w is held against a
limit d, the tolerance on the same scale:

    w > d   must fail,   w <= d   must not fail.

After k launches with mean m and standard deviation s, Student's t = (m - d) / (s / sqrt(k)) has k - 1
degrees of freedom. The launch means are averages of differences of two like noises, so they are nearly
normal even where the noise is not; tests/test_gate.py checks the error rates for skewed and autocorrelated
noise.

A quarter of the rounds at either end is left out, since the noise of shared machines comes in bursts: on
ours the spread of a launch is 0.6 to 0.9 of a plain mean's. The log-ratios of equal revisions are symmetric
about zero, and a slower head shifts all of them, so nothing is lost but what happens in fewer than a quarter
of the rounds. To see a stall every hundredth step, let a round be a hundred steps (`measure.steps`).

**Repeated looks.** Testing at level a after every launch finds a regression in nothing sooner or later.
Looks are taken only at the launch counts k_1 < ... < k_J of the plan, and the error is spent on them in
equal parts (alpha spending with the uniform spending function): look j tests at a / J. By the union bound

    P(some look rejects) <= sum_j P(look j rejects) <= J * a / J = a

whatever the looks have in common. Equally, J times the smallest p-value so far, at most 1, is a valid p-value at any
moment, so one may stop when one likes. The exact joint distribution would give bounds narrower by 13 % (at twelve
launches) to 25 % (at three), but only for normal launch means; the union bound asks for no more than each look's own
test, and looks spaced geometrically keep their number, and so its price, small.

**Confirmation.** An alarm is not reported before fresh launches confirm it. The launches after the alarm
form a second, independent sequential test with p-value p2; that of the first is p1. Under w <= d

    P(p1 <= x and p2 <= x) <= x * x,

so that p = max(p1, p2)**2 is a p-value. To fail with a false-alarm rate of 1 % each of the two tests needs
a level of 10 %: confirmation costs launches only where there is an alarm, and saves them everywhere else.

**Passing** needs the interval to lie wholly below the tolerance, at level `false_pass`, with looks paid for
likewise. A check passes when all of its comparisons do, so no correction is needed (an intersection-union
test, Berger 1982).

**Several comparisons** are corrected by the weighted Holm procedure (Holm 1979) on their p-values: the
probability of any false failure in a check stays below `false_alarm`.

What neither passes nor fails within the plan is *inconclusive*. It is an answer: the noise is too large for
the tolerance and the budget, and `smallest_slowdown` says what could have been seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit
from scipy.stats import trim_mean

from bench.errors import BenchError
from bench.gate.metrics import TRIMMED, Metric, State
from bench.judge.steady import Floats

"""Metrics with their default tolerances. AP is a share in 0..1; EMA cost a share of the step (`stats.cost`)."""


def launch_means(launch: npt.ArrayLike, values: npt.ArrayLike) -> Floats:
    """Trimmed mean of the rounds of each launch, in order of time; `decide` takes that of -log_ratio (`stats.pair`)."""
    return np.array([trim_mean(rounds, TRIMMED) for rounds in _by_launch(launch, values)])


def _by_launch(launch: npt.ArrayLike, values: npt.ArrayLike) -> list[Floats]:
    launches, given = np.asarray(launch), np.asarray(values, dtype=np.float64)
    return [given[launches == one] for one in np.unique(launches)]


# -- one comparison ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """Error rates and launches of a check.

    ``false_alarm``: highest probability that a check fails without a regression beyond tolerance.
    ``false_pass``: highest probability that a comparison passes in spite of one. ``looks``: launch counts
    after which the first test looks at the data; the confirmation has the same, counted anew.
    """

    false_alarm: float = 0.01
    false_pass: float = 0.05
    looks: tuple[int, ...] = (3, 4, 6, 8, 12)

    def __post_init__(self) -> None:
        increasing = all(a < b for a, b in zip(self.looks, self.looks[1:], strict=False))
        if not self.looks or self.looks[0] < 2 or not increasing:
            raise BenchError("looks must be increasing launch counts from 2 on")
        if not (0 < self.false_alarm < 0.25 and 0 < self.false_pass < 0.5):
            raise BenchError("false_alarm must lie in (0, 0.25) and false_pass in (0, 0.5)")

    @classmethod
    def within(cls, launches: int, false_alarm: float = 0.01, false_pass: float = 0.05) -> Plan:
        """The plan for a budget of so many launches in all, half of them kept for a confirmation."""
        most = launches // 2
        looks = sorted({min(look, most) for look in (3, 4, 6, 8, 12, 16, 24, 32) if look <= most} | {most})
        if most < 3:
            raise BenchError(f"{launches} launches are too few for a check", hint="allow at least 6")
        return cls(false_alarm, false_pass, tuple(looks))

    @property
    def launches(self) -> int:
        """The most launches a check can take."""
        return 2 * self.looks[-1]


@dataclass(frozen=True)
class Decision:
    """Where one comparison stands.

    ``worsening``, ``low``, ``high``: estimate and interval as shares (`Metric.share`) from the launches of
    the current stage up to its last look; the interval is the one decided by, valid over all looks.
    ``p_value``: of a worsening within tolerance, over both stages. ``alarm``: launches after which the
    first test raised an alarm. ``more_launches``: what to measure before asking again; 0 when the answer is
    final.
    """

    state: State
    worsening: float
    low: float
    high: float
    p_value: float
    launches: int
    alarm: int | None
    more_launches: int
    reason: str


@dataclass(frozen=True)
class _Look:
    """A sequential test up to one look: p-values paid for all looks."""

    launches: int
    p_worse: float  # of "worsening <= limit"
    p_fine: float  # of "worsening >= limit"


def _p_values(values: Floats, limit: float) -> tuple[float, float]:
    """One-sided p-values of Student's t test of the mean: of mean <= limit, and of mean >= limit."""
    excess = float(values.mean()) - limit
    spread = float(values.std(ddof=1)) / math.sqrt(values.size)
    if spread == 0:
        return (0.0, 1.0) if excess > 0 else (1.0, 0.0)
    below = float(stdtr(values.size - 1, excess / spread))
    return float(stdtr(values.size - 1, -excess / spread)), below


def _sequence(values: Floats, limit: float, looks: Sequence[int]) -> list[_Look]:
    """The looks that the launches so far allow."""
    found: list[_Look] = []
    worse = fine = 1.0
    for look in looks:
        if look > values.size:
            break
        p_worse, p_fine = _p_values(values[:look], limit)
        worse, fine = min(worse, len(looks) * p_worse), min(fine, len(looks) * p_fine)
        found.append(_Look(look, worse, fine))
    return found


def _interval(values: Floats, below: float, above: float) -> tuple[float, float, float]:
    """Mean with one-sided t bounds at the levels `below` and `above`."""
    if values.size < 2:
        return (float(values.mean()) if values.size else math.nan), -math.inf, math.inf
    mean, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(values.size)
    freedom = values.size - 1
    return mean, mean + float(stdtrit(freedom, below)) * error, mean - float(stdtrit(freedom, above)) * error


@dataclass(frozen=True)
class _Evidence:
    """All that the launches say of one comparison, before other comparisons are looked at."""

    first: list[_Look]
    second: list[_Look]
    alarm: int | None
    p_value: float


def _evidence(values: Floats, limit: float, plan: Plan, alarm_level: float) -> _Evidence:
    """Follow the launches look by look; what comes after a pass or a contradicted alarm changes nothing."""
    first = _sequence(values, limit, plan.looks)
    for index, look in enumerate(first):
        if look.p_fine <= plan.false_pass:
            return _Evidence(first[: index + 1], [], None, 1.0)
        if look.p_worse <= alarm_level:
            second = _sequence(values[look.launches :], limit, plan.looks)
            fine = next(
                (n for n, later in enumerate(second, 1) if later.p_fine <= plan.false_pass), len(second)
            )
            second = second[:fine]
            p_second = second[-1].p_worse if second else 1.0
            return _Evidence(first[: index + 1], second, look.launches, max(look.p_worse, p_second) ** 2)
    return _Evidence(first, [], None, 1.0)


def _next_look(launches: int, looks: Sequence[int]) -> int:
    """Launches still needed for the next look; 0 after the last."""
    return next((look - launches for look in looks if look > launches), 0)


def _decision(
    values: Floats, target: Metric, plan: Plan, alarm_level: float, found: _Evidence, failed: bool
) -> Decision:
    offset = found.alarm or 0
    looks = found.second if found.alarm else found.first
    seen = values[offset : offset + looks[-1].launches] if looks else values[offset:]
    level = alarm_level / len(plan.looks)
    bounds = _interval(seen, level, plan.false_pass / len(plan.looks))
    fine = bool(looks) and looks[-1].p_fine <= plan.false_pass
    more = 0 if failed or fine else _next_look(values.size - offset, plan.looks)
    state: State
    if failed:
        state, reason = "fail", "worse than tolerated, confirmed by fresh launches"
    elif found.alarm is None and fine:
        state, reason = "pass", "within tolerance"
    elif fine:
        state, reason = "inconclusive", "an alarm that fresh launches contradict"
    elif more:
        state, reason = "undecided", "to be confirmed" if found.alarm else "needs more launches"
    elif found.alarm:
        state, reason = "inconclusive", "an alarm that fresh launches did not confirm"
    else:
        state, reason = "inconclusive", "too noisy for this tolerance and budget"
    worsening, low, high = (target.share(bound) for bound in bounds)
    return Decision(state, worsening, low, high, found.p_value, values.size, found.alarm, more, reason)


def _exact_decision(values: Floats, target: Metric) -> Decision:
    if values.size == 0:
        return Decision("undecided", math.nan, -math.inf, math.inf, 1.0, 0, None, 1, "needs a value")
    worst = target.share(float(values.max()))
    failed = float(values.max()) > target.limit
    reason = "worse than tolerated" if failed else "within tolerance"
    return Decision(
        "fail" if failed else "pass", worst, worst, worst, float(not failed), values.size, None, 0, reason
    )


# -- the check ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """The state of a whole check; ``more_launches`` is what the undecided comparisons still need."""

    state: State
    decisions: dict[str, Decision]
    more_launches: int


def holm(p_values: Mapping[str, float], weights: Mapping[str, float], level: float) -> set[str]:
    """Names rejected by the weighted Holm procedure: family-wise error at most ``level`` (Holm 1979, section 4)."""
    rejected: set[str] = set()
    left = sorted(p_values, key=lambda name: (p_values[name] / weights[name], name))
    while left:
        share = weights[left[0]] / sum(weights[name] for name in left)
        if p_values[left[0]] > level * share:
            break
        rejected.add(left.pop(0))
    return rejected


def decide(
    comparisons: Mapping[str, tuple[Metric, npt.ArrayLike]], plan: Plan, out_of_budget: bool = False
) -> Verdict:
    """Judge all comparisons of a check from the launches so far.

    ``comparisons``: name → (metric, worsening of each launch in order of time [K]; see `launch_means` and
    `Metric.worsening`). Call it again with all launches after ``more_launches`` more; with
    ``out_of_budget`` the undecided becomes inconclusive. The function has no memory: the same launches give
    the same verdict.
    """
    if not comparisons:
        raise BenchError("nothing to compare", hint="the recipe needs an arm and at least one metric")
    values = {name: np.asarray(given, dtype=np.float64) for name, (_, given) in comparisons.items()}
    for name, launches in values.items():
        if not np.isfinite(launches).all():
            raise BenchError(f"{name}: a launch without a finite value", hint="a failed arm cannot be judged")
    noisy = {name: target for name, (target, _) in comparisons.items() if not target.exact}
    weights = {name: target.weight for name, target in noisy.items()}
    levels = {name: math.sqrt(plan.false_alarm * weights[name] / sum(weights.values())) for name in noisy}
    found = {name: _evidence(values[name], noisy[name].limit, plan, levels[name]) for name in noisy}
    failed = holm({name: evidence.p_value for name, evidence in found.items()}, weights, plan.false_alarm)
    decisions = {
        name: _decision(values[name], target, plan, levels[name], found[name], name in failed)
        if name in noisy
        else _exact_decision(values[name], target)
        for name, (target, _) in comparisons.items()
    }
    if out_of_budget:
        decisions = {name: _give_up(decision) for name, decision in decisions.items()}
    return _verdict(decisions)


def decide_stored(
    comparisons: Mapping[str, tuple[Metric, npt.ArrayLike, npt.ArrayLike]], plan: Plan
) -> Verdict:
    """Judge stored runs, whose launches are not paired, by Welch's t test; nothing can be added or confirmed.

    Its level is approximate: at 1 % it rejects in 0.6 to 1.2 % of true nulls for 3 to 10 launches a side, in 1.9 %
    for 10 against 3 launches of three times the spread (simulated).

    ``comparisons``: name → (metric, base [K], head [M]), the `Metric.badness` of each launch (means of the logarithms
    of its blocks; see `launch_means`). For runs of different machines give what a reference arm measured in both
    leaves: badness of the arm minus badness of the reference, launch by launch, so that the difference of head and
    base is the logarithm of a ratio of ratios. Two runs differ in more than their revisions (temperature, neighbours
    on the machine), which no test of their launches can see: prefer an interleaved check.
    """
    if not comparisons:
        raise BenchError("nothing to compare", hint="the runs have no arm and metric in common")
    found: dict[str, tuple[Metric, Floats, Floats]] = {}
    for name, (target, base, head) in comparisons.items():
        sides = np.asarray(base, dtype=np.float64), np.asarray(head, dtype=np.float64)
        if not all(np.isfinite(side).all() and side.size >= (1 if target.exact else 2) for side in sides):
            raise BenchError(f"{name}: needs finite values of at least two launches on both sides")
        found[name] = target, *sides
    tests = {
        name: _welch(base, head, target.limit)
        for name, (target, base, head) in found.items()
        if not target.exact
    }
    weights = {name: found[name][0].weight for name in tests}
    failed = holm({name: test.p_worse for name, test in tests.items()}, weights, plan.false_alarm)
    decisions: dict[str, Decision] = {}
    for name, (target, base, head) in found.items():
        if target.exact:
            decisions[name] = _exact_decision(np.array([head.max() - base.min()]), target)
            continue
        test, level = tests[name], plan.false_alarm * weights[name] / sum(weights.values())
        state: State = (
            "fail" if name in failed else "pass" if test.p_fine <= plan.false_pass else "inconclusive"
        )
        reasons = {
            "fail": "worse than tolerated",
            "pass": "within tolerance",
            "inconclusive": "too noisy to say",
        }
        decisions[name] = Decision(
            state,
            worsening=target.share(test.mean),
            low=target.share(test.mean + test.quantile(level)),
            high=target.share(test.mean - test.quantile(plan.false_pass)),
            p_value=test.p_worse,
            launches=min(base.size, head.size),
            alarm=None,
            more_launches=0,
            reason=reasons[state],
        )
    return _verdict(decisions)


@dataclass(frozen=True)
class _Welch:
    """Welch's test of the difference of two means against a limit."""

    mean: float
    error: float
    freedom: float
    limit: float

    @property
    def p_worse(self) -> float:
        if self.error == 0:
            return 0.0 if self.mean > self.limit else 1.0
        return float(stdtr(self.freedom, (self.limit - self.mean) / self.error))

    @property
    def p_fine(self) -> float:
        return 1.0 - self.p_worse

    def quantile(self, level: float) -> float:
        return float(stdtrit(self.freedom, level)) * self.error


def _welch(base: Floats, head: Floats, limit: float) -> _Welch:
    parts = np.array([side.var(ddof=1) / side.size for side in (base, head)])
    variance = float(parts.sum())
    spread = float(parts[0] ** 2 / (base.size - 1) + parts[1] ** 2 / (head.size - 1))
    freedom = variance**2 / spread if spread else math.inf  # Satterthwaite 1946
    return _Welch(float(head.mean() - base.mean()), math.sqrt(variance), freedom, limit)


def _verdict(decisions: dict[str, Decision]) -> Verdict:
    """The worst state counts; a failure stands whatever the others still need."""
    states = {decision.state for decision in decisions.values()}
    order: tuple[State, ...] = ("fail", "undecided", "inconclusive", "pass")
    state = next(state for state in order if state in states)
    return Verdict(state, decisions, max(decision.more_launches for decision in decisions.values()))


def _give_up(decision: Decision) -> Decision:
    if decision.state != "undecided":
        return decision
    return replace(
        decision, state="inconclusive", more_launches=0, reason=f"out of budget: {decision.reason}"
    )
