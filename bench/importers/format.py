"""A log format as data: how its training lines start and end, what its keys mean, which other lines matter.

`formats/` holds one `Format` per tool; `Format.head` and `Format.fields` are all the code they need.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.importers.clock import Clock
from bench.importers.events import (
    BestMetric,
    Broken,
    Claim,
    Evaluating,
    Evaluation,
    Fields,
    Heading,
    Inference,
    Interruption,
    Setting,
)

OtherEvent = Evaluation | Evaluating | Inference | BestMetric
#: A line that is not training progress: a text it holds, how to know it, and what it says (`line` and `time_ms` are
#: filled in later).
Other = tuple[bytes, re.Pattern[bytes], Callable[[re.Match[bytes]], tuple[OtherEvent, ...]]]

NUMBER = rb"[-+]?(?:\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|nan|inf)"
_PAIR = re.compile(rb"'?([A-Za-z_][\w./]*)'?: '?(" + NUMBER + rb")(?:M\b)?(?![\w.:-])", re.ASCII)
_BRACKETED = re.compile(rb" \(([a-z_]+) (" + NUMBER + rb")\)")
_ETA = re.compile(rb"\beta: (?:(-?\d{1,9}) days?, )?(\d{1,9}):(\d\d):(\d\d)")


#: Iterations, epochs and lengths of more digits than this are garbage (and their product would not fit in 64 bits).
MAX_DIGITS = 9


class BrokenLine(ValueError):
    """The line is of this format and not whole."""


@dataclass(frozen=True, eq=False)
class Format:
    """How one tool writes its log."""

    name: str
    title: str
    marker: bytes
    """A text that every training line holds."""
    start: re.Pattern[bytes]
    """Matches from the start of a training line; groups: stamp, epoch, iteration, length (of the epoch or the run);
    `()` where there is none."""
    claim: re.Pattern[bytes]
    """Found in every line that claims to be training progress, whole or not."""
    keys: Mapping[str, str]
    """Printed key → one of lr, s_per_iter, data_s, images_per_s, memory_mb."""
    once: bytes
    """A text that a whole line holds once: twice means that two lines ran into one another."""
    end: re.Pattern[bytes]
    """Found at the end of every whole training line; it has to end in `$`."""
    closed: bool = True
    """Whether `end` tells a whole line from a cut one; if not, a last line without newline is not trusted."""
    first_epoch: int = 0
    per_epoch: bool = False
    """Iterations start again in every epoch, and its length is not printed."""
    is_json: bool = False
    mixed: bytes = b""
    """A text in a training line that says that it holds an evaluation, too."""
    others: tuple[Other, ...] = ()
    caveats: tuple[str, ...] = ()
    """What the printed rates leave out."""

    def head(self, line: bytes, clock: Clock) -> tuple[int | None, int | None, int] | None:
        """(time_ms, epoch, iteration) of a training line; None for another line.

        Raises BrokenLine for a training line that is cut, run together with another one or shows an impossible time.
        """
        match = self.start.match(line)
        if match is None:
            if self.claim.search(line):
                raise BrokenLine("its beginning is damaged")
            return None
        if self.end.search(line) is None:
            raise BrokenLine("its end is missing")
        if line.count(self.once) != 1:
            raise BrokenLine("two lines run together")
        stamp, epoch, iteration, length = match.groups(b"")
        if len(iteration) > MAX_DIGITS or len(epoch) > MAX_DIGITS or len(length) > MAX_DIGITS:
            raise BrokenLine("no such iteration")
        try:
            time_ms = clock.read(stamp) if stamp else None
        except ValueError as error:
            raise BrokenLine(str(error)) from None
        if not epoch:
            return time_ms, None, int(iteration)
        before = (int(epoch) - self.first_epoch) * int(length or 0)
        return time_ms, int(epoch), before + int(iteration)

    def fields(self, line: bytes) -> Fields:
        """All values of a training line. Raises BrokenLine."""
        values = _json_numbers(line) if self.is_json else _text_numbers(line, self.start)
        known: dict[str, float] = {}
        losses: dict[str, float] = {}
        other: dict[str, float] = {}
        for key, value in values.items():
            if key in self.keys:
                known[self.keys[key]] = value
            elif "loss" in key:
                losses[key] = value
            else:
                other[key] = value
        return Fields(eta_s=_eta_s(line), losses=losses, other=other, **known)


class TrainLine(NamedTuple):
    """One line of training progress. Only its head is parsed; `format.fields(raw)` reads the rest when it is wanted."""

    format: Format
    time_ms: int | None
    """None in formats that print no time."""
    epoch: int | None
    """As printed."""
    iteration: int
    """Counted over the whole run when the format prints the epoch's length; else as printed."""
    raw: bytes
    rank: int | None
    """From a launcher's prefix (`[rank1]:`), when there is one."""


Event = (
    TrainLine
    | Evaluation
    | Evaluating
    | Inference
    | BestMetric
    | Heading
    | Setting
    | Claim
    | Interruption
    | Broken
)


def _text_numbers(line: bytes, start: re.Pattern[bytes]) -> dict[str, float]:
    match = start.match(line)
    body = _ETA.sub(b"", line[match.end() :] if match else line)
    pairs = _PAIR.findall(body)
    if body.count(b": ") - body.count(b": N/A") > len(pairs):
        raise BrokenLine("a value is not a number")
    return {key.decode("ascii"): float(value) for key, value in pairs + _BRACKETED.findall(body)}


def json_object(line: bytes) -> dict[str, Any]:
    """Raises BrokenLine."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        raise BrokenLine("not whole JSON") from None
    if not isinstance(content, dict):
        raise BrokenLine("not a JSON object")
    return content


def _json_numbers(line: bytes) -> dict[str, float]:
    content = json_object(line)
    try:
        return {key: float(value) for key, value in content.items() if type(value) in (int, float)}
    except OverflowError:
        raise BrokenLine("a value is not a number") from None


def _eta_s(line: bytes) -> int | None:
    match = _ETA.search(line)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def duration_s(text: bytes) -> float:
    """`1 day, 2:03:04.5` in seconds."""
    days, _, clock = text.rpartition(b" day")
    hours, minutes, seconds = clock.split()[-1].split(b":")
    return (int(days or 0) * 24 + int(hours)) * 3600 + int(minutes) * 60 + float(seconds)
