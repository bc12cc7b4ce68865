"""Numbers as people read them: no more digits than their interval supports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # lists are written without scipy, which takes a second to import
    from bench.judge.ratio import Ratio

#: What stands where there is no value. Never 0.
MISSING = "–"


def round_to_interval(value: float, low: float, high: float) -> str:
    """``value`` as text, with the digits that an interval [low, high] supports and no more.

    The last digit shown is the first of the half-width, or its second where the first is a 1 (so that
    rounding never costs more than a quarter of the half-width). Without an interval (infinite or not a
    number) two significant digits remain; where it has no width, six.

    >>> round_to_interval(1.23456, 1.20, 1.27)
    '1.23'
    """
    if not math.isfinite(value):
        return "inf" if value == math.inf else "-inf" if value == -math.inf else "nan"
    half_width = (high - low) / 2
    if not math.isfinite(half_width):
        decimals = _decimals(abs(value), 2)
    elif half_width <= abs(value) * 1e-6:
        decimals = _decimals(abs(value), 6)
    else:
        leading = half_width / 10 ** math.floor(math.log10(half_width))
        decimals = _decimals(half_width, 2 if leading < 2 else 1)
    rounded = round(value, decimals)
    return f"{rounded + 0.0:.{max(decimals, 0)}f}"


def _decimals(magnitude: float, digits: int) -> int:
    """Decimal places at which `magnitude` has `digits` significant digits."""
    return digits - 1 - math.floor(math.log10(magnitude)) if magnitude > 0 else 0


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, never in scientific notation."""
    if not math.isfinite(value):
        return MISSING
    decimals = _decimals(abs(value), digits)
    return f"{round(value, decimals):.{max(decimals, 0)}f}"


def interval_texts(value: float, low: float, high: float) -> tuple[str, str, str]:
    """All three with the decimals that the interval supports.

    A positive bound keeps its first digit, however wide the interval, so that it is never shown as 0.
    """
    if not (math.isfinite(low) and math.isfinite(high)) or 0 < 100 * low < high:
        return significant(value, 2), significant(low, 2), significant(high, 2)
    decimals = len(round_to_interval(value, low, high).partition(".")[2])
    if low > 0:
        decimals = max(decimals, math.ceil(-math.log10(low)))
    return f"{value:.{decimals}f}", f"{low:.{decimals}f}", f"{high:.{decimals}f}"


def interval_text(value: float, low: float, high: float) -> str:
    """`1.23 [1.20, 1.26]`."""
    told, *ends = interval_texts(value, low, high)
    return f"{told} (no interval)" if MISSING in ends else f"{told} [{', '.join(ends)}]"


def ratio_text(ratio: Ratio) -> str:
    if ratio.high == math.inf:  # one round: nothing to learn a spread from
        return f"{significant(ratio.value, 2)} (one round, no interval)"
    return interval_text(ratio.value, ratio.low, ratio.high)


def duration_text(seconds: float) -> str:
    """`20 s`, `3 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
