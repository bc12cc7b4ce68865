"""Lines in, events out. Which format a line has is asked of the line: one file may hold logs of several tools."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bench.importers import reader
from bench.importers.clock import STAMP, Clock
from bench.importers.evaluation import HINTS, SummaryBlock
from bench.importers.events import (
    BestMetric,
    Broken,
    Claim,
    Evaluating,
    Event,
    Heading,
    Interruption,
    Setting,
    TrainLine,
    TrainRun,
)
from bench.importers.formats import MAX_DIGITS, BrokenLine, Format, OtherEvent

#: This many blank lines end a part of a hand-made collection: settings above them do not hold below.
BLANK_LINES_THAT_END_A_PART = 5
#: Fewer lines than this are read one by one.
SHORTEST_RUN = 8
_SHOWN_CHARACTERS = 160
_NOTE_BYTES = 400

_RANK = re.compile(rb"\[(?:default|rank)(\d{1,6})\]:? ?")
_SETTING = re.compile(r"([A-Za-z_]\w*) ?= ?([\w.+-]+)\s*$", re.ASCII)
_CLAIM = re.compile(r"(\d{1,12}) ?steps? / (\d{1,9}) ?s = (\d+\.\d+) ?steps?/s", re.ASCII)
_DEATHS = (b"Traceback (most recent call last)", b"KeyboardInterrupt")
_HEADING = re.compile(r"\S.*[:：]\s*$")
_LOOK_AHEAD_LINES = 8


@dataclass
class Counts:
    """What went through a stream."""

    lines: int = 0
    train_lines: Counter[str] = field(default_factory=Counter)


class Stream:
    """Events of one log. Its files, when there are several, are parts of it (rotated), read in their order."""

    def __init__(self, formats: Sequence[Format]) -> None:
        self.counts = Counts()
        self._formats = tuple(formats)
        self._format = self._formats[0]
        """The format of the last training line: the first guess for the next."""
        self._format_is_known = False
        self._clock = Clock()
        self._block = SummaryBlock()
        self._blank_lines = 1
        self._following: list[bytes] = []
        """The lines after the one that is looked at."""
        self._others = [other for format in formats for other in format.others]
        hints = sorted({*HINTS, *(hint for hint, _, _ in self._others)})
        self._hint = re.compile(b"|".join(map(re.escape, hints)))

    def read(self, path: Path) -> Iterator[Event]:
        """Raises BenchError when the file cannot be read."""
        for block, whole in reader.blocks(path):
            last = b""
            if not whole:
                block, _, last = block.rpartition(b"\n")
            if block or whole:
                yield from self._block_events(block)
            if last:
                yield from self._unfinished(last)
        if (event := self._block.flush()) is not None:
            yield from self._placed([event], None)

    def _block_events(self, block: bytes) -> Iterator[Event]:
        """Training lines of the format of the last one, with nothing between them that matters, come as one
        `TrainRun`: they are read by one regular expression for the whole block. Every other line is looked at by
        itself."""
        if not self._format_is_known:
            self._format = max(self._formats, key=lambda format: block.count(format.marker))
        format = self._format
        lines = block.split(b"\n")
        rows = format.rows.findall(block)
        others = [n for n, row in enumerate(rows) if not row[2]]
        once = block.count(format.once) - sum(lines[n].count(format.once) for n in others)
        if len(rows) != len(lines) or once != len(rows) - len(others):
            rows, others = [], list(range(len(lines)))
        first = self.counts.lines
        run: list[int] = []
        start = 0
        for n in others:
            if n > start:
                run += range(start, n)
                self._trained()
            self.counts.lines = first + n + 1
            self._following = lines[n + 1 : n + 1 + _LOOK_AHEAD_LINES]
            if events := list(self._unusual(lines[n])):
                yield from self._run(format, rows, lines, run, first)
                yield from events
                run = []
            start = n + 1
        run += range(start, len(lines))
        yield from self._run(format, rows, lines, run, first)
        self.counts.lines = first + len(lines)

    def _run(
        self, format: Format, rows: list[tuple[bytes, ...]], lines: list[bytes], run: list[int], first: int
    ) -> Iterator[TrainRun | Event]:
        """The lines of a block that `run` names, as columns; one by one when one of them is not what it seems."""
        chosen = [rows[n] for n in run]
        texts = [lines[n] for n in run]
        columns = self._columns(format, chosen, texts) if len(run) >= SHORTEST_RUN else None
        if columns is not None:
            self._trained()
            self.counts.train_lines[format.name] += len(run)
            yield columns
            return
        for n in run:
            self.counts.lines = first + n + 1
            yield from self._unusual(lines[n])

    def _columns(self, format: Format, rows: list[tuple[bytes, ...]], lines: list[bytes]) -> TrainRun | None:
        if self._format is not format or (format.mixed and any(format.mixed in line for line in lines)):
            return None
        stamps, epochs, iterations, lengths = zip(*rows, strict=True)
        if max(max(map(len, column)) for column in (epochs, iterations, lengths)) > MAX_DIGITS:
            return None
        counts = np.fromiter(map(int, iterations), np.int64, len(rows))
        if epochs[0] and lengths[0]:
            done = np.fromiter(map(int, epochs), np.int64, len(rows)) - format.first_epoch
            counts += done * np.fromiter(map(int, lengths), np.int64, len(rows))
        try:
            times_ms = self._clock.read_all(stamps) if stamps[0] else None
        except ValueError:
            return None
        return TrainRun(format, times_ms, epochs, counts, lines)

    def _unusual(self, line: bytes) -> Iterator[Event]:
        """A line that is looked at by itself."""
        reason = ""
        for format in self._formats:
            if format.marker not in line:
                continue
            for candidate, rank in _variants(line, format):
                try:
                    parsed = format.head(candidate, self._clock)
                except BrokenLine as error:
                    reason = reason or str(error)
                    continue
                if parsed is not None:
                    self._format = format
                    self.counts.train_lines[format.name] += 1
                    self._trained()
                    yield TrainLine(format, *parsed, candidate, rank)
                    if format.mixed and format.mixed in line:
                        yield from self._events(line)
                    return
        if reason:
            yield self._broken(line, reason)
        else:
            yield from self._other(line)

    def _trained(self) -> None:
        """A training line of `self._format` was seen."""
        self._format_is_known = True
        self._blank_lines = 0

    def _unfinished(self, line: bytes) -> Iterator[Event]:
        """What follows the last newline: whole or cut, where the format cannot tell, it is not taken for whole."""
        self.counts.lines += 1
        if any(format.marker in line and not format.closed for format in self._formats):
            yield self._broken(line, "the file ends within it")
        else:
            yield from self._unusual(line)

    def _broken(self, line: bytes, reason: str) -> Broken:
        return Broken(self.counts.lines, reason, reader.text(line[:_NOTE_BYTES])[:_SHOWN_CHARACTERS])

    def _other(self, line: bytes) -> Iterator[Event]:
        """A line that is not training progress."""
        if not line or line.isspace():
            self._blank_lines += 1
            if self._blank_lines == BLANK_LINES_THAT_END_A_PART:
                yield Heading("")
            return
        blank_lines, self._blank_lines = self._blank_lines, 0
        found = False
        if self._hint.search(line) is not None:
            for event in self._events(line):
                found = True
                yield event
        if found:
            return
        if self._format_is_known and self._format.claim.search(line) is not None:
            yield self._broken(line, "it is cut")
        elif line.startswith(_DEATHS):
            yield Interruption(self.counts.lines, reader.text(line[:_SHOWN_CHARACTERS]).strip())
        elif len(line) <= _NOTE_BYTES and STAMP.match(line) is None:
            yield from self._remarks(line, blank_lines > 0)

    def _remarks(self, line: bytes, after_blank: bool) -> Iterator[Event]:
        """What a person wrote between logs: headings, settings, rates worked out by hand."""
        note = reader.text(line)
        if (setting := _SETTING.match(note)) is not None:
            yield Setting(setting[1], setting[2])
        elif (claim := _CLAIM.search(note)) is not None:
            yield Claim(int(claim[1]), int(claim[2]), float(claim[3]))
        elif after_blank and _HEADING.match(note) and self._log_follows():
            yield Heading(note.strip().rstrip(":：").strip())

    def _log_follows(self) -> bool:
        """Whether the next line is of a log or a setting: what ends in a colon above anything else is no heading."""
        line = next((line for line in self._following if line.strip()), b"")
        known = any(format.marker in line for format in self._formats) or self._hint.search(line) is not None
        return known or _SETTING.match(reader.text(line)) is not None

    def _events(self, line: bytes) -> Iterator[Event]:
        found: list[OtherEvent] = []
        try:
            if (evaluation := self._block.feed(line)) is not None:
                found.append(evaluation)
            for hint, pattern, say in self._others:
                if hint in line and (match := pattern.search(line)) is not None:
                    found += say(match)
                    break
        except (ValueError, OverflowError):
            yield self._broken(line, "a value is not a number")
            return
        yield from self._placed(found, self._time_ms(line))

    def _placed(self, events: list[OtherEvent], time_ms: int | None) -> Iterator[OtherEvent]:
        for event in events:
            if isinstance(event, BestMetric):
                yield replace(event, line=self.counts.lines)
            elif isinstance(event, Evaluating):
                yield event if time_ms is None else replace(event, time_ms=time_ms)
            else:
                yield replace(event, line=self.counts.lines, time_ms=time_ms)

    def _time_ms(self, line: bytes) -> int | None:
        stamp = STAMP.match(line)
        try:
            return self._clock.read(stamp[1]) if stamp else None
        except ValueError:
            return None


def _variants(line: bytes, format: Format) -> Iterator[tuple[bytes, int | None]]:
    """The line, and what is left of it without a launcher's prefix or the rest of a progress bar before it."""
    yield line, None
    if (match := _RANK.match(line)) is not None:
        yield line[match.end() :], int(match[1])
    elif line.count(format.once) == 1 and (match := format.start.search(line)) is not None and match.start():
        yield line[match.start() :], None
