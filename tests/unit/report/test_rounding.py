"""Numbers are rounded to what their interval supports."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.judge.numbers import round_to_interval


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (1.23456, 1.20, 1.27, "1.23"),
        (1.23456, 1.22, 1.25, "1.235"),
        (12345.6, 12225.0, 12465.0, "12350"),
        (0.0123456, 0.0120, 0.0127, "0.0123"),
        (1.5, 0.0, math.inf, "1.5"),
        (1.5, 1.5, 1.5, "1.50000"),
        (-0.0001, -0.3, 0.3, "0.0"),
        (math.inf, 0.0, math.inf, "inf"),
        (math.nan, 0.0, 1.0, "nan"),
        (0.0, 0.0, 0.0, "0"),
    ],
)
def test_a_number_shows_the_digits_its_interval_supports(
    value: float, low: float, high: float, text: str
) -> None:
    assert round_to_interval(value, low, high) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_rounding_moves_less_than_a_quarter_of_the_half_width(value: float, half: float) -> None:
    shown = float(round_to_interval(value, value - half, value + half))
    assert abs(shown - value) <= max(0.26 * half, 1e-5 * abs(value))
