"""Lines in, events out. Which format a line has is asked of the line: one file may hold logs of several tools."""

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
    Claim,
    Evaluating,
    Heading,
    Interruption,
    Setting,
)
from bench.importers.format import BrokenLine, Event, Format, OtherEvent, TrainLine

#: This many blank lines end a part of a hand-made collection: settings above them do not hold below.
BLANK_LINES_THAT_END_A_PART = 5
_SHOWN_CHARACTERS = 160
_NOTE_BYTES = 400

_RANK = re.compile(rb"\[(?:default|rank)(\d{1,6})\]:? ?")
_SETTING = re.compile(r"([A-Za-z_]\w*) ?= ?([\w.+-]+)\s*$", re.ASCII)
_CLAIM = re.compile(r"(\d{1,12}) ?steps? / (\d{1,9}) ?s = (\d+\.\d+) ?steps?/s", re.ASCII)
_DEATHS = (b"Traceback (most recent call last)", b"KeyboardInterrupt")
_HEADING = re.compile(r"\S.*[:：]\s*$")


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
        self._format: Format | None = None
        """The format of the last training line."""
        self._clock = Clock()
        self._block = SummaryBlock()
        self._blank_lines = 1
        self._heading: str | None = None
        """What may be a heading, if a log or a setting follows it."""
        self._others = [other for format in formats for other in format.others]
        hints = sorted({*HINTS, *(hint for hint, _, _ in self._others)})
        self._hint = re.compile(b"|".join(map(re.escape, hints)))

    def read(self, path: Path) -> Iterator[Event]:
        """Raises BenchError when the file cannot be read."""
        for line, whole in reader.lines(path):
            self.counts.lines += 1
            if self._heading is not None:
                yield from self._confirmed_heading(line)
            yield from self._line(line) if whole else self._unfinished(line)
        if (event := self._block.flush()) is not None:
            yield from self._placed([event], None)

    def _line(self, line: bytes) -> Iterator[Event]:
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
                    self._blank_lines = 0
                    yield TrainLine(format, *parsed, candidate, rank)
                    if format.mixed and format.mixed in line:
                        yield from self._events(line)
                    return
        if reason:
            yield self._broken(line, reason)
        else:
            yield from self._other(line)

    def _unfinished(self, line: bytes) -> Iterator[Event]:
        """What follows the last newline: whole or cut, where the format cannot tell, it is not taken for whole."""
        if any(format.marker in line and not format.closed for format in self._formats):
            yield self._broken(line, "the file ends within it")
        else:
            yield from self._line(line)

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
        if self._format is not None and self._format.claim.search(line) is not None:
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
        elif after_blank and _HEADING.match(note):
            self._heading = note.strip().rstrip(":：").strip()

    def _confirmed_heading(self, line: bytes) -> Iterator[Heading]:
        """The heading, if this next line is of a log or a setting: anything else may end in a colon, too."""
        if not line.strip():
            return
        heading, self._heading = self._heading, None
        known = any(format.marker in line for format in self._formats) or self._hint.search(line) is not None
        if heading is not None and (known or _SETTING.match(reader.text(line)) is not None):
            yield Heading(heading)

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
