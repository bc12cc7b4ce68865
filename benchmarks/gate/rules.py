"""The rules that users judge benchmarks by today, as pure functions of the same data that our gate sees.

Each takes the step times in seconds of the baseline and of the current revision, [N] and [M], and says
whether it would fail the change. Written from the behaviour of the tools named, for the table of
`docs/notebook/gate-error-rates.md`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import mannwhitneyu

Floats = npt.NDArray[np.float64]


def pytest_benchmark(baseline_s: Floats, current_s: Floats, percent: float = 5.0) -> bool:
    """`--benchmark-compare-fail=mean:5%`: the mean grew by more than so many per cent.

    pytest-benchmark 5.3.1, `utils.PercentageRegressionCheck`.
    """
    return bool(current_s.mean() / baseline_s.mean() * 100 - 100 > percent)


def github_action_benchmark(previous_s: Floats, current_s: Floats, threshold: float = 2.0) -> bool:
    """The last value against the one before: worse by more than `alert-threshold` (200 % by default, users
    set 105–150 %).

    github-action-benchmark, `src/write.ts: findAlerts`; for a tool where smaller is better the ratio is
    current / previous. The value stored is the mean of a run.
    """
    return bool(current_s.mean() / previous_s.mean() > threshold)


def asv(baseline_s: Floats, current_s: Floats, factor: float = 1.1) -> bool:
    """`asv compare` and `asv continuous`: the medians differ by the factor, and the samples are told apart.

    asv `commands/compare.py: _is_result_better` and `_stats.py: is_different`: a Mann–Whitney test at
    0.002. With so few samples that it could not reject (fewer than 6 against 6) asv compares intervals
    instead; that case is not here.
    """
    n, m = baseline_s.size, current_s.size
    if 1 / math.comb(n + m, min(n, m)) >= 0.002:
        raise ValueError(f"{n} against {m} samples are too few for asv's test")
    if np.median(baseline_s) >= np.median(current_s) / factor:
        return False
    return bool(mannwhitneyu(baseline_s, current_s).pvalue < 0.002)
