"""What the lines of a log say. `stream` produces events, `summary` consumes them one by one.

Times are milliseconds since 1970 by the log's own clock. No time zone is assumed. Logs that print no year start in
`clock.ASSUMED_YEAR`: only differences of their times mean anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fields:
    """The values of one training line, in our units. What the line does not print is None."""

    lr: float | None = None
    s_per_iter: float | None = None
    data_s: float | None = None
    images_per_s: float | None = None
    eta_s: int | None = None
    memory_mb: float | None = None
    """Allocated by the framework's allocator; nvidia-smi shows more."""
    losses: Mapping[str, float] = field(default_factory=dict)
    other: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """COCO numbers as fractions (0.275, also where the tool prints 27.5), by their usual names: AP, AP50, AP75, APs,
    APm, APl, AR@1, AR@10, AR@100, ARs, ARm, ARl. Numbers that are not COCO's have the names that the log prints."""

    task: str
    """bbox, segm, keypoints, proposal, or '' where the log does not say."""
    metrics: Mapping[str, float | None]
    """None: undefined (pycocotools prints -1.000)."""
    kind: str = "summary"
    """How it is printed: summary (pycocotools), table, copypaste, line; `summary+line` when it is printed twice."""
    iteration: int | None = None
    """Where the line states it."""
    line: int = 0
    time_ms: int | None = None


@dataclass(frozen=True)
class Evaluating:
    """A sign that an evaluation runs here: the training clock does not tick for training alone."""

    epoch_length: int | None = None
    """Iterations of an epoch, where the line may show them."""


@dataclass(frozen=True)
class Inference:
    """An inference rate as the tool prints it: only the values that the line states."""

    images: int | None = None
    batches: int | None = None
    total_s: float | None = None
    s_per_image: float | None = None
    s_per_batch: float | None = None
    batches_per_s: float | None = None
    fps: float | None = None
    what: str = "inference"
    """inference, or data loader."""
    format: str = ""
    line: int = 0
    time_ms: int | None = None


@dataclass(frozen=True)
class BestMetric:
    """`Best test box ap: 0.2752, in iter: 20000`: a value with the label that the tool gives it, right or wrong."""

    label: str
    value: float
    iteration: int | None = None
    format: str = ""
    line: int = 0


@dataclass(frozen=True)
class EpochTotal:
    """`Epoch: [3] Total time: 0:01:16 (0.5954 s / it)`."""

    epoch: int
    seconds: int
    s_per_iter: float


@dataclass(frozen=True)
class Cards:
    """A line says how many processes train together."""

    count: int
    at_least: bool = False
    """It names one process of them."""


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
