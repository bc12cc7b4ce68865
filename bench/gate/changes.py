"""Where a series of stored results changed for good: change points with direction, and the runs to suspect.

The input is one number per run in order of time, of one metric on one machine. Candidates come from
`ruptures` (PELT, Killick, Fearnhead and Eckley 2012). Each is kept only if the runs on its two sides, up to
the next change points, differ significantly and by a minimal magnitude; the weakest is dropped first and
its neighbours are judged anew, as its removal joins their sides (Fleming et al., "Hunter: Using Change
Point Detection to Hunt for Performance Regressions", ICPE 2023, the method of apache-otava).

Two differences suit benchmarks: all is done on logarithms, so that a change is relative, and single spikes
are pulled to their neighbours before the search, so that no spike becomes a pair of change points or moves
one. The tests use the values as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import ruptures
from scipy import stats
from scipy.ndimage import median_filter

from bench.errors import BenchError
from bench.judge.steady import Floats

MIN_RUNS = 4
"""Runs on each side of a change point: with fewer a rank test cannot reach `MAX_P_VALUE`."""
MAX_P_VALUE = 0.03
"""Of the two-sided Mann–Whitney test; 4 runs against 4, all on one side, have 2 / binom(8, 4) = 0.029."""
MIN_CHANGE = 0.02
SPIKE_WINDOW = 5
SPIKE_SDS = 3.0
PENALTY = 3.0


@dataclass(frozen=True)
class ChangePoint:
    """A lasting change.

    ``index``: the first run after it. ``before``, ``after``: medians of the two sides. ``change``: after /
    before - 1. ``suspects``: the first and last run that may be the first changed one; the true one lies
    between them in about 95 % of cases. ``direction``: of the metric's quality.
    """

    index: int
    before: float
    after: float
    change: float
    p_value: float
    direction: Literal["regression", "improvement"]
    suspects: tuple[int, int]


def change_points(
    values: npt.ArrayLike,
    better: Literal["lower", "higher"],
    min_change: float = MIN_CHANGE,
    max_p_value: float = MAX_P_VALUE,
) -> list[ChangePoint]:
    """Change points of a series of positive numbers [N] (s/iter, images/s, bytes), oldest first.

    ``min_change`` is relative (0.02: 2 %). Raises `BenchError` for values that are not positive and finite:
    a failed run is no value and has to be left out.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or not (np.isfinite(series) & (series > 0)).all():
        raise BenchError("a history needs positive finite values", hint="leave failed runs out")
    if series.size < 2 * MIN_RUNS:
        return []
    logs = np.log(series)
    cuts = _candidates(logs)
    while cuts:
        judged = [_sides(logs, cuts, position) for position in range(len(cuts))]
        p_values = [_p_value(left, right) for left, right in judged]
        changes = [abs(_shift(left, right)) for left, right in judged]
        if max(p_values) > max_p_value:
            del cuts[int(np.argmax(p_values))]
        elif min(changes) < math.log1p(min_change):
            del cuts[int(np.argmin(changes))]
        else:
            break
    return [_change_point(logs, cuts, position, better) for position in range(len(cuts))]


def _noise_sd(logs: Floats) -> float:
    """Standard deviation of the noise, from the median absolute difference of neighbours, which steps
    hardly touch."""
    differences = np.abs(np.diff(logs))
    return float(np.median(differences)) / (math.sqrt(2) * float(stats.norm.ppf(0.75)))


def _without_spikes(logs: Floats, noise_sd: float) -> Floats:
    """Values no farther from the running median than `SPIKE_SDS`; a step is no spike, as the median follows
    it."""
    middle = median_filter(logs, size=SPIKE_WINDOW, mode="nearest")
    reach = SPIKE_SDS * noise_sd
    calm: Floats = np.clip(logs, middle - reach, middle + reach)
    return calm


def _candidates(logs: Floats) -> list[int]:
    """First runs of new segments, by least squares with a penalty of `PENALTY` log N noise variances for
    each."""
    noise_sd = _noise_sd(logs)
    if noise_sd == 0:  # equal neighbours in most places: any spread at all is signal, but stay finite
        noise_sd = float(logs.std()) / logs.size
    if noise_sd == 0:
        return []
    calm = _without_spikes(logs, noise_sd) / noise_sd
    search = ruptures.KernelCPD(kernel="linear", min_size=MIN_RUNS).fit(calm.reshape(-1, 1))
    return [int(cut) for cut in search.predict(pen=PENALTY * math.log(logs.size))[:-1]]


def _sides(logs: Floats, cuts: list[int], position: int) -> tuple[Floats, Floats]:
    """The runs before and after a cut, up to the neighbouring cuts."""
    edges = [0, *cuts, logs.size]
    return logs[edges[position] : edges[position + 1]], logs[edges[position + 1] : edges[position + 2]]


def _p_value(left: Floats, right: Floats) -> float:
    return float(stats.mannwhitneyu(left, right).pvalue)


def _shift(left: Floats, right: Floats) -> float:
    """Difference of medians: a spike on one side does not count as its level."""
    return float(np.median(right) - np.median(left))


def _change_point(
    logs: Floats, cuts: list[int], position: int, better: Literal["lower", "higher"]
) -> ChangePoint:
    left, right = _sides(logs, cuts, position)
    shift = _shift(left, right)
    worse = shift > 0 if better == "lower" else shift < 0
    return ChangePoint(
        index=cuts[position],
        before=math.exp(float(np.median(left))),
        after=math.exp(float(np.median(right))),
        change=math.expm1(shift),
        p_value=_p_value(left, right),
        direction="regression" if worse else "improvement",
        suspects=_suspects(np.concatenate([left, right]), cuts[position] - left.size),
    )


def _suspects(logs: Floats, offset: int) -> tuple[int, int]:
    """Range of positions that fit nearly as well as the best: those within a factor 20 of its likelihood.

    A likelihood-ratio set (Siegmund, "Confidence sets in change-point problems", 1988): for normal noise of variance v
    a cut with residual sum of squares q has the log-likelihood -q / (2 v). That it holds the true run in 95 % of
    cases is measured in tests/test_history.py, not derived.
    """
    calm = _without_spikes(logs, max(_noise_sd(logs), 1e-12))
    cuts = np.arange(2, calm.size - 1)
    squares = np.array([calm[:cut].var() * cut + calm[cut:].var() * (calm.size - cut) for cut in cuts])
    variance = max(float(squares.min()) / max(calm.size - 2, 1), 1e-24)
    near = cuts[squares - squares.min() <= 2 * math.log(20) * variance]
    return offset + int(near.min()), offset + int(near.max())
