"""From events to what a log shows: sections, rates, curves, evaluations - in one pass and bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.importers.events import (
    BestMetric,
    Broken,
    Claim,
    Evaluation,
    Heading,
    Inference,
    Interruption,
    Setting,
)
from bench.importers.format import BrokenLine, Event, TrainLine
from bench.importers.section import KEPT, Part, Section, Track

#: A rank whose line is older than this many lines is taken to have ended.
OPEN_LINES = 16
#: So many sections keep their whole curve.
FULL_SECTIONS = 10


@dataclass(frozen=True)
class Placed:
    """An evaluation, inference rate or best metric, and where in the log it stands."""

    event: Evaluation | Inference | BestMetric
    heading: str
    after_iteration: int | None
    format: str


@dataclass(frozen=True)
class LogSummary:
    sections: tuple[Section, ...]
    found: tuple[Placed, ...]
    interruptions: tuple[Interruption, ...]
    broken: tuple[Broken, ...]
    """The first ones; all are counted in `broken_lines`."""
    broken_lines: int
    repeated_lines: int
    dropped_sections: int
    dropped_found: int


@dataclass(frozen=True)
class ImportResult:
    """What `import_logs` found."""

    files: tuple[Path, ...]
    """In the order in which they were read."""
    from_iter: int | None
    to_iter: int | None
    lines: int
    size_bytes: int
    train_lines: Mapping[str, int]
    """Per format."""
    caveats: Mapping[str, tuple[str, ...]]
    """Per format: what its printed rates leave out."""
    log: LogSummary


class Summarizer:
    """Takes events in their order; `result()` when there are no more."""

    def __init__(self, from_iter: int | None = None, to_iter: int | None = None) -> None:
        low = float("-inf") if from_iter is None else from_iter
        high = float("inf") if to_iter is None else to_iter
        self._range = (low, high)
        self._open: list[Track] = []
        """Sections that may go on, the one of the last line last."""
        self._ended: list[Track] = []
        self._part = Part()
        self._group = 0
        self._break = False
        self._format = ""
        self._number = 0
        self._epoch_length = 0
        self._found: list[Placed] = []
        self._interruptions: list[Interruption] = []
        self._broken: list[Broken] = []
        self._broken_lines = self._repeated = self._dropped_sections = self._dropped_found = 0

    def add(self, event: Event) -> None:
        if isinstance(event, TrainLine):
            self._train(event)
        else:
            self._other(event)

    def _train(self, line: TrainLine) -> None:
        self._number += 1
        if line.format.per_epoch:
            line = self._count_on(line)
        track = self._open[-1] if len(self._open) == 1 and not self._break else None
        if (
            track is None
            or line.iteration <= track.last
            or line.format is not track.format
            or line.rank != track.rank
        ):
            track = self._choose(line)
            if track is None:
                self._repeated += 1
                return
        try:
            track.add(line, self._number)
        except BrokenLine as error:
            self._add_broken(Broken(0, str(error), line.raw[:160].decode("utf-8", "replace")))
            if not track.lines:
                self._open.remove(track)

    def _choose(self, line: TrainLine) -> Track | None:
        """The section that the line goes on with, or a new one; None for a line that says the same again."""
        if self._break or (self._open and self._open[-1].format is not line.format):
            self._end(self._open)
            self._group += 1
            self._break = False
        self._end([track for track in self._open if self._number - track.last_number > OPEN_LINES])
        if any(track.last == line.iteration and track.last_raw == line.raw for track in self._open):
            return None
        fits = [track for track in self._open if track.rank == line.rank and track.last < line.iteration]
        if fits:
            track = max(fits, key=lambda fit: (fit.last, fit.last_number))
            self._open.remove(track)
        else:
            track = Track(line, self._group, self._part, self._number, self._range)
            self._format = line.format.name
        self._open.append(track)
        return track

    def _count_on(self, line: TrainLine) -> TrainLine:
        """Iterations over the whole run where only those of the epoch are printed, and not how many it has: the
        highest one printed so far stands for the epoch's length."""
        epochs = (line.epoch or 1) - 1
        if not epochs:
            self._epoch_length = max(self._epoch_length, line.iteration)
        return line._replace(iteration=epochs * self._epoch_length + line.iteration)

    def _end(self, tracks: list[Track]) -> None:
        for track in list(tracks):
            self._open.remove(track)
            if len(self._ended) >= FULL_SECTIONS:
                track.thin()
            if len(self._ended) < KEPT:
                self._ended.append(track)
            else:
                self._dropped_sections += 1

    def _other(self, event: Event) -> None:
        if isinstance(event, Broken):
            self._add_broken(event)
        elif isinstance(event, Interruption):
            if len(self._interruptions) < KEPT:
                self._interruptions.append(event)
        elif isinstance(event, Heading):
            self._heading(event.text)
        elif isinstance(event, Setting):
            self._part.set(event.key, event.value)
        elif isinstance(event, Claim):
            if self._open and len(self._open[-1].claims) < KEPT:
                self._open[-1].claims.append(event)
        else:
            for track in self._open:
                track.disturbed = True
            if isinstance(event, Evaluation | Inference | BestMetric):
                self._place(event)

    def _heading(self, text: str) -> None:
        if text:
            self._part.heading = text
            self._break = True
            self._format = ""
        else:
            self._part = Part()

    def _place(self, event: Evaluation | Inference | BestMetric) -> None:
        if not isinstance(event, Evaluation):
            self._format = event.format
        if len(self._found) >= KEPT:
            self._dropped_found += 1
            return
        after = self._open[-1].last if self._open and not self._break else None
        self._found.append(Placed(event, self._part.heading, after, self._format))

    def _add_broken(self, broken: Broken) -> None:
        self._broken_lines += 1
        if len(self._broken) < KEPT:
            self._broken.append(broken)

    def result(self) -> LogSummary:
        self._end(self._open)
        tracks = sorted(self._ended, key=lambda track: track.first_number)
        sections = []
        for index, track in enumerate(tracks):
            family = [other for other in tracks if other.group == track.group and other is not track]
            parallel = any(
                other.first_number < track.last_number and track.first_number < other.last_number
                for other in family
            )
            earlier = any(other.last_number < track.first_number for other in family)
            sections.append(track.section(index, earlier and not parallel, parallel))
        return LogSummary(
            sections=tuple(sections),
            found=tuple(self._found),
            interruptions=tuple(self._interruptions),
            broken=tuple(self._broken),
            broken_lines=self._broken_lines,
            repeated_lines=self._repeated,
            dropped_sections=self._dropped_sections,
            dropped_found=self._dropped_found,
        )
