"""What a training log says, one event at a time: `stream` produces these, `summary` consumes them, nothing is kept.

Times are milliseconds since 1970 as the log's own clock shows them (no time zone is known, none is assumed). Logs that
print no year start in `clock.ASSUMED_YEAR`, so only differences of their times mean anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from bench.importers.formats import Format


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


@dataclass(frozen=True, eq=False)
class TrainRun:
    """Consecutive training lines of one format, in columns: what makes a log of 1 GB readable in seconds."""

    format: Format
    times_ms: npt.NDArray[np.int64] | None
    epochs: tuple[bytes, ...]
    """As printed; b"" where none is."""
    iterations: npt.NDArray[np.int64]
    """As `TrainLine.iteration`."""
    lines: list[bytes]

    def without_first(self) -> TrainRun:
        times_ms = None if self.times_ms is None else self.times_ms[1:]
        return TrainRun(self.format, times_ms, self.epochs[1:], self.iterations[1:], self.lines[1:])

    def __iter__(self) -> Iterator[TrainLine]:
        times = [None] * len(self.lines) if self.times_ms is None else self.times_ms.tolist()
        for time_ms, epoch, iteration, line in zip(
            times, self.epochs, self.iterations.tolist(), self.lines, strict=True
        ):
            yield TrainLine(self.format, time_ms, int(epoch) if epoch else None, iteration, line, None)


@dataclass(frozen=True)
class Fields:
    """The values of one training line, in our units. What the line does not print is None."""

    lr: float | None = None
    s_per_iter: float | None = None
    data_s: float | None = None
    images_per_s: float | None = None
    eta_s: int | None = None
    memory_mb: float | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    other: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """COCO numbers as fractions (0.275, also where the tool prints 27.5), by their usual names: AP, AP50, AP75, APs,
    APm, APl, AR@1, AR@10, AR@100, ARs, ARm, ARl."""

    task: str
    """bbox, segm, keypoints, proposal, or '' where the log does not say."""
    metrics: Mapping[str, float]
    line: int = 0
    time_ms: int | None = None


@dataclass(frozen=True)
class Evaluating:
    """A sign that an evaluation runs here: the training clock does not tick for training alone."""

    time_ms: int | None = None


@dataclass(frozen=True)
class Inference:
    """An inference rate as the tool prints it: only the values that the line states."""

    format: str
    images: int | None = None
    batches: int | None = None
    total_s: float | None = None
    s_per_image: float | None = None
    s_per_batch: float | None = None
    batches_per_s: float | None = None
    fps: float | None = None
    line: int = 0
    time_ms: int | None = None


@dataclass(frozen=True)
class BestMetric:
    """`Best test box ap: 0.2752, in iter: 20000`: a value with the label that the tool gives it, right or wrong."""

    format: str
    label: str
    value: float
    iteration: int | None = None
    line: int = 0


@dataclass(frozen=True)
class Heading:
    """A line that a person put between logs: it starts a new section. `text` is '' for a gap of blank lines."""

    text: str


@dataclass(frozen=True)
class Setting:
    """`use_ema = True` between logs."""

    key: str
    value: str


@dataclass(frozen=True)
class Claim:
    """A rate that a person computed and wrote into the log: `980step / 1644s = 0.5961 step/s`."""

    steps: int
    seconds: int
    steps_per_s: float


@dataclass(frozen=True)
class Interruption:
    """A run died here: the beginning of a Python traceback, or of what a keyboard interrupt leaves."""

    line: int
    text: str


@dataclass(frozen=True)
class Broken:
    """A line that begins as a line of a known format and does not end as one."""

    line: int
    reason: str
    text: str


Event = (
    TrainLine
    | TrainRun
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
