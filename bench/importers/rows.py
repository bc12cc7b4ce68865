"""What stands around and between the lines of a log is taken off once, for every format.

Labels before a line (srun, compose, kubectl, grep, a quote, an indent), trailing blanks, lines that a terminal wrapped,
and tables (`results.csv`), whose rows become JSON lines.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from bench.importers.clock import STAMP, Clock
from bench.importers.format import MAX_LINE_BYTES, BrokenLine, Format, json_or_nothing, pairs

_LABEL = re.compile(
    rb"[ \t]{0,200}(?:"
    rb"\[(?:(?:rank|default)?(?P<rank>\d{1,6})\]:?|[a-z_]{1,20}(?P<role>\d{1,6})\]:) ?"  # torchrun
    rb"|(?P<task>\d{1,5}): (?! *Average )"  # srun --label
    rb"|\[\d{1,5},(?P<mpi>\d{1,5})\](?:<std(?:out|err)>)?: ?"  # mpirun --tag-output
    rb"|\((?:\w{1,40} )?pid=\d{1,9}(?:, ip=[\d.]{7,15})?\) ?"  # Ray
    rb"|[\w.-]{1,64}[ \t]{1,40}\| ?"  # compose
    rb"|\[pod/[^\]\s]{1,200}\] ?"  # kubectl --prefix
    rb"|\d{4}-\d\d-\d\dT[\d:.,]{8,18}(?:Z|[+-]\d\d:?\d\d) ?"  # kubectl --timestamps, GitHub
    rb"|[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S{1,64} \S{1,64}\[\d{1,9}\]: "  # journal
    rb"|[\w./-]{1,200}\.(?:log|txt|out|err|json)(?:\.\d{1,3})?:(?:\d{1,9}:)?"  # grep -H
    rb"|\d{1,9}[:\t](?!\d\d:)"  # grep -n, cat -n
    rb"|>{1,5} ?|#{1,3} ?"  # a quote, a comment
    rb")"
)
_MOST_LABELS = 5
_SUMMARY_END = re.compile(rb"= (?:-?\d\.\d{3}|nan)$")
#: How an object of JSON begins that is spread over several lines.
_OBJECTS = (b"{", b"json_stats: {")
_OBJECT_BEGIN = re.compile(rb'\{\s{1,99}"')
_NO_BREAK_SPACE = b"\xc2\xa0"

#: A terminal narrower than this wraps more than can be put together again.
_NARROWEST = 40
_WIDEST = 2000
_MOST_WRAPPED = 60
#: Blanks at the end of a wrapped line are often lost.
_LOST_BLANKS = 2


@dataclass(frozen=True)
class Row:
    """A line without what stands around it."""

    number: int
    """In the log, from 1."""
    text: bytes
    rank: int | None
    whole: bool
    """A newline ended it."""
    line: bytes = b""
    """With its label and its blanks."""


def strip_labels(line: bytes) -> tuple[bytes, int | None]:
    """The line without the labels before it, and the rank that they name."""
    rank = None
    for _ in range(_MOST_LABELS):
        match = _LABEL.match(line)
        if match is None:
            break
        named = match["rank"] or match["role"] or match["task"] or match["mpi"]
        rank = rank if named is None else int(named)
        line = line[match.end() :]
    return line, rank


class Rows:
    """Rows of one log, with those that a terminal wrapped put together."""

    def __init__(self, lines: Iterable[tuple[bytes, bool]], formats: Sequence[Format], before: int) -> None:
        self.read = before
        self._lines = iter(lines)
        self._formats = formats
        self._ahead: deque[Row] = deque()
        self._columns: list[str] = []
        """Of the table that the last lines belong to."""
        self._width = 0
        """Of the terminal that wrapped lines, once it is known."""

    def __iter__(self) -> Iterator[Row]:
        while self._look(1):
            row = self._ahead.popleft()
            if row.text.endswith((b"{", b",")) and row.text.startswith(_OBJECTS):
                yield self._object(row)
            else:
                yield self._joined(row) if len(row.text) >= _NARROWEST else row

    def _look(self, count: int) -> bool:
        """Read ahead so many rows; whether there are so many."""
        while len(self._ahead) < count:
            line = next(self._lines, None)
            if line is None:
                return False
            self.read += 1
            self._ahead.append(self._row(*line))
        return True

    def _row(self, line: bytes, whole: bool) -> Row:
        if len(line) > MAX_LINE_BYTES:
            return Row(self.read, line, None, whole, line)
        if _NO_BREAK_SPACE in line:
            line = line.replace(_NO_BREAK_SPACE, b" ")
        line = line.replace(b"**", b"")  # bold in markdown
        text, rank = strip_labels(line)
        text = text.strip(b" \t\r\v\f`")  # a back-tick: code in markdown
        if self._columns or text.startswith((b"epoch,", b"epoch ", b'"epoch"')):
            text = line = self._of_table(text)
        return Row(self.read, text, rank, whole, line)

    def _of_table(self, text: bytes) -> bytes:
        """A row of a table of epochs as JSON."""
        cells = [cell.strip(' "\t') for cell in text.decode("utf-8", "replace").split(",")]
        if cells[0] == "epoch" and len(cells) > 2:
            self._columns = cells
            return b""
        if len(cells) != len(self._columns):
            return text
        values = {}
        for column, cell in zip(self._columns, cells, strict=True):
            try:
                values[column] = float(cell)
            except ValueError:
                return text
        return json.dumps(values).encode()

    def _joined(self, row: Row) -> Row:
        """A row and those that go on with it, where a terminal wrapped a long line."""
        width, text = len(row.line), row.line[row.line.index(row.text) :]
        format = self._begun(row.text)
        if format is None and width <= _WIDEST and STAMP.match(row.text):
            following = next(self._following(width), None)
            format = None if following is None else self._begun(text + following.line)
        if format is None:
            return self._filled(row)
        joined, best = row.text, 0
        for taken, following in enumerate(self._following(width), start=1):
            text += following.line
            if self._ends_with(format, joined, following, text.strip(), width):
                joined, best = text.strip(), taken
        if best:
            self._width = width
        return self._take(row, joined, best)

    def _object(self, row: Row) -> Row:
        """A row that begins an object of JSON, with the rows up to its end."""
        text = row.text
        for taken in range(1, _MOST_WRAPPED + 1):
            if not self._look(taken) or len(self._ahead[taken - 1].text) > _WIDEST:
                break
            text += b" " + self._ahead[taken - 1].text
            if text.endswith(b"}") and json_or_nothing(text):
                return self._take(row, _OBJECT_BEGIN.sub(b'{"', text), taken)
        return self._joined(row)

    def _begun(self, text: bytes) -> Format | None:
        return next((format for format in self._formats if format.start.match(text)), None)

    def _following(self, width: int) -> Iterator[Row]:
        """Rows that may go on with one of that width; the first that is shorter is the last."""
        for taken in range(_MOST_WRAPPED):
            if not self._look(taken + 1):
                return
            row = self._ahead[taken]
            if not row.text or not len(row.line) <= width <= _WIDEST or STAMP.match(row.text):
                return
            if self._begun(row.text) is not None:
                return
            yield row
            if len(row.line) < width - _LOST_BLANKS:
                return

    def _ends_with(self, format: Format, before: bytes, row: Row, text: bytes, width: int) -> bool:
        """Whether a line ends with this row. One that could have ended before it needs a sign that it did not."""
        if not format.is_whole(text) or not _reads(format, text):
            return False
        return not _reads(format, before) or bool(pairs(row.line)) or self._width == width

    def _take(self, row: Row, text: bytes, count: int) -> Row:
        whole = row.whole
        for _ in range(count):
            whole = self._ahead.popleft().whole
        return Row(row.number, text, row.rank, whole, row.line)

    def _filled(self, row: Row) -> Row:
        """A row of another kind that fills the terminal is joined with what follows, once the width is known; the
        rows of pycocotools' summary say themselves when they are cut."""
        width = len(row.line)
        if b" @[ IoU=" not in row.text or _SUMMARY_END.search(row.text):
            width = self._width
            if not width or abs(len(row.line) - width) > _LOST_BLANKS or not STAMP.match(row.text):
                return row
        following = [one.line for one in self._following(width)]
        text = row.line[row.line.index(row.text) :] + b"".join(following)
        return self._take(row, text.strip(), len(following))


def _reads(format: Format, text: bytes) -> bool:
    try:
        return format.read(text, Clock()) is not None
    except BrokenLine:
        return False
