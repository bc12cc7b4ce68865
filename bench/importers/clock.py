"""Stamps of log lines as milliseconds.

Three spellings occur: `2020-12-04 11:44:20,089`, `2022/11/22 03:28:49` and, without the year, `11/22 03:28:49`.
"""

from __future__ import annotations

import re
from datetime import date

#: Year in which a log without years is taken to begin; only differences of its times are ever used.
ASSUMED_YEAR = 2001

DAY_MS = 86_400_000
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_HALF_YEAR_DAYS = 180

# Looking two digits up is faster than int() of them, and refuses 24:00 and 12:60.
_HOURS = {b"%02d" % n: n * 3_600_000 for n in range(24)}
_MINUTES = {b"%02d" % n: n * 60_000 for n in range(60)}
_SECONDS = {b"%02d" % n: n * 1_000 for n in range(61)}  # 60: a leap second

STAMP = re.compile(rb"\[?(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}|(?:\d{4}/)?\d\d/\d\d \d\d:\d\d:\d\d)")


class Clock:
    """Turns the stamps of one log, in order, into milliseconds; counts years where the log prints none."""

    def __init__(self, year: int = ASSUMED_YEAR) -> None:
        self._year = year
        self._day_text = b""
        self._day_ms = 0
        self._latest_day: int | None = None
        self._leap_days = 0

    def read(self, stamp: bytes) -> int:
        """Raises ValueError for a time that does not exist."""
        day, _, time = stamp.partition(b" ")
        if day != self._day_text:
            self._day_ms = self._day(day) * DAY_MS
            self._day_text = day
        try:
            whole = self._day_ms + _HOURS[time[0:2]] + _MINUTES[time[3:5]] + _SECONDS[time[6:8]]
        except KeyError:
            raise ValueError(f"no such time: {stamp.decode('ascii', 'replace')}") from None
        return whole + int(time[9:12]) if len(time) > 8 else whole

    def _day(self, text: bytes) -> int:
        """Days since 1970."""
        if len(text) == 10:
            return date(int(text[0:4]), int(text[5:7]), int(text[8:10])).toordinal() - _EPOCH_DAY
        month, day = int(text[0:2]), int(text[3:5])
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
