"""Whether rounds depend on their place in the launch: a first round that still warms up, a drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from bench.record.samples import Columns

if TYPE_CHECKING:
    import pandas as pd

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Blocks: TypeAlias = "Columns | pd.DataFrame"
"""What `bench.record.samples.block_columns` gives: launch, round, s_per_step."""

MIN_EFFECT = 0.03
"""A first round or a drift that changes times by less is left alone."""
MAX_P_VALUE = 0.01


@dataclass(frozen=True)
class Effect:
    """How much a place in the launch changes the time (0.1: 10 % slower), and the p-value of "not at all"."""

    change: float
    p_value: float

    @property
    def shown(self) -> bool:
        """Whether the effect is large enough to matter and too large for chance."""
        return abs(self.change) > MIN_EFFECT and self.p_value < MAX_P_VALUE


def effect_of(launch: Integers, log_s: Floats, place: Floats) -> Effect | None:
    """Effect of ``place`` on the times of a launch, common to all launches.

    Least squares with a level per launch: log_s = level[launch] + effect * place. The launches are blocks, so
    launches that differ do no harm. With two rounds it is the paired t test over launches.

    Args:
        launch: launch of each block, int [N].
        log_s: logarithm of the seconds per step of each block [N].
        place: what is suspected [N], for example 1 in the first round and 0 elsewhere.

    Returns:
        The effect of place = 1; None where too few blocks leave nothing to test with.
    """
    _, member, counts = np.unique(launch, return_inverse=True, return_counts=True)

    def inside(values: Floats) -> Floats:
        centred: Floats = values - (np.bincount(member, weights=values) / counts)[member]
        return centred

    x, y = inside(place), inside(log_s)
    freedom = y.size - counts.size - 1
    weight = float(x @ x)
    if freedom < 1 or weight == 0:
        return None
    effect = float(x @ y) / weight
    residual = y - effect * x
    error = math.sqrt(float(residual @ residual) / freedom / weight)
    if error < 1e-12:
        return Effect(math.expm1(effect), 0.0 if abs(effect) > 1e-9 else 1.0)
    return Effect(math.expm1(effect), 2 * t_probability(freedom, -abs(effect) / error))


def t_probability(freedom: float, t: float) -> float:
    """Probability that Student's t is below ``t``."""
    from scipy.special import stdtr  # half a second, which most commands do not need

    return float(stdtr(freedom, t))


def t_quantile(freedom: float, share: float) -> float:
    """What Student's t is below of with the probability ``share``."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


def first_round(blocks: Blocks) -> Effect | None:
    """How much slower the first round of a launch is than the other rounds.

    Args:
        blocks: of one arm.

    Returns:
        The effect; None where no launch has two rounds.
    """
    log_s = np.log(np.asarray(blocks["s_per_step"], dtype=np.float64))
    first = np.asarray(np.asarray(blocks["round"]) == 0, dtype=np.float64)
    return effect_of(np.asarray(blocks["launch"], dtype=np.int64), log_s, first)


def warms_up(blocks: Blocks) -> bool:
    """The rule for leaving out the first round of every launch, fixed before anything is measured.

    The first round is left out when it is slower than the rest by more than `MIN_EFFECT`, at a p-value below
    `MAX_P_VALUE`. A first round that is faster is a drift and stays.
    """
    effect = first_round(blocks)
    return effect is not None and effect.shown and effect.change > 0
