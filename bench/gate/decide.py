"""Has it become slower? A sequential test with known error rates. No input or output: `bench check` feeds it.

The unit is a launch: base and head afresh, in interleaved rounds, one number per metric. docs/explanation/gate.md
derives the looks, the confirmation and the corrections; `python -m benchmarks.gate.errors` measures the error rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from bench.errors import BenchError
from bench.gate.metrics import Metric, State
from bench.judge.steady import Floats, t_probability, t_quantile

FEWEST_LAUNCHES = 6
"""With fewer a regression cannot be confirmed, and nothing passes."""
MOST_BEFORE_A_PASS = 20
"""A check may pass after five sixths of its budget, or so many launches: slow ones, one in six, show by then."""


# -- what is judged ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A standard deviation that is known from elsewhere, with its degrees of freedom; 0 of them: not known."""

    sd: float = 0.0
    freedom: int = 0


@dataclass(frozen=True)
class Launches:
    """Worsening of head against base in each launch, in order of time.

    ``values``: [K], on the scale of `Metric.worsening`. ``errors``: the standard error of each from its own rounds
    [K], with ``freedoms`` [K]; without degrees of freedom the rounds say nothing. ``calibrated``: spread of launches
    of equal revisions on this machine. Neither may make the gate surer than the launches do.
    """

    values: Floats
    errors: Floats = field(default_factory=lambda: np.zeros(0))
    freedoms: Floats = field(default_factory=lambda: np.zeros(0))
    calibrated: Spread = Spread()

    def part(self, start: int, stop: int) -> Launches:
        """Some of the launches."""
        return Launches(
            self.values[start:stop], self.errors[start:stop], self.freedoms[start:stop], self.calibrated
        )

    @property
    def once_more(self) -> Launches:
        """With the worst launch once more: slow launches that are rare may not have come as often as they will."""
        if not self.values.size:
            return self
        worst = int(self.values.argmax())
        values, errors, freedoms = (
            np.append(one, one[worst]) if one.size else one
            for one in (self.values, self.errors, self.freedoms)
        )
        return Launches(values, errors, freedoms, self.calibrated)

    @property
    def mean(self) -> float:
        """Mean worsening; NaN without launches."""
        return float(self.values.mean()) if self.values.size else math.nan

    def standard_errors(self) -> Iterator[tuple[float, float]]:
        """Standard errors of the mean with their degrees of freedom: from launches, rounds and calibration."""
        count = self.values.size
        if count > 1:
            yield float(self.values.std(ddof=1)) / math.sqrt(count), count - 1
        known = float(self.freedoms.sum())
        if count and known:
            yield math.sqrt(float(self.errors @ self.errors)) / count, known
        if count and self.calibrated.freedom:
            yield self.calibrated.sd / math.sqrt(count), self.calibrated.freedom

    def p_worse(self, limit: float) -> float:
        """P-value of "the mean is at most the limit": the largest that any of the standard errors gives."""
        if self.values.size < 2:
            return 1.0
        return max(_upper_tail(self.mean - limit, *error) for error in self.standard_errors())

    def p_fine(self, limit: float) -> float:
        """P-value of "the mean is at least the limit", with the worst launch once more."""
        if self.values.size < 2:
            return 1.0
        seen = self.once_more
        return max(_upper_tail(limit - seen.mean, *error) for error in seen.standard_errors())

    def reach(self, level: float) -> float:
        """Distance from the mean to its one-sided bound at an error of ``level``."""
        if self.values.size < 2:
            return math.inf
        return max(-t_quantile(freedom, level) * error for error, freedom in self.standard_errors())


def _upper_tail(excess: float, error: float, freedom: float) -> float:
    if error == 0:
        return 0.0 if excess > 0 else 1.0
    return t_probability(freedom, -excess / error)


@dataclass(frozen=True)
class Schedule:
    """Error rates of a check, and the launch counts at which it looks at the data.

    ``false_alarm``: highest probability that a check fails without a regression beyond tolerance.
    ``false_pass``: highest probability that a comparison passes in spite of one. ``looks``: for an alarm; the
    confirmation has the same, counted anew. ``pass_looks``: for a pass, counted over all launches.
    """

    false_alarm: float = 0.01
    false_pass: float = 0.05
    looks: tuple[int, ...] = (3, 4, 6, 8, 12)
    pass_looks: tuple[int, ...] = (20, 24)

    def __post_init__(self) -> None:
        for looks, fewest in ((self.looks, 2), (self.pass_looks, FEWEST_LAUNCHES)):
            if not looks or looks[0] < fewest or any(np.diff(looks) <= 0):
                raise BenchError(f"looks must be increasing launch counts from {fewest} on")
        if not (0 < self.false_alarm < 0.25 and 0 < self.false_pass < 0.5):
            raise BenchError("false_alarm must be between 0 and 0.25, and false_pass between 0 and 0.5")

    @classmethod
    def within(cls, launches: int, false_alarm: float = 0.01, false_pass: float = 0.05) -> Schedule:
        """The schedule for a budget of so many launches; half of them are kept to confirm an alarm.

        Raises:
            BenchError: for fewer than `FEWEST_LAUNCHES`.
        """
        if launches < FEWEST_LAUNCHES:
            raise BenchError(
                f"{launches} launches are too few for a check", hint=f"allow at least {FEWEST_LAUNCHES}"
            )
        most = launches // 2
        looks = sorted({min(look, most) for look in (3, 4, 6, 8, 12, 16, 24, 32) if look <= most} | {most})
        last = 2 * most
        first = min(max(5 * last // 6, FEWEST_LAUNCHES), MOST_BEFORE_A_PASS)
        between = {round(math.sqrt(first * last))} if last >= 2 * first else set()
        return cls(false_alarm, false_pass, tuple(looks), tuple(sorted({first, last} | between)))

    @property
    def launches(self) -> int:
        """The most launches a check can take."""
        return max(2 * self.looks[-1], self.pass_looks[-1])


@dataclass(frozen=True)
class Decision:
    """Where one comparison stands.

    ``worsening``, ``low``, ``high``: estimate and interval as shares (`Metric.share`); the interval is the one decided
    by, valid over all looks. ``p_value``: of a worsening within tolerance, over both stages. ``alarm``: launches after
    which the first test raised an alarm. ``more_launches``: what to measure before asking again; 0 when the answer is
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
class Ruling:
    """The state of a whole check; ``more_launches`` is what the undecided comparisons still need."""

    state: State
    decisions: dict[str, Decision]
    more_launches: int


# -- one comparison ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Evidence:
    """What the launches say of one comparison, before others are looked at.

    ``alarm``, ``passed``: launches after which either came. ``p_value``: of both stages. ``next_look``: the launch
    count to ask again at; 0 after the last.
    """

    alarm: int | None
    passed: int | None
    p_value: float
    next_look: int


def _evidence(seen: Launches, limit: float, plan: Schedule, alarm_level: float) -> _Evidence:
    """Follow the launches look by look; what comes after a pass changes nothing."""
    count = seen.values.size
    passed = next(
        (
            look
            for look in plan.pass_looks
            if look <= count and len(plan.pass_looks) * seen.part(0, look).p_fine(limit) <= plan.false_pass
        ),
        None,
    )
    last = passed or count
    worse, alarm = 1.0, None
    for look in plan.looks:
        if look <= last and alarm is None:
            worse = min(worse, len(plan.looks) * seen.part(0, look).p_worse(limit))
            alarm = look if worse <= alarm_level else None
    offset = alarm or 0
    second = min(
        (
            len(plan.looks) * seen.part(offset, offset + look).p_worse(limit)
            for look in plan.looks
            if alarm and offset + look <= last
        ),
        default=1.0,
    )
    to_come = [*(offset + look for look in plan.looks), *plan.pass_looks]
    next_look = min((look for look in to_come if look > count), default=0)
    return _Evidence(alarm, passed, max(worse, min(second, 1.0)) ** 2 if alarm else 1.0, next_look)


def _decision(
    seen: Launches, target: Metric, plan: Schedule, alarm_level: float, found: _Evidence, failed: bool
) -> Decision:
    state: State
    part = seen
    if failed:
        state, reason = "fail", "worse than tolerated, confirmed by fresh launches"
        alarm = found.alarm or 0
        fresh = [look for look in plan.looks if alarm + look <= seen.values.size]
        part = min(
            (seen.part(alarm, alarm + look) for look in fresh), key=lambda one: one.p_worse(target.limit)
        )
    elif found.passed:
        state, reason = "pass", "within tolerance"
        part = seen.part(0, found.passed)
    elif found.next_look:
        state, reason = "undecided", "to be confirmed" if found.alarm else "needs more launches"
    elif found.alarm:
        state, reason = "inconclusive", "an alarm that fresh launches did not confirm"
    else:
        state, reason = "inconclusive", "too noisy for this tolerance and budget"
    below = part.reach(alarm_level / len(plan.looks))
    worst = part.once_more
    above = worst.mean - part.mean + worst.reach(plan.false_pass / len(plan.pass_looks))
    more = found.next_look - seen.values.size if state == "undecided" else 0
    worsening, low, high = (target.share(x) for x in (part.mean, part.mean - below, part.mean + above))
    if not part.values.size:
        low, high = -math.inf, math.inf
    return Decision(state, worsening, low, high, found.p_value, seen.values.size, found.alarm, more, reason)


def _exact_decision(values: Floats, target: Metric) -> Decision:
    if values.size == 0:
        return Decision("undecided", math.nan, -math.inf, math.inf, 1.0, 0, None, 1, "needs a value")
    worst = target.share(float(values.max()))
    failed = float(values.max()) > target.limit
    reason = "worse than tolerated" if failed else "within tolerance"
    return Decision(
        "fail" if failed else "pass", worst, worst, worst, float(not failed), values.size, None, 0, reason
    )


# -- the check -----------------------------------------------------------------------------------------------


def holm(p_values: Mapping[str, float], level: float) -> set[str]:
    """Names rejected by Holm's procedure (1979): the family-wise error is at most ``level``."""
    rejected: set[str] = set()
    for name in sorted(p_values, key=lambda name: (p_values[name], name)):
        if p_values[name] > level / (len(p_values) - len(rejected)):
            break
        rejected.add(name)
    return rejected


def decide(
    comparisons: Mapping[str, tuple[Metric, Launches]], plan: Schedule, out_of_budget: bool = False
) -> Ruling:
    """Judge all comparisons of a check from the launches so far.

    The function has no memory: the same launches give the same ruling.

    Args:
        comparisons: name → metric and worsening of each launch.
        plan: error rates and looks; the same at every call of a check.
        out_of_budget: the undecided becomes inconclusive.

    Returns:
        The ruling. Call again with all launches after ``more_launches`` more.

    Raises:
        BenchError: without a comparison, or for a value that is not finite.
    """
    if not comparisons:
        raise BenchError("nothing to compare", hint="the recipe needs an arm and at least one metric")
    for name, (_, launches) in comparisons.items():
        if not np.isfinite(launches.values).all():
            raise BenchError(f"{name}: a launch without a finite value", hint="a failed arm cannot be judged")
    noisy = [name for name, (target, _) in comparisons.items() if not target.exact]
    level = math.sqrt(plan.false_alarm / max(1, len(noisy)))
    found = {name: _evidence(comparisons[name][1], comparisons[name][0].limit, plan, level) for name in noisy}
    failed = holm({name: evidence.p_value for name, evidence in found.items()}, plan.false_alarm)
    decisions = {
        name: _decision(launches, target, plan, level, found[name], name in failed)
        if name in found
        else _exact_decision(launches.values, target)
        for name, (target, launches) in comparisons.items()
    }
    if out_of_budget:
        decisions = {name: _give_up(decision) for name, decision in decisions.items()}
    return _ruling(decisions)


@dataclass(frozen=True)
class Stored:
    """Launches of two stored runs [K], [M] (`Metric.badness`), and how much sessions differ; unknown: no freedom."""

    base: Floats
    head: Floats
    between: Spread = Spread()


def decide_stored(comparisons: Mapping[str, tuple[Metric, Stored]], plan: Schedule) -> Ruling:
    """Judge stored runs, whose launches are not paired; nothing can be added or confirmed.

    Both Welch's test of the launches and a test by the spread between sessions must agree. Where that spread is not
    known the answer is inconclusive: two runs differ in more than their revisions.

    Args:
        comparisons: name → metric and launches. For runs of different machines give badness of the arm minus badness
            of a reference arm, so that the difference is the logarithm of a ratio of ratios.
        plan: its error rates.

    Returns:
        A final ruling.

    Raises:
        BenchError: without a comparison, or without two launches on both sides.
    """
    if not comparisons:
        raise BenchError("nothing to compare", hint="the runs have no arm and metric in common")
    for name, (target, one) in comparisons.items():
        fewest = 1 if target.exact else 2
        if not all(np.isfinite(side).all() and side.size >= fewest for side in (one.base, one.head)):
            raise BenchError(f"{name}: needs finite values of at least two launches on both sides")
    level = plan.false_alarm / max(1, sum(not target.exact for target, _ in comparisons.values()))
    judged = {
        name: _stored_decision(target, one, level, plan.false_pass)
        for name, (target, one) in comparisons.items()
    }
    p_values = {name: judged[name].p_value for name, (target, _) in comparisons.items() if not target.exact}
    known = {name for name in p_values if comparisons[name][1].between.freedom}
    for name in holm(p_values, plan.false_alarm) & known:
        judged[name] = replace(judged[name], state="fail", reason="worse than tolerated")
    return _ruling(judged)


def _stored_decision(target: Metric, one: Stored, level: float, false_pass: float) -> Decision:
    """The decision but for a failure, which needs the other comparisons."""
    if target.exact:
        return _exact_decision(np.array([one.head.max() - one.base.min()]), target)
    difference = float(one.head.mean() - one.base.mean())
    p_worse, low, high = _welch(one, target.limit, level, false_pass)
    p_fine = 1 - p_worse
    error, freedom = one.between.sd * math.sqrt(2), one.between.freedom
    if freedom:
        p_worse = max(p_worse, _upper_tail(difference - target.limit, error, freedom))
        p_fine = max(p_fine, _upper_tail(target.limit - difference, error, freedom))
        low = min(low, difference + t_quantile(freedom, level) * error)
        high = max(high, difference - t_quantile(freedom, false_pass) * error)
    state: State = "pass" if freedom and p_fine <= false_pass else "inconclusive"
    reason = "within tolerance" if state == "pass" else "too noisy to say"
    if not freedom:
        reason = "how much sessions differ is not known: store more runs of this work, or use --base"
    worsening, low, high = (target.share(value) for value in (difference, low, high))
    return Decision(state, worsening, low, high, p_worse, min(one.base.size, one.head.size), None, 0, reason)


def _welch(one: Stored, limit: float, level: float, false_pass: float) -> tuple[float, float, float]:
    """P-value of "worse by at most the limit" by Welch's test, and one-sided bounds of the difference."""
    difference = float(one.head.mean() - one.base.mean())
    if one.base.std() == 0 and one.head.std() == 0:
        return float(difference <= limit), difference, difference
    from scipy.stats import ttest_ind  # half a second, which only stored runs need

    found = ttest_ind(one.head - limit, one.base, equal_var=False, alternative="greater")
    two_sided = ttest_ind(one.head, one.base, equal_var=False)
    low = two_sided.confidence_interval(1 - 2 * level).low
    high = two_sided.confidence_interval(1 - 2 * false_pass).high
    return float(found.pvalue), float(low), float(high)


def _ruling(decisions: dict[str, Decision]) -> Ruling:
    """The worst state counts; a failure stands whatever the others still need."""
    states = {decision.state for decision in decisions.values()}
    order: tuple[State, ...] = ("fail", "undecided", "inconclusive", "pass")
    state = next(state for state in order if state in states)
    return Ruling(state, decisions, max(decision.more_launches for decision in decisions.values()))


def _give_up(decision: Decision) -> Decision:
    if decision.state != "undecided":
        return decision
    return replace(
        decision, state="inconclusive", more_launches=0, reason=f"out of budget: {decision.reason}"
    )
