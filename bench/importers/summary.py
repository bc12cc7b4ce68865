"""From events to what a log shows: sections, rates, curves, evaluations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bench.importers.events import (
    BestMetric,
    Broken,
    Cards,
    EpochTotal,
    Evaluating,
    Evaluation,
    Heading,
    Inference,
    Interruption,
    Setting,
)
from bench.importers.format import Event, TrainLine
from bench.importers.section import KEPT, Part, Section
from bench.importers.track import Track, place_of

#: A rank whose line is older than this many lines is taken to have ended.
OPEN_LINES = 16
#: So many sections keep their whole curve.
FULL_SECTIONS = 10
_LAST_RECALLS = {"AR50", "AR75"}


@dataclass(frozen=True)
class Placed:
    """An evaluation, inference rate or best metric, and where in the log it stands."""

    event: Evaluation | Inference | BestMetric
    heading: str
    after_iteration: int | None
    """Or epoch: see `unit`."""
    format: str
    unit: str = "iteration"
    section: int | None = None
    """Index of the section that it follows, or stands in."""


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
    not_read: Mapping[str, int]
    """Training lines of tools that no format reads, per tool."""
    log: LogSummary


@dataclass
class _Found:
    """A `Placed` whose iteration is not known yet: it stands after the line `index` of a track, or before the next."""

    event: Evaluation | Inference | BestMetric
    heading: str
    format: str
    track: Track | None
    index: int


class Summarizer:
    """Takes events in their order; `result()` when there are no more."""

    def __init__(self, from_iter: int | None = None, to_iter: int | None = None) -> None:
        low = float("-inf") if from_iter is None else from_iter
        high = float("inf") if to_iter is None else to_iter
        self._window = (low, high)
        self._open: list[Track] = []
        """Sections that may go on, the one of the last line last."""
        self._ended: list[Track] = []
        self._part = Part()
        self._group = 0
        self._break = False
        self._format = ""
        self._number = 0
        self._cards: int | None = None
        self._cards_at = 0
        """After so many training lines the log last said how many cards there are."""
        self._found: list[_Found] = []
        self._new = 0
        """`_found` from here on stands after the last training line."""
        self._interruptions: list[Interruption] = []
        self._broken: list[Broken] = []
        self._broken_lines = self._repeated = self._dropped_sections = self._dropped_found = 0

    def add(self, event: Event) -> None:
        if isinstance(event, TrainLine):
            self._train(event)
        elif isinstance(event, Broken):
            self._broken_lines += 1
            if len(self._broken) < KEPT:
                self._broken.append(event)
        elif isinstance(event, Interruption):
            if len(self._interruptions) < KEPT:
                self._interruptions.append(event)
        elif isinstance(event, Heading):
            self._heading(event.text)
        elif isinstance(event, Setting):
            self._part.set(event.key, event.value)
        elif isinstance(event, Cards):
            self._count_cards(event)
        else:
            self._of_track(event)

    def _count_cards(self, event: Cards) -> None:
        known = self._cards if self._cards_at == self._number else None
        self._cards = max(event.count, known or 1) if event.at_least else event.count
        self._cards_at = self._number
        for track in self._open:
            track.cards = track.cards or self._cards

    def _of_track(self, event: EpochTotal | Evaluating | Evaluation | Inference | BestMetric) -> None:
        track = self._open[-1] if self._open else None
        if isinstance(event, EpochTotal):
            if track is not None:
                track.totals[event.epoch] = event
            return
        for one in self._open:
            one.disturbed = True
        if isinstance(event, Evaluating):
            if event.epoch_length is not None and track is not None:
                track.learn_epoch_length(event.epoch_length)
        else:
            self._place(event)

    def _train(self, line: TrainLine) -> None:
        self._number += 1
        self._new = len(self._found)
        last = self._open[-1].last_line if self._open else line
        timed = (last.time_ms is None) == (line.time_ms is None)
        if self._break or last.format is not line.format or not timed:
            self._end(self._open)
            self._group += 1
            self._break = False
        self._end([track for track in self._open if self._number - track.last_number > OPEN_LINES])
        place = place_of(line)
        peers = [track for track in self._open if track.rank == line.rank]
        if any(track.place == place and track.last_line.raw == line.raw for track in peers):
            self._repeated += 1
            return
        fits = [track for track in peers if track.place < place]
        if fits:
            # Of ranks that are equally far, the one that has waited longest goes on.
            track = max(fits, key=lambda fit: (*fit.place, -fit.last_number))
            self._open.remove(track)
        else:
            if not _is_another_rank(peers, line):
                self._end(peers)
            track = Track(line, self._group, self._part, self._number, self._cards)
            self._format = line.format.name
        self._open.append(track)
        track.add(line, self._number)

    def _end(self, tracks: list[Track]) -> None:
        for track in list(tracks):
            self._open.remove(track)
            if len(self._ended) >= FULL_SECTIONS:
                track.thin()
            if len(self._ended) < KEPT:
                self._ended.append(track)
            else:
                self._dropped_sections += 1

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
        elif self._merged(event):
            return
        if len(self._found) >= KEPT:
            self._dropped_found += 1
            return
        track = self._open[-1] if self._open and not self._break else None
        index = track.lines - 1 if track is not None else 0
        self._found.append(_Found(event, self._part.heading, self._format, track, index))

    def _merged(self, event: Evaluation) -> bool:
        """Whether the same evaluation was just printed in another way (as a table, then in one line), or this is the
        end of its summary: DEIM prints recalls below `ARl`."""
        for found in reversed(self._found[self._new :]):
            one = found.event
            if (
                isinstance(one, Evaluation)
                and event.metrics.keys() <= _LAST_RECALLS
                and one.kind == "summary"
            ):
                found.event = replace(one, metrics={**one.metrics, **event.metrics})
                return True
            if isinstance(one, Evaluation) and event.kind not in one.kind.split("+"):
                metrics = _agreeing(one, event)
                if metrics is not None:
                    kind = f"{one.kind}+{event.kind}"
                    found.event = replace(one, metrics=metrics, task=one.task or event.task, kind=kind)
                    return True
        return False

    def result(self) -> LogSummary:
        self._end(self._open)
        tracks = sorted(self._ended, key=lambda track: track.first_number)
        lengths = {group: _epoch_length(tracks, group) for group in {track.group for track in tracks}}
        sections = []
        for index, track in enumerate(tracks):
            family = [other for other in tracks if other.group == track.group and other is not track]
            parallel = any(
                other.first_number < track.last_number and track.first_number < other.last_number
                for other in family
            )
            earlier = any(other.last_number < track.first_number for other in family)
            sections.append(
                track.section(
                    index,
                    self._window,
                    lengths[track.group],
                    restart=earlier and not parallel,
                    parallel=parallel,
                )
            )
        return LogSummary(
            sections=tuple(sections),
            found=tuple(_placed(found, lengths, tracks) for found in self._found),
            interruptions=tuple(self._interruptions),
            broken=tuple(self._broken),
            broken_lines=self._broken_lines,
            repeated_lines=self._repeated,
            dropped_sections=self._dropped_sections,
            dropped_found=self._dropped_found,
        )


def _is_another_rank(peers: list[Track], line: TrainLine) -> bool:
    """Whether a line that goes on with none of the tracks is of another process, and not of a restart.

    Without a rank before it, a lower iteration at a later time is a restart.
    """
    if line.time_ms is None:
        return False
    for track in peers:
        passed_ms = line.time_ms - (track.last_line.time_ms or 0)
        if track.place == place_of(line) and abs(passed_ms) <= track.half_interval_ms():
            return True
        if track.place > place_of(line) and passed_ms <= 0:
            return True
    return False


def _agreeing(one: Evaluation, other: Evaluation) -> dict[str, float | None] | None:
    """The metrics of both, the more precise ones, when they say the same; None when they do not."""
    if one.task and other.task and one.task != other.task:
        return None
    shared = [name for name in one.metrics if name in other.metrics]
    for name in shared:
        a, b = one.metrics[name], other.metrics[name]
        if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > 0.00051):
            return None
    if not shared:
        return None
    finer = {
        name: max((one.metrics[name], other.metrics[name]), key=lambda value: len(repr(value)))
        for name in shared
    }
    return {**other.metrics, **one.metrics, **finer}


def _epoch_length(tracks: list[Track], group: int) -> int | None:
    """Of runs that do not print it: from a validation line, else the highest iteration of any epoch."""
    family = [track for track in tracks if track.group == group and track.format.per_epoch]
    learned = [track.epoch_length for track in family if track.epoch_length is not None]
    return max(learned or [track.highest_iteration() for track in family], default=None)


def _placed(found: _Found, lengths: dict[int, int | None], tracks: list[Track]) -> Placed:
    event, track = found.event, found.track
    stated = event.iteration if isinstance(event, Evaluation | BestMetric) else None
    after = stated if isinstance(event, Evaluation) else None
    if after is None and track is not None:
        iterations = track.iterations(lengths.get(track.group))
        index = found.index
        if track.format.evaluates_first and index + 1 < len(iterations):
            step = iterations[index + 1] - iterations[index]
            if not index or step == iterations[index] - iterations[index - 1]:
                index += 1
        after = iterations[index]
    unit = "iteration" if track is None else track.format.unit
    section = tracks.index(track) if track in tracks else None
    return Placed(event, found.heading, after, found.format, unit, section)
