"""The values of a report. Every number that is shown anywhere is one of these.

`bench.report.build` makes them from records; `bench.report.text` writes them. A failed arm has no numbers, whatever it
left behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from bench.judge.audit import Audit
from bench.judge.noise import MIN_LAUNCHES
from bench.judge.ratio import Cost, Ratio, Summary
from bench.recipe.models import BACKBONES, MODELS
from bench.recipe.schema import level_text
from bench.recipe.workload import Workload
from bench.record.models import Status
from bench.record.parts import Served
from bench.report import accuracy_values


@dataclass(frozen=True)
class MemoryUse:
    """Max memory of an arm: the largest over ranks and launches (`ArmRecord.memory_counted`).

    ``kind``: `allocated` by the framework on the device (as mmdetection reports it), or `resident`, the peak
    resident set of the process on a CPU, of which ``baseline_bytes`` were there before the model was built.
    """

    kind: Literal["allocated", "resident"]
    peak_bytes: int
    baseline_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class Phase:
    """A phase of the step, or an operator: ``median_s`` per step, and its share of the whole."""

    name: str
    median_s: float
    share: float


@dataclass(frozen=True)
class WithoutOperator:
    """What the ratio of an arm to its baseline would be if neither spent time in an operator.

    ``share`` and ``baseline_share``: of the step's time, in a profiled step of each. ``ratio_share``: how much of the
    ratio's logarithm the operator makes up; None where the ratio cannot be told from 1.
    """

    operator: str
    share: float
    baseline_share: float
    ratio: float
    ratio_share: float | None


@dataclass(frozen=True)
class Trace:
    """Per-step times in the order they happened, launch after launch; the slowest rank of each step."""

    seconds: tuple[float, ...] = ()
    launch: tuple[int, ...] = ()
    round: tuple[int, ...] = ()
    """Within its launch; -1 for the warm-up."""
    batch: tuple[int, ...] = ()
    """Which batch each step had, -1 where it is not known; empty where the samples do not say."""
    disturbed: tuple[bool, ...] = ()
    """Steps in which other processes took processors; empty where there are none."""
    start_s: tuple[float, ...] = ()
    """When each step began, by the clock of its machine."""
    position: tuple[int, ...] = ()
    """Place of the arm in the order of the round."""

    @property
    def warmup(self) -> tuple[bool, ...]:
        return tuple(one < 0 for one in self.round)

    @property
    def measured_s(self) -> list[float]:
        """Seconds of the steps that count."""
        return [one for one, warm in zip(self.seconds, self.warmup, strict=True) if not warm]


@dataclass(frozen=True)
class Setting:
    """What an arm was seen to do (`bench.report.setting`). Empty texts and None: not observed."""

    weights: str = ""
    """``transplanted``, ``its own, random``, or the place of a file."""
    sha256: str = ""
    """Of these weights."""
    types: str = ""
    """Types of numbers in convolutions and matrix products, the one with most operations first."""
    threads: int | None = None
    """Of the framework, after the audited steps."""
    evaluated: int | None = None
    """Images whose detections were written."""


@dataclass(frozen=True)
class Row:
    """One arm of a table."""

    arm: str
    label: str
    codebase: str
    title: str
    version: str
    kernels: str
    levels: Mapping[str, Any]
    workload: Workload
    options: Mapping[str, Any]
    status: Status
    reason: str = ""
    """Of a failed arm, and of one whose samples hold no usable time."""
    log: str = ""
    log_tail: tuple[str, ...] = ()
    sessions: int = 1
    """Runs that are pooled."""
    launches: int = 0
    """Over all sessions."""
    rounds: int = 0
    """Rounds measured, summed over launches."""
    steps: int = 0
    step_s: Summary | None = None
    """Seconds per step (s/iter) over all measured steps, and images/s (FPS) at the median."""
    images_per_step: int = 0
    parameters: int | None = None
    """Of the model, as the codebase counts them."""
    forward_flops: float | None = None
    """Of the forward pass of one image, as the audit counts them."""
    flops_per_step: float | None = None
    """Of convolutions and matrix products, as the audit counts them; in training of forward and backward pass."""
    peak_share: float | None = None
    """``flops_per_step`` over the median s/iter, as a share of the most FLOP/s that any arm of the run measured."""
    memory: MemoryUse | None = None
    phases: tuple[Phase, ...] = ()
    operators: tuple[Phase, ...] = ()
    """Seconds in a profiled step, and shares of it; ``rest`` is what no operator took."""
    ap: Mapping[str, float | None] = field(default_factory=dict)
    """Of the last evaluation, 0..1, by IoU type (bbox, segm); empty where nothing was evaluated."""
    served: tuple[Served, ...] = ()
    """Of a serve arm: what MLPerf's load generator found."""
    energy: Mapping[str, float] = field(default_factory=dict)
    """Device → joules per image, the median of blocks."""
    no_energy: Mapping[str, str] = field(default_factory=dict)
    """Device → why its energy is not known."""
    conditions: Mapping[str, tuple[float, float, float]] = field(default_factory=dict)
    """What the machine did in measured blocks, by name with unit: median, least, most."""
    is_baseline: bool = False
    ratio: Ratio | None = None
    """Throughput of this arm over the baseline's: above 1 is faster."""
    without: tuple[WithoutOperator, ...] = ()
    audit: Audit | None = None
    """Whether the arm did the baseline's work: equal, unequal, not shown, or that of another model."""
    marks: tuple[str, ...] = ()
    """Keys of `MARKS`: what a reader has to know wherever the ratio stands."""
    warnings: tuple[str, ...] = ()
    setting: Setting = Setting()
    trace: Trace = field(default=Trace(), metadata={"json": False})  # the Parquet files hold it

    @property
    def verdict(self) -> str:
        """`equal`, `unequal`, `not shown` or `different models`; what was not audited is not shown."""
        return self.audit.verdict if self.audit else "not shown"

    @property
    def peak_mib(self) -> float | None:
        """Max memory."""
        return self.memory.peak_bytes / 2**20 if self.memory else None

    @property
    def headline_ap(self) -> float | None:
        """AP of masks where there are any, else of boxes."""
        return self.ap.get("segm", self.ap.get("bbox"))

    @property
    def ema(self) -> bool | None:
        return self.workload.ema if self.workload.trains else None


@dataclass(frozen=True)
class Group:
    """One table: arms of one cell that do the same work but for the factors compared.

    ``levels`` are those that all its arms share, ``factors`` the names of those that tell its arms apart.
    """

    cell: str
    task: str
    model: str
    levels: Mapping[str, Any]
    factors: tuple[str, ...]
    rows: tuple[Row, ...]
    baseline: str | None
    """Arm that the others are compared with; None when the group has none."""

    @cached_property
    def base(self) -> Row | None:
        """The row of the baseline."""
        return next((row for row in self.rows if row.is_baseline), None)

    @cached_property
    def title(self) -> str:
        model = model_title(self.model, [row.options for row in self.rows])
        work = {"serve": "serving"}.get(self.task, "training" if trains(self.task) else "inference")
        return ", ".join([model, work, *self.level_words])

    @property
    def level_words(self) -> list[str]:
        """The levels that all its arms share, in words."""
        return self._words(self.levels)

    def no_ratio(self, row: Row) -> str:
        """Why a measured row has no ratio; empty where that needs no word."""
        if self.base is None or row.is_baseline or row.step_s is None or row.ratio is not None:
            return ""
        return "no common round" if self.base.step_s else "baseline failed"

    def _words(self, levels: Mapping[str, Any]) -> list[str]:
        """Levels in words; EMA says nothing of inference."""
        told = {name: level for name, level in levels.items() if name != "ema" or trains(self.task)}
        return [f"{factor_name(name)} {level_text(level)}" for name, level in told.items()]

    def contrast(self, row: Row) -> tuple[str, str]:
        """Names of a row and of its baseline, with the levels in which they differ only."""
        base = self.base
        if base is None:
            return self.row_name(row), ""
        told = [name for name in self.factors if row.levels.get(name) != base.levels.get(name)]
        names = (
            ", ".join(
                [one.label, *self._words({name: one.levels[name] for name in told if name in one.levels})]
            )
            for one in (row, base)
        )
        return next(names), next(names)

    def place(self, row: Row) -> str:
        """The row among all rows of a run."""
        return f"{self.title}: {self.row_name(row)}"

    def row_name(self, row: Row) -> str:
        """The label of a row, with the levels that tell it from its neighbours."""
        levels = {name: row.levels[name] for name in self.factors if name in row.levels}
        return ", ".join([row.label, *self._words(levels)])


@dataclass(frozen=True)
class Effect:
    """What one level of a factor does in one codebase, all else equal.

    ``ratio`` is the throughput with it over that without; ``cost`` the share of the step time that it takes, None
    where a step does not do the same number of images.
    """

    label: str
    group: str
    factor: str
    reference: Any
    level: Any
    ratio: Ratio
    cost: Cost | None
    interleaved: bool
    """False: the two arms were measured one after the other, and the machine may have drifted in between."""


@dataclass(frozen=True)
class Scaling:
    """How well a codebase uses more ranks.

    ``efficiency``: images/s per rank over images/s per rank of the fewest ranks (1: perfect).
    """

    label: str
    group: str
    reference_ranks: int
    ranks: int
    images_per_s: float
    efficiency: Ratio
    interleaved: bool
    kind: str = "weak"
    """weak: every rank has the same batch size; strong: all ranks together."""


@dataclass(frozen=True)
class Straggler:
    """Time per rank of an arm with several. ``slowest``: number of the rank with the largest median."""

    label: str
    ranks: int
    fastest_s: float
    slowest_s: float
    slowest: int
    share: float
    """Of the steps, those in which it is the slowest."""
    averaging_share: float | None = None
    """Of a step's time, what averaging the gradients over the ranks takes. None: not known."""
    averaged_bytes: int | None = None
    """Gradients that a step averages: float32, one per trainable parameter."""


@dataclass(frozen=True)
class Software:
    """What one codebase ran on."""

    codebase: str
    title: str
    url: str
    version: str
    python: str
    packages: Mapping[str, str]
    """The distributions that identify the codebase and its framework."""
    installed: Mapping[str, str]
    """All distributions of its environment."""
    git: Mapping[str, Any]
    variables: Mapping[str, str]
    own_environment: bool = False
    """`bench env create` builds it."""


@dataclass(frozen=True)
class RunReport:
    """One run: tables are never built across runs, whose arms were not interleaved."""

    id: str
    folder: str
    status: str
    aa: bool
    interleaved: bool
    name: str
    description: str
    """Of the recipe; empty where `--set` made other work of it."""
    started_utc: str
    ended_utc: str | None
    bench_version: str
    git: Mapping[str, Any]
    command: tuple[str, ...]
    recipe_path: str
    recipe: Mapping[str, Any]
    machine: Mapping[str, Any]
    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    dataset: Mapping[str, Any]
    software: tuple[Software, ...]
    groups: tuple[Group, ...]
    effects: tuple[Effect, ...]
    scaling: tuple[Scaling, ...]
    unmeasured: tuple[str, ...]
    """Planned arms that have no record."""
    warnings: tuple[str, ...]
    accuracy: tuple[accuracy_values.CellAccuracy, ...] = ()
    """Of the cells that were evaluated."""
    sessions: tuple[str, ...] = ()
    """Folders of the runs that are pooled; empty for one run."""
    stragglers: tuple[Straggler, ...] = ()
    check: Mapping[str, Any] | None = None
    """What `bench check` found in this run."""

    @cached_property
    def placed(self) -> tuple[tuple[Group, Row], ...]:
        """Every row with its group."""
        return tuple((group, row) for group in self.groups for row in group.rows)

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for _, row in self.placed)


@dataclass(frozen=True)
class Report:
    runs: tuple[RunReport, ...]
    schema_version: int = 1


#: What stands beside a ratio that is not to be read as a plain one.
MARKS = {
    "≠": "unequal work",
    "◇": "different models",
    "?": "equal work was not shown",
    "†": "kernels of another project, in the arm or in its baseline",
    "‡": "fewer than three launches, or not interleaved",
    "✕": "failed, or without a usable time",
}

#: Names of options that can put another model, or another backbone, in place of the one that a recipe names.
MODEL_OPTION = re.compile(r"conf|cfg|model|backbone|depth|arch|net\b|layers|width|channels$")


def marks_of(row: Row, base: Row | None, *, interleaved: bool) -> tuple[str, ...]:
    """The marks of a row whose group has the baseline `base`, in the order of `MARKS`."""
    measured = row.step_s is not None
    launches = row.ratio.launches if row.ratio else row.launches
    told = {
        "≠": row.ratio is not None and row.verdict == "unequal",
        "◇": row.ratio is not None and row.verdict == "different models",
        "?": row.ratio is not None and row.verdict == "not shown",
        "†": any("stand-in" in one.kernels for one in (row, base) if one),
        "‡": measured and (launches < MIN_LAUNCHES or not interleaved),
        "✕": not measured,
    }
    return tuple(mark for mark, holds in told.items() if holds)


def _option_names(options: Any) -> Iterable[str]:
    """Of options and of what is in them."""
    for name, value in options.items() if isinstance(options, Mapping) else ():
        yield str(name)
        yield from _option_names(value)


def model_title(model: str, options: Iterable[Mapping[str, Any]]) -> str:
    """A model's title; without its backbone when options may have put another one in its place."""
    if model not in MODELS:
        return model
    title = MODELS[model].title
    if not any(MODEL_OPTION.search(name) for one in options for name in _option_names(one)):
        return title
    backbone = next((name for name, _ in BACKBONES.values() if title.endswith(f" {name}")), "")
    return f"{title.removesuffix(f' {backbone}')}, changed by options"


def trains(task: str) -> bool:
    return task in ("train", "train_eval")


def factor_name(factor: str) -> str:
    """A factor as reports name it."""
    return {
        "ema": "EMA",
        "size": "image size",
        "mode": "input",
        "input.mode": "input",
        "lr": "learning rate",
    }.get(
        factor, factor.removeprefix("options.") if factor.startswith("options.") else factor.replace("_", " ")
    )
