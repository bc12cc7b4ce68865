"""Stamps of log lines as milliseconds.

Spellings: `2020-12-04 11:44:20,089`, `2021-08-18 10:20:36.123`, `2021-08-18 10:20:36`, `2022/11/22 03:28:49` and,
without the year, `11/22 03:28:49`.
"""

from __future__ import annotations

import re
from datetime import date

#: Year in which a log without years is taken to begin; only differences of its times are ever used.
ASSUMED_YEAR = 2001

DAY_MS = 86_400_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_HALF_YEAR_DAYS = 180

STAMP_TEXT = rb"(?:\d{4}[-/])?\d\d[-/]\d\d \d\d:\d\d:\d\d(?:[,.]\d{1,6})?"
STAMP = re.compile(rb"\[?(" + STAMP_TEXT + rb")(?!\d)")
_PARTS = re.compile(rb"(?:(\d{4})[-/])?(\d\d)[-/](\d\d) (\d\d):(\d\d):(\d\d)(?:[,.](\d{1,6}))?")


class Clock:
    """Turns the stamps of one log, in order, into milliseconds; counts years where the log prints none."""

    def __init__(self, year: int = ASSUMED_YEAR) -> None:
        self._year = year
        self._latest_day: int | None = None
        self._leap_days = 0

    def read(self, stamp: bytes) -> int:
        """Raises ValueError for a time that does not exist."""
        match = _PARTS.fullmatch(stamp)
        if match is None:
            raise ValueError(f"no such time: {stamp.decode('ascii', 'replace')}")
        year, month, day, hours, minutes, seconds = (int(part or 0) for part in match.groups()[:6])
        if hours > 23 or minutes > 59 or seconds > 60:  # 60: a leap second
            raise ValueError(f"no such time: {stamp.decode('ascii', 'replace')}")
        days = date(year, month, day).toordinal() - _EPOCH_DAY if year else self._day(month, day)
        milliseconds = int((match[7] or b"0").ljust(3, b"0")[:3])
        return days * DAY_MS + ((hours * 60 + minutes) * 60 + seconds) * 1000 + milliseconds

    def _day(self, month: int, day: int) -> int:
        """Days since 1970 of a date without its year."""
        ordinal = self._without_year(self._year, month, day)
        if self._latest_day is None:
            self._latest_day = ordinal
        step = ordinal - self._latest_day
        if step > _HALF_YEAR_DAYS:  # 12/31 of another rank, after the first 01/01
            return self._without_year(self._year - 1, month, day)
        if step < -_HALF_YEAR_DAYS:  # 12/31, then 01/01
            self._year += 1
            ordinal = self._without_year(self._year, month, day)
        self._latest_day = ordinal
        return ordinal

    def _without_year(self, year: int, month: int, day: int) -> int:
        """A 29 February shows that the year has one more day than the one assumed."""
        if (month, day) == (2, 29):
            self._leap_days = 1
            return date(year, 2, 28).toordinal() - _EPOCH_DAY + 1
        return date(year, month, day).toordinal() - _EPOCH_DAY + (self._leap_days if month > 2 else 0)
