"""Warnings about the samples: too few, drifting, in two modes, with outliers."""

from __future__ import annotations

import math

import numpy as np

from bench.judge.numbers import significant
from bench.judge.steady import Blocks, Floats, Integers, effect_of, first_round, warms_up

MIN_LAUNCHES = 3
MIN_ROUNDS = 5
MAX_SPREAD = 0.10
"""Standard deviation over mean; the bound of `pyperf check`."""
MIN_MODE_SEPARATION = 4.5
"""In standard deviations; a normal sample cut at its mean has 2.6, a uniform one 3.5."""
FEW_BLOCKS_SEPARATION = 80.0
"""Over the number of blocks: what chance separates grows as blocks become few (9 deviations for 9 blocks)."""
MIN_MODE_SHARE = 0.2
MIN_MODE_GAP = 0.02
MIN_OUTLIER = 0.05
MIN_BLOCKS_FOR_SHAPE = 8


# -- noise -------------------------------------------------------------------------------------------------


def check(blocks: Blocks) -> list[str]:
    """What is wrong with the measurement of one arm: the number that is off and what to do about it.

    In the manner of `pyperf check`. Outliers are named, counted and kept.

    Args:
        blocks: of one arm.

    Returns:
        One sentence per problem.
    """
    launches, rounds = (np.asarray(blocks[name], dtype=np.int64) for name in ("launch", "round"))
    if not launches.size:
        return ["no measured block; look at the arm's failure"]
    warming = warms_up(blocks)
    order = np.lexsort([rounds, launches])
    steady = order[rounds[order] > 0] if warming else order
    launch, seconds = launches[steady], np.asarray(blocks["s_per_step"], dtype=np.float64)[steady]
    found = [
        _few_launches(launch),
        _few_rounds(launches),
        _wide(seconds),
        _warms_up(blocks) if warming else None,
        _drifts(launch, rounds[steady], seconds),
        _two_modes(launch, seconds),
        _outliers(seconds),
    ]
    return [warning for warning in found if warning]


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if abs(share) < 0.995 else f"{100 * share:.0f} %"


def _few_launches(launch: Integers) -> str | None:
    launches = len(np.unique(launch))
    if launches >= MIN_LAUNCHES:
        return None
    unseen = "hides what a fresh process would change" if launches == 1 else "make wide intervals"
    return f"{launches} launch{'es' * (launches > 1)} {unseen}: use measure.launches >= {MIN_LAUNCHES}"


def _few_rounds(launch: Integers) -> str | None:
    fewest = int(np.unique(launch, return_counts=True)[1].min())
    if fewest >= MIN_ROUNDS:
        return None
    return f"a launch has only {fewest} round{'s' * (fewest > 1)}: use measure.rounds >= {MIN_ROUNDS}"


def _wide(seconds: Floats) -> str | None:
    spread = float(seconds.std(ddof=1) / seconds.mean()) if seconds.size > 1 else 0.0
    if spread <= MAX_SPREAD:
        return None
    return (
        f"block times have a standard deviation of {_percent(spread)} of their mean "
        f"(bound {_percent(MAX_SPREAD)}): stop other processes, lengthen blocks (measure.steps)"
    )


def _warms_up(blocks: Blocks) -> str | None:
    effect = first_round(blocks)
    return (
        None
        if effect is None
        else (
            f"the first round of a launch is {_percent(effect.change)} slower than the others and is left out of "
            "ratios: warm up longer (measure.warmup)"
        )
    )


def _drifts(launch: Integers, round_: Integers, seconds: Floats) -> str | None:
    """A straight line through the rounds of a launch, with the same slope in all launches."""
    _, starts, member = np.unique(launch, return_index=True, return_inverse=True)
    first, last = (found.reduceat(round_, starts)[member] for found in (np.minimum, np.maximum))
    effect = effect_of(launch, np.log(seconds), (round_ - first) / np.maximum(last - first, 1))
    if effect is None or not effect.shown:
        return None
    slower = "slower" if effect.change > 0 else "faster"
    return (
        f"the last round of a launch is {_percent(abs(effect.change))} {slower} than the first: "
        "warm up longer (measure.warmup), let the machine reach its temperature"
    )


def _two_modes(launch: Integers, seconds: Floats) -> str | None:
    """Two clusters of times, as of two clock speeds.

    The sorted times are cut where the variance inside the two parts is least (Otsu 1979); then the distance
    of the parts is asked in their own standard deviations (D of Ashman, Bird and Zepf 1994).
    """
    times = np.sort(seconds)
    n = times.size
    if n < MIN_BLOCKS_FOR_SHAPE:
        return None
    cuts = np.arange(max(2, math.ceil(MIN_MODE_SHARE * n)), n - max(2, math.ceil(MIN_MODE_SHARE * n)) + 1)
    inside = [times[:cut].var() * cut + times[cut:].var() * (n - cut) for cut in cuts]
    cut = int(cuts[int(np.argmin(inside))])
    low, high = times[:cut], times[cut:]
    distance = float(high.mean() - low.mean())
    spread = math.sqrt((float(low.var(ddof=1)) + float(high.var(ddof=1))) / 2)
    separation = max(MIN_MODE_SEPARATION, FEW_BLOCKS_SEPARATION / n)
    if distance <= MIN_MODE_GAP * float(np.median(times)) or distance <= separation * spread:
        return None
    levels = f"{significant(low.mean(), 4)} s ({cut} blocks) and {significant(high.mean(), 4)} s ({n - cut} blocks)"
    names, member = np.unique(launch, return_inverse=True)
    slow = np.bincount(member, weights=seconds > low[-1]) / np.bincount(member)
    by_launch = len(names) > 1 and bool(((slow < 0.1) | (slow > 0.9)).all())
    advice = (
        "launches differ; use more of them (measure.launches)"
        if by_launch
        else "fix the clock speed or threads, look for a process that comes and goes"
    )
    return f"block times have two levels, {levels}: {advice}"


def _outliers(seconds: Floats) -> str | None:
    """Tukey's far-out values: more than three interquartile ranges outside the quartiles."""
    if seconds.size < MIN_BLOCKS_FOR_SHAPE:
        return None
    lower, median, upper = np.percentile(seconds, [25, 50, 75])
    reach = 3 * (upper - lower)
    far = (seconds < lower - reach) | (seconds > upper + reach)
    far &= np.abs(seconds - median) > MIN_OUTLIER * median
    if not far.any():
        return None
    worst = float(np.max(np.abs(seconds[far] - median)) / median)
    return (
        f"{int(far.sum())} of {seconds.size} blocks are outliers, the farthest {_percent(worst)} off "
        "the median; they are kept: stop other processes, or add rounds"
    )
