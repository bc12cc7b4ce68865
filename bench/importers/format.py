"""A log format as data: how its training lines start and end, what its keys mean, which other lines matter.

`formats/` holds them; `Format.read` is all the code they need. No pattern may take more than linear
time: every repetition is bounded, or the pattern is matched at one place only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from bench.importers.clock import Clock
from bench.importers.events import (
    BestMetric,
    Broken,
    Cards,
    EpochTotal,
    Evaluating,
    Evaluation,
    Fields,
    Heading,
    Inference,
    Interruption,
    Setting,
)

OtherEvent = Evaluation | Evaluating | Inference | BestMetric | EpochTotal
#: A line that is not training progress: a text it holds, how to know it, and what it says (`format`, `line` and
#: `time_ms` are filled in later).
Other = tuple[bytes, re.Pattern[bytes], Callable[[re.Match[bytes]], tuple[OtherEvent, ...]]]

NUMBER = rb"[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|[nN]a[nN]|inf)"
_PAIR = re.compile(
    rb"(?<![^\s,('])((?:[A-Za-z_]\w{0,40} {1,99})?[^\s:,'(]{1,100})'?: {1,20}'?("
    + NUMBER
    + rb")(?:M|[MG]b|s)?(?![^\s,')])"
)
#: A number that padding splits.
_SPLIT = re.compile(rb"(?<=[\d.-]) {2,99}(?=[\d.]|[eE][-+]\d)")
_PADDING = re.compile(r" {2,}")
_BRACKETED = re.compile(rb" \(([a-z_]{1,40}) (" + NUMBER + rb")\)")
DURATION = rb"(?:-?\d{1,9} days?, )?\d{1,9}:\d\d:\d\d"
_ETA = re.compile(rb"\b(?:eta|ETA)\"?: \"?(" + DURATION + rb")")
#: Values that are no numbers and need not be: `lr: N/A`, `size: (640, 640)`.
_NO_NUMBERS = (b": N/A", b": (")

#: Iterations, epochs and lengths of more digits than this are garbage.
MAX_DIGITS = 9
#: No tool writes a line as long as this.
MAX_LINE_BYTES = 1 << 20
_END_BYTES = 200


class BrokenLine(ValueError):
    """The line is of this format and not whole."""


class TrainLine(NamedTuple):
    """One line of training progress."""

    format: Format
    time_ms: int | None
    """None in formats that print no time."""
    epoch: int | None
    """As printed."""
    iteration: int
    """Counted over the whole run when the format prints the epoch's length; else as printed."""
    length: int | None
    """Iterations of an epoch, where the format prints both."""
    fields: Fields
    raw: bytes
    exact: bool
    """Milliseconds are printed."""
    rank: int | None = None
    """From a launcher's prefix (`[rank1]:`), when there is one."""


Event = TrainLine | OtherEvent | Cards | Heading | Setting | Interruption | Broken


@dataclass(frozen=True)
class JsonKeys:
    """Where a JSON training line has its place in the run, and how to tell it from other lines."""

    iteration: str
    is_train: Callable[[Mapping[str, Any]], bool]
    epoch: str | None = None
    time_s: str | None = None
    """Seconds since the run's start."""
    by_order: bool = False
    """Lines without an iteration are counted: `TrainLine.iteration` is -1 until then."""


@dataclass(frozen=True, eq=False)
class Format:
    """How one tool writes its log."""

    name: str
    title: str
    marker: bytes
    """A text that every training line holds."""
    claim: re.Pattern[bytes]
    """Found in every line that claims to be training progress, whole or not."""
    keys: Mapping[str, str]
    """Printed key → one of lr, s_per_iter, data_s, images_per_s, memory_mb; of two, the first printed one counts."""
    start: re.Pattern[bytes] = re.compile(rb'\{"')
    """Matches from the start of a training line; groups: stamp, epoch, iteration, length (of the epoch or the run);
    `()` where there is none. Of JSON, the groups are not used."""
    once: bytes = b"{"
    """A text that a whole line holds once: twice means that two lines ran into one another."""
    end: re.Pattern[bytes] = re.compile(rb"\}$")
    """Found at the end of every whole training line; it has to end in `$`."""
    closed: bool = True
    """Whether `end` tells a whole line from a cut one; if not, a last line without newline is not trusted."""
    first_epoch: int = 0
    per_epoch: bool = False
    """Iterations start again in every epoch, and its length is not printed."""
    json: JsonKeys | None = None
    mixed: bytes = b""
    """A text in a training line that says that it holds an evaluation, too."""
    unit: Literal["iteration", "epoch"] = "iteration"
    """What a training line counts."""
    first_times_nothing: bool = False
    """The line of iteration 0 is printed before a step is timed: its rate is none."""
    evaluates_first: bool = False
    """The evaluation of an iteration is printed before the training line of that iteration."""
    per_card: bool = False
    """The printed images/s are of one process, not of all cards."""
    others: tuple[Other, ...] = ()
    caveats: tuple[str, ...] = ()
    """What the printed values stand for: over which window they are taken, and what they leave out."""

    def read(self, line: bytes, clock: Clock) -> TrainLine | None:
        """A training line; None for another line.

        Raises BrokenLine for a training line that is cut, run together with another one, shows an impossible time or
        a value that is no number.
        """
        if len(line) > MAX_LINE_BYTES:
            raise BrokenLine(f"it is longer than {MAX_LINE_BYTES // 1024} KB")
        match = self.start.match(line)
        if match is None:
            if self.claim.search(line):
                raise BrokenLine("its beginning is damaged")
            return None
        if not self.is_whole(line):
            raise BrokenLine("its end is missing")
        if line.count(self.once) != 1:
            raise BrokenLine("two lines run together")
        return self._json_line(line) if self.json else self._text_line(line, match, clock)

    def is_whole(self, line: bytes) -> bool:
        """Whether a training line ends as such lines do."""
        return self.end.search(line[-_END_BYTES:]) is not None

    def _text_line(self, line: bytes, match: re.Match[bytes], clock: Clock) -> TrainLine:
        stamp, epoch, iteration, length = match.groups(b"")
        if max(len(iteration), len(epoch), len(length)) > MAX_DIGITS:
            raise BrokenLine("no such iteration")
        eta = _ETA.search(line)
        body = line[match.end() :]
        if eta is not None and eta.start() >= match.end():
            body = line[match.end() : eta.start()] + line[eta.end() :]
        fields = self._fields(_text_numbers(body), eta)
        try:
            time_ms = clock.read(stamp) if stamp else None
            exact = b"," in stamp or b"." in stamp
        except ValueError as error:
            raise BrokenLine(str(error)) from None
        number, per_epoch = (int(epoch), int(length or 0)) if epoch else (None, 0)
        before = ((number or 0) - self.first_epoch) * per_epoch
        return TrainLine(
            self, time_ms, number, before + int(iteration), per_epoch or None, fields, line, exact
        )

    def _json_line(self, line: bytes) -> TrainLine | None:
        assert self.json is not None
        content = json_object(line[line.index(b"{") :])
        if not self.json.is_train(content):
            return None
        values = _json_numbers(content)
        iteration, epoch = (
            values.pop(key, None) if key else None for key in (self.json.iteration, self.json.epoch)
        )
        seconds = values.get(self.json.time_s) if self.json.time_s else None
        for number in (iteration, epoch, seconds):
            if number is not None and not 0 <= number < 10**MAX_DIGITS:
                raise BrokenLine("no such iteration")
        if iteration is None and self.json.by_order and self.json.iteration not in content:
            iteration = -1
        if iteration is None:
            raise BrokenLine("its iteration is no number")
        return TrainLine(
            self,
            None if seconds is None else round(seconds * 1000),
            None if epoch is None else int(epoch),
            int(iteration),
            None,
            self._fields(values, _ETA.search(line)),
            line,
            exact=True,
        )

    def _fields(self, values: Mapping[str, float], eta: re.Match[bytes] | None) -> Fields:
        known: dict[str, float] = {}
        losses: dict[str, float] = {}
        other: dict[str, float] = {}
        for key, value in values.items():
            if (meaning := self.keys.get(key) or self.keys.get(key.replace(" ", ""))) is not None:
                known.setdefault(meaning, value)
            elif "loss" in key:
                losses[key] = value
            else:
                other[key] = value
        return Fields(eta_s=eta and int(duration_s(eta[1])), losses=losses, other=other, **known)


def _text_numbers(body: bytes) -> dict[str, float]:
    pairs = _PAIR.findall(_SPLIT.sub(b"", body))
    if body.count(b": ") - sum(map(body.count, _NO_NUMBERS)) > len(pairs):
        raise BrokenLine("a value is not a number")
    # Padding within a word is of a copied terminal.
    return {
        _PADDING.sub("", key.decode("utf-8", "replace")): float(value)
        for key, value in pairs + _BRACKETED.findall(body)
    }


def pairs(text: bytes) -> dict[str, float]:
    """Every `key: number` of a text."""
    return {key.decode("utf-8", "replace"): float(value) for key, value in _PAIR.findall(text)}


def json_object(line: bytes) -> dict[str, Any]:
    """Raises BrokenLine."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise BrokenLine("not whole JSON") from None
    if not isinstance(content, dict):
        raise BrokenLine("not a JSON object")
    return content


def json_or_nothing(line: bytes) -> dict[str, Any]:
    """The JSON object in a line; an empty one where it is damaged."""
    try:
        return json_object(line[line.index(b"{") :])
    except ValueError:
        return {}


_QUOTED = re.compile(NUMBER.decode())


def _json_numbers(content: Mapping[str, Any]) -> dict[str, float]:
    """Numbers, also quoted ones (`"lr": "0.0025"`)."""
    try:
        return {
            key: float(value)
            for key, value in content.items()
            if type(value) in (int, float) or (isinstance(value, str) and _QUOTED.fullmatch(value))
        }
    except OverflowError:
        raise BrokenLine("a value is not a number") from None


def duration_s(text: bytes) -> float:
    """`1 day, 2:03:04.5` in seconds; also `4.5`."""
    days, _, clock = text.rpartition(b" day")
    seconds = 0.0
    for part in clock.split()[-1].split(b":"):
        seconds = seconds * 60 + float(part)
    return int(days or 0) * 86_400 + seconds


# -- What formats are made of ------------------------------------------------------------------------------

NO_CLOCK = "prints no time of day: the wall clock is unknown"


def other(hint: bytes, pattern: bytes, say: Callable[[re.Match[bytes]], tuple[OtherEvent, ...]]) -> Other:
    """A line that holds `hint`, matches the pattern, and says this."""
    return hint, re.compile(pattern), say


def evaluating(hint: bytes, pattern: bytes) -> Other:
    """A line that says that an evaluation runs."""
    return other(hint, pattern, lambda _: (Evaluating(),))


def rate(hint: bytes, pattern: bytes, what: str = "inference") -> Other:
    """A line with an inference rate. Groups have the names of fields of `Inference`; `s_per_…` may be `ms_per_…`."""

    def say(match: re.Match[bytes]) -> tuple[Inference]:
        values: dict[str, Any] = {}
        for name, text in match.groupdict().items():
            if text is not None:
                number = int(text) if name in ("images", "batches") else duration_s(text)
                values[name.removeprefix("m")] = number / 1000 if name.startswith("ms_") else number
        return (Inference(what=what, **values),)

    return other(hint, pattern, say)
