"""A section that is still open: its lines in columns, from which all that a section shows is computed at the end."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from math import isfinite

import numpy as np

from bench.importers.events import EpochTotal
from bench.importers.format import Format, TrainLine
from bench.importers.section import KEPT, Excluded, Part, Point, Printed, Section, Segment, WallClock

#: The values of a line are kept of at most twice so many lines of a section; beyond, of every 2nd, 4th, … line.
CURVE_POINTS = 1024
#: … and of this many of each section after the first few, so that a log of many restarts stays small, too.
THIN_CURVE_POINTS = 64
#: A pause is a time between two lines of more than this many times what the steps usually take, and of …
PAUSE_FACTOR = 3.0
#: … at least so much more than that.
PAUSE_MS = 60_000
#: A section's rate is also given for so many equal parts of its iterations.
SEGMENTS = 4
#: Lines at the start that print more than so many times the usual s/iter are marked as warm-up.
WARM_UP_FACTOR = 1.5
_NOT_TIMED = "iteration 0 is left out of the printed rates: its line is written before a step is timed"
_PRINTED = ("s_per_iter", "data_s", "images_per_s", "memory_mb")


class Track:
    """A section that is still open: its lines, in columns."""

    def __init__(self, line: TrainLine, group: int, part: Part, number: int, cards: int | None) -> None:
        self.format: Format = line.format
        self.rank = line.rank
        self.group = group
        self.cards = cards
        self.heading = part.heading
        self.settings = dict(part.settings)
        self.totals: dict[int, EpochTotal] = {}
        self.first_number = self.last_number = number
        self.disturbed = False
        """An evaluation began since the last line."""
        self.epoch_length: int | None = None
        self.last_line = line
        self._iterations: list[int] = []
        self._epochs: list[int] = []
        self._times_ms: list[int] = []
        self._values: dict[str, list[float]] = {name: [] for name in _PRINTED}
        self._reasons: dict[int, str] = {}
        """Why the time before a line does not count, by the line's index."""
        self._points: list[tuple[int, Point]] = []
        self._stride = 1
        self._usual_steps = self._usual_ms = 0

    @property
    def lines(self) -> int:
        return len(self._iterations)

    @property
    def place(self) -> tuple[int, int]:
        """Of the last line in the run: epoch and iteration where only that of the epoch is printed."""
        return place_of(self.last_line)

    def half_interval_ms(self) -> float:
        """Half of what passes between two lines; two seconds where it is not known."""
        if len(self._times_ms) < 2:
            return 2000
        return max(2000, (self._times_ms[-1] - self._times_ms[-2]) / 2)

    def add(self, line: TrainLine, number: int) -> None:
        index = self.lines
        if index and (reason := self._judge(line)):
            self._reasons[index] = reason
        self._iterations.append(line.iteration)
        self._epochs.append(line.epoch or 0)
        if line.time_ms is not None:
            self._times_ms.append(line.time_ms)
        for name, values in self._values.items():
            value = getattr(line.fields, name)
            values.append(float("nan") if value is None else value)
        if index % self._stride == 0:
            self._points.append((index, Point(line.iteration, line.epoch, line.time_ms, line.fields)))
            if len(self._points) >= 2 * CURVE_POINTS:
                self._halve()
        self.last_line, self.last_number, self.disturbed = line, number, False

    def _judge(self, line: TrainLine) -> str:
        """Why the time since the last line is not training time; '' when it is."""
        if line.time_ms is None or not self._times_ms:
            return ""
        if self.disturbed and self.format.unit == "iteration":
            return "an evaluation ran"
        took_ms = line.time_ms - self._times_ms[-1]
        if took_ms < 0:
            return "the clock went back"
        steps = line.iteration - self._iterations[-1]
        usual_ms = self._usual_ms / self._usual_steps if self._usual_steps else None
        printed_ms = (line.fields.s_per_iter or 0.0) * 1000
        if took_ms > PAUSE_MS and (usual_ms is not None or printed_ms):
            # steps that the tool, too, found slow are no pause
            expected_ms = max(usual_ms or 0.0, printed_ms) * steps
            if took_ms > PAUSE_FACTOR * expected_ms and took_ms - expected_ms > PAUSE_MS:
                return "a pause, or the clock went forward"
        self._usual_steps += steps
        self._usual_ms += took_ms
        return ""

    def _halve(self) -> None:
        self._points = self._points[::2]
        self._stride *= 2

    def thin(self) -> None:
        """For a section that has ended and is one of many."""
        while len(self._points) > THIN_CURVE_POINTS:
            self._halve()

    def learn_epoch_length(self, length: int) -> None:
        """A validation line may print the epoch's length: it is if it lies within a line's interval of the highest
        iteration of an epoch. Else it counts validation batches."""
        highest = max(self._iterations)
        interval = min((b - a for a, b in pairwise(self._iterations) if b > a), default=highest)
        if highest <= length < highest + interval:
            self.epoch_length = length

    def highest_iteration(self) -> int:
        return max(self._iterations)

    def iterations(self, epoch_length: int | None = None) -> list[int]:
        """Over the whole run. `epoch_length` is for formats that print neither it nor a running count."""
        if not self.format.per_epoch or epoch_length is None:
            return self._iterations
        epochs = (epoch - self.format.first_epoch for epoch in self._epochs)
        return [epoch * epoch_length + n for epoch, n in zip(epochs, self._iterations, strict=True)]

    def section(
        self,
        index: int,
        window: tuple[float, float],
        epoch_length: int | None,
        *,
        restart: bool,
        parallel: bool,
    ) -> Section:
        """What adds up over the lines whose iteration lies in the window."""
        iterations = self.iterations(epoch_length)
        inside = [n for n, iteration in enumerate(iterations) if window[0] <= iteration <= window[1]]
        clock, why_not, excluded = self._clock(iterations, inside)
        timed = bool(self._times_ms)
        return Section(
            index=index,
            group=self.group,
            format=self.format.name,
            heading=self.heading,
            settings=self.settings,
            unit=self.format.unit,
            first=iterations[0],
            last=iterations[-1],
            lines=self.lines,
            first_time_ms=self._times_ms[0] if timed else None,
            last_time_ms=self._times_ms[-1] if timed else None,
            rank=self.rank,
            cards=self.cards,
            restart=restart,
            parallel=parallel,
            wall_clock=clock,
            no_wall_clock=why_not,
            printed=self._printed(inside),
            per_card=self.format.per_card,
            data_share=self._data_share(inside),
            warm_up=self._warm_up(iterations, inside),
            segments=self._segments(iterations, inside),
            curve=tuple(replace(point, iteration=iterations[n]) for n, point in self._points),
            curve_stride=self._stride,
            excluded=excluded,
            notes=(_NOT_TIMED,) if self.format.first_times_nothing and iterations[0] == 0 else (),
        )

    def _clock(
        self, iterations: list[int], inside: list[int]
    ) -> tuple[WallClock | None, str, tuple[Excluded, ...]]:
        """The rate, or why there is none."""
        if not inside:
            return None, "no line lies in the window", ()
        if not self._times_ms:
            return (*self._clock_of_totals(iterations[inside[0]], iterations[inside[-1]]), ())
        excluded: list[Excluded] = []
        seconds, exact_ms, excluded_ms, excluded_steps, spans = 0, 0, 0, 0, 1
        span_start = inside[0]
        for before, n in pairwise(inside):
            if n in self._reasons:
                seconds += self._whole_seconds(span_start, before)
                exact_ms += self._times_ms[before] - self._times_ms[span_start]
                spans += span_start != before
                gap_ms = self._times_ms[n] - self._times_ms[before]
                excluded_ms += gap_ms
                excluded_steps += iterations[n] - iterations[before]
                if len(excluded) < KEPT:
                    excluded.append(
                        Excluded(iterations[before], iterations[n], gap_ms / 1000, self._reasons[n])
                    )
                span_start = n
        seconds += self._whole_seconds(span_start, inside[-1])
        exact_ms += self._times_ms[inside[-1]] - self._times_ms[span_start]
        first, last = iterations[inside[0]], iterations[inside[-1]]
        steps = last - first - excluded_steps
        exact = self.last_line.exact
        if steps <= 0 or exact_ms <= 0 or (not exact and seconds <= 0):
            return None, "fewer than two lines with time between them count", tuple(excluded)
        clock = WallClock(
            first, last, steps, seconds, exact_ms / 1000, excluded_steps, excluded_ms / 1000, exact, spans
        )
        return clock, "", tuple(excluded)

    def _whole_seconds(self, start: int, end: int) -> int:
        return self._times_ms[end] // 1000 - self._times_ms[start] // 1000

    def _clock_of_totals(self, first: int, last: int) -> tuple[WallClock | None, str]:
        """From the total times that are printed for whole epochs."""
        length = self.last_line.length
        if not self.totals or length is None:
            return None, "the format prints no time of day"
        totals = [total for total in self.totals.values() if first <= total.epoch * length <= last]
        seconds = sum(total.seconds for total in totals)
        if not seconds:
            return None, "no whole epoch lies in the window"
        start, end = min(total.epoch for total in totals), max(total.epoch for total in totals)
        steps = len(totals) * length
        exact_s = sum(total.s_per_iter * length for total in totals)
        return WallClock(
            start * length, (end + 1) * length - 1, steps, seconds, exact_s, 0, 0.0, error_s=len(totals)
        ), ""

    def _column(self, name: str, inside: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The values of the lines; nan where there is none, or none that means anything."""
        values = np.array(self._values[name], np.float64)[inside]
        if self.format.first_times_nothing and name != "memory_mb":
            values[np.array(self._iterations)[inside] == 0] = np.nan
        return values

    def _steps(self, inside: list[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        """The iterations that each line stands for: those since the line before; of an epoch that begins, one."""
        iterations = np.array(self._iterations, np.float64)
        return np.maximum(np.diff(iterations, prepend=iterations[0] - 1), 1)[inside]

    def _printed(self, inside: list[int]) -> dict[str, Printed]:
        found = {}
        for name in _PRINTED:
            values = self._column(name, inside)
            values = values[np.isfinite(values)]
            if len(values):
                with np.errstate(over="ignore"):  # a damaged line may print 1e308
                    found[name] = Printed(
                        float(values.mean()), float(np.median(values)), float(values.max()), len(values)
                    )
        return found

    def _data_share(self, inside: list[int]) -> float | None:
        steps, data = self._column("s_per_iter", inside), self._column("data_s", inside)
        both, weights = np.isfinite(steps) & np.isfinite(data), self._steps(inside)
        with np.errstate(over="ignore"):
            total, waited = (float((column * weights)[both].sum()) for column in (steps, data))
        return waited / total if total > 0 and isfinite(total) and isfinite(waited) else None

    def _warm_up(self, iterations: list[int], inside: list[int]) -> int | None:
        values = self._column("s_per_iter", inside)
        known = values[np.isfinite(values)]
        if len(known) < 5:
            return None
        slow = values > WARM_UP_FACTOR * np.median(known)
        count = int(np.argmin(slow))
        return iterations[inside[count - 1]] if 0 < count <= len(slow) // 2 else None

    def _segments(self, iterations: list[int], inside: list[int]) -> tuple[Segment, ...]:
        """By the clock, or by the printed s/iter where there is none."""
        if len(inside) < 2 * SEGMENTS:
            return ()
        found = []
        printed = self._column("s_per_iter", inside)
        bounds = np.linspace(0, len(inside) - 1, SEGMENTS + 1).round().astype(int).tolist()
        for start, end in pairwise(bounds):
            part = inside[start : end + 1]
            if self._times_ms:
                clock = self._clock(iterations, part)[0]
                rate = clock.s_per_iter if clock else None
            else:
                known = np.isfinite(printed[start + 1 : end + 1])
                values, counts = (
                    column[start + 1 : end + 1][known] for column in (printed, self._steps(inside))
                )
                rate = float(np.average(values, weights=counts)) if len(values) else None
            if rate is not None:
                found.append(Segment(iterations[part[0]], iterations[part[-1]], rate))
        return tuple(found)


def place_of(line: TrainLine) -> tuple[int, int]:
    """Where a line stands in its run."""
    return (line.epoch or 0, line.iteration) if line.format.per_epoch else (0, line.iteration)
