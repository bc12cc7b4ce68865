"""Rows in, events out. The format is detected per line: one file may hold logs of several tools."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from bench.importers import reader
from bench.importers.clock import STAMP, Clock
from bench.importers.evaluation import HINTS, SummaryBlock
from bench.importers.events import (
    BestMetric,
    Broken,
    Cards,
    Evaluation,
    Heading,
    Inference,
    Interruption,
    Setting,
)
from bench.importers.foreign import tool_of
from bench.importers.format import MAX_LINE_BYTES, BrokenLine, Event, Format, OtherEvent, TrainLine
from bench.importers.rows import Row, Rows

#: This many blank lines end a part of a hand-made collection: settings above them do not hold below.
BLANK_LINES_THAT_END_A_PART = 5
_SHOWN_CHARACTERS = 160
_NOTE_BYTES = 400

_SETTING = re.compile(r"([A-Za-z_]\w{0,80}) ?= ?([\w.+-]{1,200})\s*$", re.ASCII)
_CARDS = re.compile(
    rb"(?:\bnranks: |\b[Ww]orld[ _][Ss]ize[:=] ?|\bdp_degree: )(\d{1,5})\b"
    rb"|\bon (\d{1,5}) devices\)|\bdistributed init \(rank (\d{1,5})\)"
)
_CARD_HINTS = (b"nranks: ", b"orld size", b"orld_size", b"dp_degree: ", b" devices)", b"distributed init ")
_DEATHS = (b"Traceback (most recent call last)", b"KeyboardInterrupt", b"FatalError: ")
_HEADING = re.compile(r"\S.*[:：]\s*$")


@dataclass
class Counts:
    """What went through a stream."""

    lines: int = 0
    train_lines: Counter[str] = field(default_factory=Counter)
    not_read: Counter[str] = field(default_factory=Counter)
    """Training lines of tools that no format reads."""


class Stream:
    """Events of one log. Its files, when there are several, are parts of it (rotated), read in their order."""

    def __init__(self, formats: Sequence[Format]) -> None:
        self.counts = Counts()
        self._formats = tuple(formats)
        self._format: Format | None = None
        """The format of the last training line."""
        self._clock = Clock()
        self._block = SummaryBlock()
        self._blank_lines = 1
        self._heading: str | None = None
        """What may be a heading, if a log or a setting follows it."""
        self._number = 0
        """Of the line that is looked at."""
        self._others = [(format.name, *other) for format in formats for other in format.others]
        hints = sorted({*HINTS, *(hint for _, hint, _, _ in self._others)})
        self._hint = re.compile(b"|".join(map(re.escape, hints)))

    def read(self, path: Path) -> Iterator[Event]:
        """Raises BenchError when the file cannot be read."""
        rows = Rows(reader.lines(path), self._formats, self.counts.lines)
        for row in rows:
            self._number = row.number
            if self._heading is not None:
                yield from self._confirmed_heading(row.text)
            yield from self._row(row)
        self.counts.lines = rows.read
        yield from self._flushed()

    def _row(self, row: Row) -> Iterator[Event]:
        claimed = any(format.marker in row.text for format in self._formats)
        if len(row.text) > MAX_LINE_BYTES:
            if claimed:
                yield self._broken(row.text, "it is longer than 1 MB")
        elif not row.whole and any(
            format.marker in row.text and not format.closed for format in self._formats
        ):
            yield self._broken(row.text, "the file ends within it")
        elif claimed:
            yield from self._training(row)
        else:
            yield from self._other(row)

    def _training(self, row: Row) -> Iterator[Event]:
        """A row that holds the marker of a format."""
        reason, whole = "", False
        for format in self._formats:
            if format.marker not in row.text:
                continue
            for candidate in _variants(row.text, format):
                try:
                    line = format.read(candidate, self._clock)
                except BrokenLine as error:
                    reason = reason or str(error)
                    continue
                whole |= line is None and format.start.match(candidate) is not None
                if line is not None:
                    yield from self._flushed()
                    yield from self._trained(line._replace(rank=row.rank))
                    return
        if reason:
            yield self._broken(row.text, reason)
        else:
            yield from self._other(row, whole=whole)

    def _trained(self, line: TrainLine) -> Iterator[Event]:
        self._format = line.format
        if line.iteration < 0:
            line = line._replace(iteration=self.counts.train_lines[line.format.name])
        self.counts.train_lines[line.format.name] += 1
        self._blank_lines = 0
        yield line
        if line.format.mixed and line.format.mixed in line.raw:
            yield from self._events(line.raw)

    def _broken(self, line: bytes, reason: str) -> Broken:
        return Broken(self._number, reason, reader.text(line[:_NOTE_BYTES])[:_SHOWN_CHARACTERS])

    def _other(self, row: Row, *, whole: bool = False) -> Iterator[Event]:
        """A line that is not training progress. ``whole``: it was read, and is none."""
        line = row.text
        if not line:
            self._blank_lines += 1
            if self._blank_lines == BLANK_LINES_THAT_END_A_PART:
                yield Heading("")
            return
        blank_lines, self._blank_lines = self._blank_lines, 0
        found = False
        if self._hint.search(line) is not None or self._block.waiting:
            for event in self._events(line):
                found = True
                yield event
        if any(hint in line for hint in _CARD_HINTS) and (match := _CARDS.search(line)) is not None:
            count = int(match[1] or match[2] or int(match[3]) + 1)
            yield Cards(count, at_least=match[3] is not None)
        if found:
            return
        if tool := tool_of(line) or tool_of(row.line):
            self.counts.not_read[tool] += 1
            return
        if not whole and self._format is not None and self._format.claim.search(line) is not None:
            yield self._broken(line, "it is cut")
        elif line.startswith(_DEATHS):
            yield Interruption(self._number, reader.text(line[:_SHOWN_CHARACTERS]).strip())
        elif len(line) <= _NOTE_BYTES and not STAMP.match(line) and not any(hint in line for hint in HINTS):
            yield from self._remarks(row.line, blank_lines > 0)

    def _remarks(self, line: bytes, after_blank: bool) -> Iterator[Event]:
        """What a person wrote between logs: headings and settings."""
        note = reader.text(line)
        if (setting := _SETTING.match(note)) is not None:
            yield Setting(setting[1], setting[2])
        elif after_blank and _HEADING.match(note):
            self._heading = note.strip().rstrip(":：").strip()

    def _confirmed_heading(self, line: bytes) -> Iterator[Heading]:
        """The heading, if this next line is of a log or a setting: anything else may end in a colon, too."""
        if not line:
            return
        heading, self._heading = self._heading, None
        known = any(format.marker in line for format in self._formats) or self._hint.search(line) is not None
        if heading is not None and (known or _SETTING.match(reader.text(line)) is not None):
            yield Heading(heading)

    def _events(self, line: bytes) -> Iterator[Event]:
        found: list[OtherEvent] = []
        format = ""
        try:
            if (evaluation := self._block.feed(line)) is not None:
                found.append(evaluation)
            for name, hint, pattern, say in self._others:
                if hint in line and (match := pattern.search(line)) is not None and (said := say(match)):
                    found += said
                    format = name
                    break
        except (ValueError, OverflowError):
            yield self._broken(line, "a value is not a number")
            return
        for event in found:
            yield self._placed(event, self._time_ms(line), format)

    def _flushed(self) -> Iterator[Event]:
        """The evaluation whose lines end here."""
        if (event := self._block.flush()) is not None:
            yield self._placed(event)

    def _placed(self, event: OtherEvent, time_ms: int | None = None, format: str = "") -> OtherEvent:
        if isinstance(event, BestMetric):
            return replace(event, line=self._number, format=format)
        if isinstance(event, Inference):
            return replace(event, line=self._number, time_ms=time_ms, format=format)
        return replace(event, line=self._number, time_ms=time_ms) if isinstance(event, Evaluation) else event

    def _time_ms(self, line: bytes) -> int | None:
        stamp = STAMP.match(line)
        try:
            return self._clock.read(stamp[1]) if stamp else None
        except ValueError:
            return None


def _variants(line: bytes, format: Format) -> Iterator[bytes]:
    """The line, and what is left of it without the rest of a progress bar or an unknown label before it."""
    yield line
    if line.count(format.once) == 1 and (match := format.start.search(line)) is not None and match.start():
        yield line[match.start() :]
