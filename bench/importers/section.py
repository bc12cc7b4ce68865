"""A section of a log: one uninterrupted count of iterations by one process, and what adds up over it.

It ends where another format begins, where a person put a heading, or where the count starts again (a restart). Two
ranks that write into one file are two sections that overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

import numpy as np

from bench.importers.events import Claim, Fields
from bench.importers.format import TrainLine

#: Full values are kept of at most twice so many lines of a section; beyond, of every 2nd, 4th, … line.
CURVE_POINTS = 1024
#: … and of this many of each section after the first few, so that a log of many restarts stays small, too.
THIN_CURVE_POINTS = 64
#: Lists in a summary (sections, evaluations, broken lines, …) hold at most so many; the rest is counted.
KEPT = 500
#: A pause is a time between two lines of more than this many times what the steps usually take, and of …
PAUSE_FACTOR = 3.0
#: … at least so much more than that.
PAUSE_MS = 60_000


@dataclass(frozen=True)
class Excluded:
    """Iterations that do not count for the wall-clock rate, and why."""

    first: int
    last: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class WallClock:
    """The rate between two lines by the log's own clock.

    Seconds are differences of stamps cut to whole seconds, as the reference computes them and as most formats print
    them, so the same rule holds for every log; `exact_seconds` uses the milliseconds where they are printed.
    """

    first: int
    last: int
    steps: int
    """Iterations that count: last - first, less the excluded ones."""
    seconds: int
    exact_seconds: float
    excluded_steps: int
    excluded_seconds: float

    @property
    def steps_per_s(self) -> float:
        return self.steps / self.seconds

    @property
    def s_per_iter(self) -> float:
        return self.seconds / self.steps


@dataclass(frozen=True)
class Printed:
    """A value that the tool prints, over the lines that were read in full and print a finite one."""

    mean: float
    median: float
    lines: int


@dataclass(frozen=True)
class Point:
    """One line of a curve."""

    iteration: int
    epoch: int | None
    time_ms: int | None
    fields: Fields


@dataclass(frozen=True)
class Section:
    """See the module."""

    index: int
    format: str
    heading: str
    settings: Mapping[str, str]
    first: int
    last: int
    lines: int
    first_time_ms: int | None
    last_time_ms: int | None
    rank: int | None
    restart: bool
    """The count of iterations started again here."""
    parallel: bool
    """Its lines are mixed with those of another section: two ranks in one file."""
    wall_clock: WallClock | None
    no_wall_clock: str
    """Why `wall_clock` is None."""
    printed: Mapping[str, Printed]
    """s_per_iter, data_s, images_per_s, memory_mb."""
    curve: tuple[Point, ...]
    curve_stride: int
    excluded: tuple[Excluded, ...]
    claims: tuple[Claim, ...]


@dataclass
class Part:
    """What a person wrote above the logs that follow."""

    heading: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    _settings_of: str = ""

    def set(self, key: str, value: str) -> None:
        """The first setting below another heading begins a new list."""
        if self.heading != self._settings_of:
            self.settings = {"heading": self.heading}
            self._settings_of = self.heading
        if len(self.settings) < KEPT:
            self.settings[key] = value


class _Sample:
    """Lines read in full: all of them, then every second, fourth, … so that their number stays bounded."""

    def __init__(self) -> None:
        self.points: list[Point] = []
        self.stride = 1
        self._seen = 0

    def wants_next(self) -> bool:
        self._seen += 1
        return (self._seen - 1) % self.stride == 0

    def add(self, point: Point) -> None:
        self.points.append(point)
        if len(self.points) >= 2 * CURVE_POINTS:
            self._halve()

    def thin(self, points: int) -> None:
        """Keep at most so many."""
        while len(self.points) > points:
            self._halve()

    def _halve(self) -> None:
        self.points = self.points[::2]
        self.stride *= 2


class _Window:
    """Adds up the wall clock between the first and the last line of a window, less the excluded intervals."""

    def __init__(self) -> None:
        self.first: int | None = None
        self.last = 0
        self.timed = True
        self.excluded: list[Excluded] = []
        self.excluded_steps = 0
        self._excluded_ms = 0
        self._span_start_ms = 0
        self._last_ms = 0
        self._seconds = 0
        self._exact_ms = 0

    def add(self, iteration: int, time_ms: int | None, reason: str) -> None:
        """`reason`: why the interval that ends with this line does not count; '' when it does."""
        if time_ms is None:
            self.timed = False
            time_ms = 0
        if self.first is None:
            self.first = iteration
            self._span_start_ms = time_ms
        elif reason:
            self._close_span()
            self._span_start_ms = time_ms
            self.excluded_steps += iteration - self.last
            self._excluded_ms += time_ms - self._last_ms
            if len(self.excluded) < KEPT:
                gap_s = (time_ms - self._last_ms) / 1000
                self.excluded.append(Excluded(self.last, iteration, gap_s, reason))
        self.last = iteration
        self._last_ms = time_ms

    def _close_span(self) -> None:
        self._seconds += self._last_ms // 1000 - self._span_start_ms // 1000
        self._exact_ms += self._last_ms - self._span_start_ms
        self._span_start_ms = self._last_ms

    def wall_clock(self) -> tuple[WallClock | None, str]:
        """The rate, or why there is none."""
        if self.first is None:
            return None, "no line lies in the window"
        if not self.timed:
            return None, "the format prints no time of day"
        self._close_span()
        steps = self.last - self.first - self.excluded_steps
        if steps <= 0 or self._seconds <= 0:
            return None, "fewer than two lines with time between them count"
        exact_s, excluded_s = self._exact_ms / 1000, self._excluded_ms / 1000
        return WallClock(
            self.first, self.last, steps, self._seconds, exact_s, self.excluded_steps, excluded_s
        ), ""


class Track:
    """A section that is still open."""

    def __init__(
        self, line: TrainLine, group: int, part: Part, number: int, window: tuple[float, float]
    ) -> None:
        self.format = line.format
        self.rank = line.rank
        self.group = group
        self.heading = part.heading
        self.settings = dict(part.settings)
        self.claims: list[Claim] = []
        self.first = self.last = line.iteration
        self.first_time_ms = self.last_time_ms = line.time_ms
        self.last_raw = b""
        self.lines = 0
        self.first_number = self.last_number = number
        self.disturbed = False
        """An evaluation began since the last line."""
        self._low, self._high = window
        self._whole_run = window == (float("-inf"), float("inf"))
        self._window = _Window()
        self._curve = _Sample()
        self._window_sample = self._curve if self._whole_run else _Sample()
        self._usual_steps = self._usual_ms = 0
        """Steps so far that were training and nothing else, and the time they took."""

    def add(self, line: TrainLine, number: int) -> None:
        """Raises BrokenLine, before anything is changed, when the values of the line cannot be read."""
        iteration = line.iteration
        inside = self._low <= iteration <= self._high
        fields: Fields | None = None
        for_curve = self._curve.wants_next()
        for_window = inside and not self._whole_run and self._window_sample.wants_next()
        if for_curve or for_window:
            fields = line.format.fields(line.raw)
            point = Point(iteration, line.epoch, line.time_ms, fields)
            if for_curve:
                self._curve.add(point)
            if for_window:
                self._window_sample.add(point)
        reason = self._judge(line, fields) if self.lines else ""
        if inside:
            self._window.add(iteration, line.time_ms, reason)
        self.lines += 1
        self.last = iteration
        self.last_time_ms = line.time_ms
        self.last_raw = line.raw
        self.last_number = number
        self.disturbed = False

    def _judge(self, line: TrainLine, fields: Fields | None) -> str:
        """Why the time since the last line is not training time; '' when it is."""
        if line.time_ms is None or self.last_time_ms is None:
            return ""
        if self.disturbed:
            return "an evaluation ran"
        took_ms = line.time_ms - self.last_time_ms
        if took_ms < 0:
            return "the clock went back"
        steps = line.iteration - self.last
        usual_ms = self._usual_ms / self._usual_steps if self._usual_steps else None
        if usual_ms is None and fields is not None and fields.s_per_iter is not None:
            usual_ms = fields.s_per_iter * 1000
        if usual_ms is not None and took_ms > PAUSE_MS:
            expected_ms = usual_ms * steps
            if took_ms > PAUSE_FACTOR * expected_ms and took_ms - expected_ms > PAUSE_MS:
                return "a pause, or the clock went forward"
        self._usual_steps += steps
        self._usual_ms += took_ms
        return ""

    def thin(self) -> None:
        """For a section that has ended and is one of many."""
        self._curve.thin(THIN_CURVE_POINTS)
        self._window_sample.thin(THIN_CURVE_POINTS)

    def section(self, index: int, restart: bool, parallel: bool) -> Section:
        wall_clock, why_not = self._window.wall_clock()
        return Section(
            index=index,
            format=self.format.name,
            heading=self.heading,
            settings=self.settings,
            first=self.first,
            last=self.last,
            lines=self.lines,
            first_time_ms=self.first_time_ms,
            last_time_ms=self.last_time_ms,
            rank=self.rank,
            restart=restart,
            parallel=parallel,
            wall_clock=wall_clock,
            no_wall_clock=why_not,
            printed=_printed([point.fields for point in self._window_sample.points]),
            curve=tuple(self._curve.points),
            curve_stride=self._curve.stride,
            excluded=tuple(self._window.excluded),
            claims=tuple(self.claims),
        )


def _printed(fields: list[Fields]) -> dict[str, Printed]:
    found = {}
    for name in ("s_per_iter", "data_s", "images_per_s", "memory_mb"):
        values = [value for one in fields if (value := getattr(one, name)) is not None and isfinite(value)]
        if values:
            with np.errstate(over="ignore"):  # a damaged line may print 1e308
                found[name] = Printed(float(np.mean(values)), float(np.median(values)), len(values))
    return found
