"""How fast, how much faster, and how sure: the statistics of blocks of steps.

Small pure functions over block times (`bench.judge.steady.Blocks`), on logarithms: noise is relative, and the
ratio of A to B has to be one over the ratio of B to A. docs/explanation/ratios-and-intervals.md has the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.judge.steady import Blocks, Floats, Integers, t_quantile, warms_up

POWER = 0.8
"""Power at which `Ratio.detectable` is given."""


# -- ratios ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Rounds in which both arms were timed.

    ``launch``: int64 [N]. ``log_ratio``: float64 [N], log(t_baseline / t_arm). ``unpaired``: rounds that
    only one of the two arms has (a failed or interrupted launch), which are left out. ``unsteady``: first rounds
    that are left out because one of the arms still warmed up in them.
    """

    launch: Integers
    log_ratio: Floats
    unpaired: int
    unsteady: int = 0


@dataclass(frozen=True)
class Ratio:
    """Throughput of an arm over that of its baseline (> 1: the arm is faster), with its interval.

    ``detectable``: the smallest relative speed-up this design and its noise would have shown with a power
    of `POWER` (0.03: a true ratio of 1.03 would have had an interval above 1 in 80 % of such runs; infinite
    when unknown).
    """

    value: float
    low: float
    high: float
    confidence: float
    launches: int
    rounds: int
    detectable: float
    method: str
    sessions: int = 1

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1.0 <= self.high


class Rounds(NamedTuple):
    """Of one arm: the place of each round [R], in order, its mean log-seconds [R], and `warms_up`."""

    places: Integers
    """Launch times `_LAUNCH` plus round: one number is found faster than two."""
    logs: Floats
    warms_up: bool


_LAUNCH = 2**32


def rounds_of(blocks: Blocks) -> Rounds:
    """The rounds of an arm. Should it have several blocks in one round, their geometric mean counts.

    Raises:
        BenchError: for block times that are not positive and finite.
    """
    seconds = np.asarray(blocks["s_per_step"], dtype=np.float64)
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        raise BenchError("block times must be positive", hint="the samples are damaged; measure again")
    launch, round_ = (np.asarray(blocks[name], dtype=np.int64) for name in ("launch", "round"))
    rounds, member, counts = np.unique(launch * _LAUNCH + round_, return_inverse=True, return_counts=True)
    logs = np.bincount(member, weights=np.log(seconds), minlength=rounds.size) / counts
    return Rounds(rounds, logs, warms_up(blocks))


def pair(arm: Blocks, baseline: Blocks) -> Pairs:
    """`pair_rounds` of the blocks of two arms."""
    return pair_rounds(rounds_of(arm), rounds_of(baseline))


def pair_rounds(arm: Rounds, baseline: Rounds) -> Pairs:
    """Match two arms by launch and round.

    The first round of every launch is left out when one of the arms still warms up in it
    (`bench.judge.steady.warms_up`).

    Args:
        arm: its rounds.
        baseline: those of the arm to compare with.

    Returns:
        The rounds that both have.
    """
    both, own, theirs = np.intersect1d(arm.places, baseline.places, assume_unique=True, return_indices=True)
    steady = np.ones(both.size, bool)
    if arm.warms_up or baseline.warms_up:
        steady = both % _LAUNCH > 0
    return Pairs(
        launch=both[steady] // _LAUNCH,
        log_ratio=(baseline.logs[theirs] - arm.logs[own])[steady],
        unpaired=arm.places.size + baseline.places.size - 2 * both.size,
        unsteady=int((~steady).sum()),
    )


@dataclass(frozen=True)
class Level:
    """What the spread at one level of the design says of the mean.

    ``name``: sessions, launches or rounds. ``error``: standard error of the mean log-ratio if this level were the
    only source of noise above it. ``freedom``: degrees of freedom of that estimate.
    """

    name: str
    error: float
    freedom: int

    def half_width(self, confidence: float) -> float:
        """Half width of the interval of the mean, by Student's t."""
        return t_quantile(self.freedom, (1 + confidence) / 2) * self.error

    def detectable(self, confidence: float) -> float:
        """The true log-ratio that an interval of this level excludes from zero with a power of `POWER`."""
        from scipy.special import nctdtrinc

        quantile = t_quantile(self.freedom, (1 + confidence) / 2)
        return float(nctdtrinc(self.freedom, 1 - POWER, quantile)) * self.error if self.error else 0.0


def levels(session: Integers, launch: Integers, y: Floats) -> tuple[float, list[Level]]:
    """The mean over sessions of the means over launches, and its error seen from every level.

    Every launch counts alike in its session, and every session in the whole, however many rounds they have. The
    spread of a level contains that of the levels below it, so each estimate stands alone. Spreads are pooled
    within the units above: launches within sessions, rounds within launches.

    Args:
        session: session of each round, int [N].
        launch: launch of each round, int [N]; different sessions may use the same numbers.
        y: log-ratio of each round [N].

    Returns:
        The mean, and the levels that have a spread, from the top.
    """
    units, member = np.unique(session * _LAUNCH + launch, return_inverse=True)
    rounds = np.bincount(member)
    launch_mean = np.bincount(member, weights=y) / rounds
    _, of_session = np.unique(units // _LAUNCH, return_inverse=True)
    launches = np.bincount(of_session)
    session_mean = np.bincount(of_session, weights=launch_mean) / launches
    weight = 1 / (launches.size * launches[of_session])  # of each launch in the mean
    found = []
    for name, values, means, group, scale in (
        ("sessions", session_mean, session_mean.mean(keepdims=True), np.zeros(launches.size, np.int64),
         1 / launches.size),
        ("launches", launch_mean, session_mean, of_session, float(weight @ weight)),
        ("rounds", y, launch_mean, member, float(weight**2 @ (1 / rounds))),
    ):  # fmt: skip
        freedom = values.size - means.size
        if freedom:
            residual = values - means[group]
            found.append(Level(name, math.sqrt(float(residual @ residual) / freedom * scale), freedom))
    return float(session_mean.mean()), found


def ratio(
    launch: npt.ArrayLike,
    log_ratio: npt.ArrayLike,
    confidence: float = 0.95,
    session: npt.ArrayLike | None = None,
) -> Ratio:
    """Geometric mean of paired ratios with its interval: sessions over launches over rounds.

    The half width is the largest that any level asks for by Student's t: sessions when there are several, launches,
    rounds. Launches that agree by chance cannot make it narrower than their own rounds allow.
    docs/explanation/ratios-and-intervals.md has the derivation and what it covers.

    Args:
        launch: launch of each round, int [N].
        log_ratio: log(t_baseline / t_arm) of each round [N] (see `pair`).
        confidence: of the interval.
        session: run folder of each round, int [N]; by default all are of one session.

    Returns:
        The ratio. With one round its interval is (0, inf).

    Raises:
        BenchError: without rounds.
    """
    launches = np.asarray(launch, dtype=np.int64)
    y = np.asarray(log_ratio, dtype=np.float64)
    sessions = np.zeros_like(launches) if session is None else np.asarray(session, dtype=np.int64)
    if y.size == 0:
        raise BenchError("no round measured both arms", hint="look at the failures of the arms")
    if not launches.shape == sessions.shape == y.shape or y.ndim != 1 or not np.isfinite(y).all():
        raise ValueError("session, launch and log_ratio must be one-dimensional, of one length and finite")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    mean, found = levels(sessions, launches, y)
    half_width = max((level.half_width(confidence) for level in found), default=math.inf)
    return Ratio(
        value=math.exp(mean),
        low=math.exp(mean - half_width),
        high=_exp(mean + half_width),
        confidence=confidence,
        launches=int(np.unique(sessions * _LAUNCH + launches).size),
        rounds=y.size,
        detectable=_exp(max((level.detectable(confidence) for level in found), default=math.inf)) - 1,
        method=_method(found),
        sessions=int(np.unique(sessions).size),
    )


def pooled(sessions: Sequence[Pairs], confidence: float = 0.95) -> Ratio:
    """The ratio over several runs of the same recipe: every session counts alike.

    Args:
        sessions: the rounds of each run that both arms have (`pair`).
        confidence: of the interval.

    Returns:
        The ratio; with several sessions its interval is that of a further session.

    Raises:
        BenchError: when no session has a round of both arms.
    """
    sizes = [pairs.log_ratio.size for pairs in sessions]
    return ratio(
        np.concatenate([pairs.launch for pairs in sessions]),
        np.concatenate([pairs.log_ratio for pairs in sessions]),
        confidence,
        session=np.repeat(np.arange(len(sessions)), sizes),
    )


def _method(found: Sequence[Level]) -> str:
    """How the interval was made, and what it leaves out."""
    names = [level.name for level in found]
    if not names:
        return "one round: no interval"
    text = f"Student's t over {names[0]}"
    if len(names) > 1:
        text += f", not narrower than over {' or '.join(names[1:])}"
    if names[0] == "rounds":
        return f"{text} (without launch-to-launch variation)"
    return text if names[0] == "sessions" else f"{text} (one session)"


def _exp(exponent: float) -> float:
    """exp, infinite where the number is too large to write."""
    return math.exp(exponent) if exponent < 700 else math.inf


@dataclass(frozen=True)
class Cost:
    """Share of the step time that a level of a factor takes, with its interval. Negative: it saves time."""

    share: float
    low: float
    high: float


def cost(with_over_without: Ratio) -> Cost:
    """What a factor costs inside one codebase: 1 - throughput with it / throughput without.

    With t seconds per step without EMA and t + e with it the throughput ratio is t / (t + e), so the cost
    is e / (t + e): 0.05 means that 5 % of each step is EMA. Pass the ratio whose arm has the factor on and
    whose baseline has it off.
    """
    return Cost(
        share=1 - with_over_without.value, low=1 - with_over_without.high, high=1 - with_over_without.low
    )


# -- summaries ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """Times of one arm: median with 5th and 95th percentile in s/iter, and images/s at the median."""

    median_s: float
    p5_s: float
    p95_s: float
    images_per_s: float
    n: int


def summarize(seconds: npt.ArrayLike, images_per_step: int) -> Summary:
    """Summary of step or block times in seconds; ``images_per_step`` is batch size times ranks."""
    times = np.asarray(seconds, dtype=np.float64)
    if times.size == 0:
        raise BenchError("no measured step to summarise", hint="the arm failed before its first block")
    p5, median, p95 = (float(value) for value in np.percentile(times, [5, 50, 95]))
    return Summary(median, p5, p95, images_per_step / median if median > 0 else math.inf, times.size)
