"""A section of a log, and the values that a section shows.

A section ends where another format begins, where a person put a heading, or where the count starts again (a restart).
Two ranks that write into one file are two sections that overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from bench.importers.events import Fields

#: Lists in a summary (sections, evaluations, broken lines, …) hold at most so many; the rest is counted.
KEPT = 500


@dataclass(frozen=True)
class Excluded:
    """Iterations that do not count for the wall-clock rate, and why."""

    first: int
    last: int
    seconds: float
    reason: str


@dataclass(frozen=True)
class WallClock:
    """The rate between two lines by the log's own clock."""

    first: int
    last: int
    steps: int
    """Iterations that count: last - first, less the excluded ones."""
    seconds: int
    """Differences of stamps cut to whole seconds, as most formats print them."""
    exact_seconds: float
    """With milliseconds, where they are printed."""
    excluded_steps: int
    excluded_seconds: float
    milliseconds: bool = False
    """`exact_seconds` are meant; else `seconds`, which are off by up to `error_s`."""
    error_s: int = 1

    @property
    def s_per_iter(self) -> float:
        return (self.exact_seconds if self.milliseconds else self.seconds) / self.steps

    @property
    def steps_per_s(self) -> float:
        return 1 / self.s_per_iter

    @property
    def relative_error(self) -> float:
        """Of the rate, from stamps in whole seconds; 0 with milliseconds."""
        return 0.0 if self.milliseconds else self.error_s / self.seconds

    def cut_to_seconds(self) -> WallClock:
        """The same, with the milliseconds left out."""
        return replace(self, milliseconds=False)


@dataclass(frozen=True)
class Printed:
    """A value that the tool prints, over the lines that print a finite one."""

    mean: float
    median: float
    maximum: float
    lines: int


@dataclass(frozen=True)
class Segment:
    """One part of a section, to see whether the rate changes."""

    first: int
    last: int
    s_per_iter: float


@dataclass(frozen=True)
class Point:
    """One line of a curve."""

    iteration: int
    epoch: int | None
    time_ms: int | None
    fields: Fields


@dataclass(frozen=True)
class Section:
    """One uninterrupted count of iterations by one process, and what adds up over it."""

    index: int
    group: int
    """Sections of one tool that follow on one another, or lie side by side."""
    format: str
    heading: str
    settings: Mapping[str, str]
    unit: Literal["iteration", "epoch"]
    """What `first`, `last` and the steps count."""
    first: int
    last: int
    lines: int
    first_time_ms: int | None
    last_time_ms: int | None
    rank: int | None
    cards: int | None
    """Processes that train together, where the log says so."""
    restart: bool
    """The count of iterations started again here."""
    parallel: bool
    """Its lines are mixed with those of another section: two ranks in one file."""
    wall_clock: WallClock | None
    no_wall_clock: str
    """Why `wall_clock` is None."""
    printed: Mapping[str, Printed]
    """s_per_iter, data_s, images_per_s, memory_mb."""
    per_card: bool
    """The printed images/s are of one process."""
    data_share: float | None
    """The part of a printed step that waits for data."""
    warm_up: int | None
    """Lines up to this iteration print a rate far below the usual one."""
    segments: tuple[Segment, ...]
    curve: tuple[Point, ...]
    curve_stride: int
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]


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
