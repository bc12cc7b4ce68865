"""Where a series of stored results changed for good: change points with direction, and the runs to suspect.

Candidates come from `ruptures` (PELT). Each is kept only if the runs on its two sides differ significantly, for noise
that wanders from run to run, and by a minimal magnitude; the weakest is dropped first and its neighbours are judged
anew. docs/explanation/gate.md names the sources, docs/notebook/gate-error-rates.md the error rates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.judge.steady import Floats, t_probability

MIN_RUNS = 4
"""Runs on each side of a change point."""
MAX_P_VALUE = 0.05
"""For any change point in a series without one."""
CORRELATION = 0.5
"""Of a run with the next one: what the tests allow for. Noise of shared machines wanders from day to day."""
LONG_LAG = 5
"""Runs so far apart are nearly independent."""
RUNS_PER_LOOK = 8
"""A series has one independent place to cut it at for so many runs: found by simulation."""
MIN_CHANGE = 0.02
SPIKE_WINDOW = 5
SPIKE_SDS = 3.0
PENALTY = 3.0
LEAST_NOISE = 1e-9
"""Relative: below it, differences are those of rounding."""


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
    """Change points of a series, oldest first. All is done on logarithms: a change is relative.

    Args:
        values: a positive number per run [N], in order of time: s/iter, images/s, bytes.
        better: direction of improvement.
        min_change: smallest relative change of interest (0.02: 2 %).
        max_p_value: of any change point in a series without one.

    Returns:
        The change points.

    Raises:
        BenchError: for values that are not positive and finite; a failed run has to be left out.
    """
    series = np.asarray(values, dtype=np.float64)
    if series.ndim != 1 or not (np.isfinite(series) & (series > 0)).all():
        raise BenchError("a history needs positive finite values", hint="leave failed runs out")
    if series.size < 2 * MIN_RUNS:
        return []
    logs = np.log(series)
    if np.ptp(logs) < math.log1p(min_change):  # no two levels in it can be so far apart
        return []
    calm = _without_spikes(logs, _noise_sd(logs))
    cuts = _candidates(logs)
    while cuts:
        p_values = [_p_value(*_sides(calm, cuts, position), calm) for position in range(len(cuts))]
        changes = [abs(_shift(*_sides(logs, cuts, position))) for position in range(len(cuts))]
        if max(p_values) > max_p_value:
            del cuts[int(np.argmax(p_values))]
        elif min(changes) < math.log1p(min_change):
            del cuts[int(np.argmin(changes))]
        else:
            return [
                _change_point(logs, cuts, position, better, p_value)
                for position, p_value in enumerate(p_values)
            ]
    return []


def _noise_sd(logs: Floats, lag: int = 1) -> float:
    """Standard deviation of the noise, from the median absolute difference of runs ``lag`` apart, which few steps
    hardly touch."""
    lag = min(lag, logs.size // 4)
    differences = np.abs(logs[lag:] - logs[:-lag])
    return float(np.median(differences)) / (math.sqrt(2) * NormalDist().inv_cdf(0.75))


def _without_spikes(logs: Floats, noise_sd: float) -> Floats:
    """Values no farther from the running median than `SPIKE_SDS`; a step is no spike, as the median follows
    it."""
    from scipy.ndimage import median_filter  # a quarter of a second, for series that are long enough

    middle = median_filter(logs, size=SPIKE_WINDOW, mode="nearest")
    reach = SPIKE_SDS * noise_sd
    calm: Floats = np.clip(logs, middle - reach, middle + reach)
    return calm


def _candidates(logs: Floats) -> list[int]:
    """First runs of new segments, by least squares with a penalty of `PENALTY` log N noise variances for
    each."""
    import ruptures  # with scipy, a second

    noise_sd = _noise_sd(logs)
    if noise_sd == 0:  # equal neighbours in most places: any spread at all is signal, but stay finite
        noise_sd = max(float(logs.std()) / logs.size, LEAST_NOISE)
    calm = (_without_spikes(logs, noise_sd) - np.median(logs)) / noise_sd
    search = ruptures.KernelCPD(kernel="linear", min_size=MIN_RUNS).fit(calm.reshape(-1, 1))
    return [int(cut) for cut in search.predict(pen=PENALTY * math.log(logs.size))[:-1]]


def _sides(logs: Floats, cuts: list[int], position: int) -> tuple[Floats, Floats]:
    """The runs before and after a cut, up to the neighbouring cuts."""
    edges = [0, *cuts, logs.size]
    return logs[edges[position] : edges[position + 1]], logs[edges[position + 1] : edges[position + 2]]


def _p_value(left: Floats, right: Floats, series: Floats) -> float:
    """P-value of equal means on both sides of the best cut of a series, for noise that depends on the run before.

    Student's t where correlated runs count for as many independent ones as give the same variance of a mean (for an
    AR(1) process (1 - c) / (1 + c) of them) and of a variance ((1 - c²) / (1 + c²)). The spread is at least that of
    runs `LONG_LAG` apart. `RUNS_PER_LOOK` pays for the search among the cuts.
    """
    counts = np.array([left.size, right.size]) * (1 - CORRELATION) / (1 + CORRELATION)
    squares = float(((left - left.mean()) ** 2).sum() + ((right - right.mean()) ** 2).sum())
    spread = max(math.sqrt(squares / (left.size + right.size - 2)), _noise_sd(series, LONG_LAG))
    distance = abs(float(right.mean() - left.mean()))
    if spread == 0:
        return float(distance == 0)
    freedom = max(1.0, (left.size + right.size) * (1 - CORRELATION**2) / (1 + CORRELATION**2) - 2)
    t = distance / (spread * math.sqrt(float((1 / counts).sum())))
    return min(1.0, 2 * t_probability(freedom, -t) * max(1.0, series.size / RUNS_PER_LOOK))


def _shift(left: Floats, right: Floats) -> float:
    """Difference of medians: a spike on one side does not count as its level."""
    return float(np.median(right) - np.median(left))


def _change_point(
    logs: Floats, cuts: list[int], position: int, better: Literal["lower", "higher"], p_value: float
) -> ChangePoint:
    left, right = _sides(logs, cuts, position)
    shift = _shift(left, right)
    worse = shift > 0 if better == "lower" else shift < 0
    return ChangePoint(
        index=cuts[position],
        before=math.exp(float(np.median(left))),
        after=math.exp(float(np.median(right))),
        change=math.expm1(shift),
        p_value=p_value,
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
    around = calm - calm.mean()
    sums = np.cumsum(around)
    # Squares around the two means, from the sums on both sides of each cut.
    squares = (
        (around**2).sum() - sums[cuts - 1] ** 2 / cuts - (sums[-1] - sums[cuts - 1]) ** 2 / (calm.size - cuts)
    )
    variance = max(float(squares.min()) / max(calm.size - 2, 1), 1e-24)
    near = cuts[squares - squares.min() <= 2 * math.log(20) * variance]
    return offset + int(near.min()), offset + int(near.max())
