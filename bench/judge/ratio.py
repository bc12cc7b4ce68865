"""How fast, how much faster, and how sure: the statistics of blocks of steps.

Small pure functions over block times (`bench.record.samples.block_times`). Everything multiplicative is done on
logarithms: times are positive, noise is relative, and the ratio of A to B has to be one over the ratio of B
to A.

**The model.** In round *r* of launch *l* the arm and its baseline are timed one after the other, and

    y[l, r] = log(t_baseline / t_arm) = log(ratio) + launch[l] + round[l, r]

Drift and bursts that hit both arms of a round cancel in the difference; because the order of the arms flips
from round to round, what a steady drift leaves has alternating sign and cancels in the mean. ``launch`` is
what a fresh process draws anew (memory layout, thread placement, autotuned kernels) and what no number of
rounds averages out (Kalibera and Jones, "Rigorous benchmarking in reasonable time", ISMM 2013). The launch
is therefore the unit of replication: three launches of five rounds say more than one launch of a hundred.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pandas as pd

from bench.errors import BenchError

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

RESAMPLES = 4000
POWER = 0.8
"""Power at which `Ratio.detectable` is given."""


# -- ratios ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Rounds in which both arms were timed.

    ``launch``: int64 [N]. ``log_ratio``: float64 [N], log(t_baseline / t_arm). ``unpaired``: rounds that
    only one of the two arms has (a failed or interrupted launch), which are left out.
    """

    launch: Integers
    log_ratio: Floats
    unpaired: int


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

    @property
    def differs(self) -> bool:
        """Whether the interval excludes 1."""
        return not self.low <= 1.0 <= self.high


def pair(arm: pd.DataFrame, baseline: pd.DataFrame) -> Pairs:
    """Match the blocks of two arms by launch and round.

    Both arguments are tables of `bench.record.samples.block_times`. Should an arm have several blocks in one round,
    their geometric mean counts. Raises `BenchError` for block times that are not positive and finite.
    """
    logs = []
    for blocks in (arm, baseline):
        seconds = blocks["s_per_step"].to_numpy(dtype=np.float64)
        if not (np.isfinite(seconds) & (seconds > 0)).all():
            raise BenchError("block times must be positive", hint="the samples are damaged; measure again")
        keyed = blocks[["launch", "round"]].assign(log_s=np.log(seconds))
        logs.append(keyed.groupby(["launch", "round"])["log_s"].mean())
    both = pd.concat(logs, axis=1, keys=["arm", "baseline"], join="inner").sort_index()
    return Pairs(
        launch=both.index.get_level_values("launch").to_numpy(dtype=np.int64),
        log_ratio=(both["baseline"] - both["arm"]).to_numpy(dtype=np.float64),
        unpaired=len(logs[0]) + len(logs[1]) - 2 * len(both),
    )


@dataclass(frozen=True)
class Components:
    """Estimates of the model above; ``sizes`` are the rounds per launch, largest first."""

    sizes: tuple[int, ...]
    mean: float
    standard_error: float
    launch_sd: float
    round_sd: float
    residuals: Floats  # magnitudes, sorted, scaled to the variance of `round`


def variance_components(launch: Integers, y: Floats) -> Components:
    """Variance components by moments, one-way random effects (Searle, "Linear Models", 1971, ch. 11).

    The mean is over all rounds, so launch *l* has the weight w = n_l / N, and the squared standard error is
    L / (L - 1) * sum w² (mean_l - mean)²: with equal n the variance of the launch means over L, which is
    unbiased whatever the spread within launches, since that is part of it.
    """
    _, member, counts = np.unique(launch, return_inverse=True, return_counts=True)
    launches, total = len(counts), len(y)
    means = np.bincount(member, weights=y) / counts
    mean = float(y.mean())
    residual = y - means[member]
    freedom = total - launches
    within = float(residual @ residual) / freedom if freedom else 0.0
    if launches == 1:
        variance, launch_variance = within / total, 0.0
    else:
        weights = counts / total
        variance = float((weights**2) @ (means - mean) ** 2) * launches / (launches - 1)
        between = float(counts @ (means - mean) ** 2) / (launches - 1)
        rounds = (total - float(counts @ counts) / total) / (launches - 1)
        launch_variance = max(0.0, (between - within) / rounds)
    scale = math.sqrt(total / freedom) if freedom else 0.0
    return Components(
        sizes=tuple(sorted(counts.tolist(), reverse=True)),
        mean=mean,
        standard_error=math.sqrt(variance),
        launch_sd=math.sqrt(launch_variance),
        round_sd=math.sqrt(within),
        residuals=np.sort(np.abs(residual)) * scale,
    )


@lru_cache(maxsize=8)
def _draws(sizes: tuple[int, ...], seed: int, resamples: int) -> tuple[Integers, Floats]:
    """Random numbers of a bootstrap: which of 2 N residuals [R, N], and normals [R, L] (of one launch: [R, N]).

    Kept between calls because a report compares many arms of the same design.
    """
    generator = np.random.default_rng(seed)
    total, launches = sum(sizes), len(sizes)
    picks = generator.integers(0, 2 * total, (resamples, total))
    return picks, generator.standard_normal((resamples, launches if launches > 1 else total))


def _bootstrap(components: Components, seed: int, resamples: int) -> tuple[Floats, Floats]:
    """Means and standard errors [R] of simulated runs of the same design whose true log-ratio is zero."""
    sizes = np.array(components.sizes)
    launches, total = len(sizes), int(sizes.sum())
    picks, normals = _draws(components.sizes, seed, resamples)
    freedom = total - launches
    smooth = min(1.0, 2 / freedom) if freedom else 1.0  # the normal share of the variance of rounds
    both_signs = np.concatenate([components.residuals, -components.residuals])
    rounds = (math.sqrt(1 - smooth) * both_signs)[picks]
    if launches == 1:
        rounds += math.sqrt(smooth) * components.round_sd * normals
        return rounds.mean(axis=1), rounds.std(axis=1, ddof=1) / math.sqrt(total)
    # The mean of a launch has two normal parts, its own effect and the smooth part of its rounds: one draw.
    normal_sd = np.sqrt(components.launch_sd**2 + smooth * components.round_sd**2 / sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    means = np.add.reduceat(rounds, starts, axis=1) / sizes + normal_sd * normals
    weights = sizes / total
    mean = means @ weights
    squares = ((means - mean[:, None]) ** 2) @ weights**2
    return mean, np.sqrt(squares * launches / (launches - 1))


def ratio(
    launch: npt.ArrayLike,
    log_ratio: npt.ArrayLike,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Ratio:
    """Geometric mean of paired ratios, its interval by a studentised hierarchical bootstrap (launch → round).

    ``launch`` int [N], ``log_ratio`` float [N] (see `pair`). Raises `BenchError` without rounds.

    **Why not the plain bootstrap.** Drawing launches and then rounds with replacement and reading percentiles
    takes the spread of L launch means as known, and counts the spread of rounds twice (it is part of the
    spread of launch means). With 2 to 6 launches such a 95 % interval covers the truth in 59 to 86 % of runs
    when launches differ much, and in up to 98 % when they do not. Two changes mend that:

    1. *Studentise* (Efron; Davison and Hinkley, "Bootstrap Methods and their Application", 1997, §5.2.1).
       Each resampled run yields its mean m* and its own standard error s*, as `variance_components` computes it,
       from the spread of its launch means. The interval is m ± q s with q the `confidence` quantile of
       abs(m*) / s*. For normal noise and equal launches q is the Student quantile with L - 1 degrees of
       freedom, whatever the two variances are.
    2. *Smooth.* Two or three launches are no distribution to draw from, so launch effects are drawn from a
       normal one with the estimated variance (which may be zero: rounds then do all the work). Rounds are
       drawn from the residuals, inflated to unbiased variance (`scale`) and mixed with a normal part of
       share 2 / (N - L) of the variance, so that a handful of residuals counts as little more than their
       variance and a hundred keep their own shape, outliers included.

    Residuals get random signs: the ratio of B to A has to have the mirrored interval, and the interval is
    symmetric in the logarithm.

    **What holds** (simulated in tests/test_stats.py: normal, lognormal and gamma noise, drift, 2 to 6
    launches of 3 to 20 rounds, launches with and without an effect of their own): a 95 % interval covers
    the true ratio in 93 to 97 % of runs. With two launches it is honest but very wide (one degree of
    freedom): prefer launches to rounds. *One launch* covers what that launch's rounds vary, not what the
    next launch would give; `method` says so. *One round* has no spread to learn from: the interval is (0,
    inf). Rounds that depend on each other within a launch do no harm when there are several launches, since
    only launch means enter s. Rare large bursts that hit only one of the two arms are beyond any interval
    of a few rounds: one that has not occurred cannot be counted.
    """
    launches = np.asarray(launch, dtype=np.int64)
    y = np.asarray(log_ratio, dtype=np.float64)
    if y.size == 0:
        raise BenchError("no round measured both arms", hint="look at the failures of the arms")
    if launches.shape != y.shape or y.ndim != 1 or not np.isfinite(y).all():
        raise ValueError("launch and log_ratio must be one-dimensional, of one length and finite")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    components = variance_components(launches, y)
    if y.size == 1:
        half_width, detectable, method = math.inf, math.inf, "one round: no interval"
    else:
        means, errors = _bootstrap(components, seed, resamples)
        method = f"studentised hierarchical bootstrap over {len(components.sizes)} launches"
        if len(components.sizes) == 1:
            method = "studentised bootstrap over the rounds of 1 launch (without launch-to-launch variation)"
        moving = errors > 0
        studentised = np.abs(means[moving]) / errors[moving] if moving.any() else np.zeros(1)
        quantile = float(np.quantile(studentised, confidence))
        half_width = quantile * components.standard_error
        # A true effect d shows when m* + d > q s*: in a share POWER of runs for d = quantile of q s* - m*.
        detectable = _exp(float(np.quantile(quantile * errors - means, POWER))) - 1
    return Ratio(
        value=math.exp(components.mean),
        low=math.exp(components.mean - half_width),
        high=_exp(components.mean + half_width),
        confidence=confidence,
        launches=len(components.sizes),
        rounds=y.size,
        detectable=detectable,
        method=method,
    )


def _exp(exponent: float) -> float:
    """exp, infinite where the number is too large to write."""
    return math.exp(exponent) if exponent < 700 else math.inf


def compare(arm: pd.DataFrame, baseline: pd.DataFrame, confidence: float = 0.95, seed: int = 0) -> Ratio:
    """`ratio` of two tables of block times."""
    pairs = pair(arm, baseline)
    return ratio(pairs.launch, pairs.log_ratio, confidence, seed)


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


def step_seconds(samples: pd.DataFrame) -> Floats:
    """Seconds of each measured step [N], in order of time: the slowest rank of `bench.record` samples."""
    measured = samples[samples["round"] >= 0]
    steps = measured.groupby(["launch", "round", "position", "step"])["duration_ns"].max()
    return steps.to_numpy(dtype=np.float64) / 1e9


def summarize(seconds: npt.ArrayLike, images_per_step: int) -> Summary:
    """Summary of step or block times in seconds; ``images_per_step`` is batch size times ranks."""
    times = np.asarray(seconds, dtype=np.float64)
    if times.size == 0:
        raise BenchError("no measured step to summarise", hint="the arm failed before its first block")
    p5, median, p95 = (float(value) for value in np.percentile(times, [5, 50, 95]))
    return Summary(median, p5, p95, images_per_step / median if median > 0 else math.inf, times.size)
