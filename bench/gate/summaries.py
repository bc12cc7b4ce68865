"""One number per launch from its rounds, with the standard error that the rounds give it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bench.gate.metrics import TRIMMED
from bench.judge.steady import Floats


@dataclass(frozen=True)
class Summary:
    """``value`` of a launch, its standard ``error`` with degrees of ``freedom`` (0: the rounds say nothing)."""

    value: float
    error: float
    freedom: int


def trimmed(worsening: Floats) -> Summary:
    """Trimmed mean of the worsening of each round [R], with Yuen's standard error (Biometrika 1974)."""
    rounds = worsening.size
    cut = int(TRIMMED * rounds)
    left = rounds - 2 * cut
    kept = np.sort(worsening)
    value = float(kept[cut : rounds - cut].mean())
    if left < 2:
        return Summary(value, 0.0, 0)
    kept = np.clip(kept, kept[cut], kept[rounds - cut - 1])
    squares = float(((kept - kept.mean()) ** 2).sum())
    return Summary(value, math.sqrt(squares / (left * (left - 1))), left - 1)


def mean_of(base: Floats, head: Floats) -> Summary:
    """Logarithm of the ratio of the mean times of paired rounds: what a user waits for, stalls included.

    Args:
        base: log seconds of the base in each round [R], or any badness of a relative metric.
        head: of the head.
    """
    times = np.exp(np.stack([base, head]) - base.mean())
    means = times.mean(axis=1, keepdims=True)
    value = float(np.log(means[1, 0] / means[0, 0]))
    if base.size < 2:
        return Summary(value, 0.0, 0)
    difference = (times / means)[1] - (times / means)[0]
    return Summary(value, float(difference.std(ddof=1)) / math.sqrt(base.size), base.size - 1)
