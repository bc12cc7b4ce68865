"""`bench history`: one number per stored run of every arm and machine, and where it changed for good."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure as Canvas

from bench.errors import BenchError
from bench.gate import metrics
from bench.gate.changes import MIN_RUNS, ChangePoint, change_points
from bench.gate.values import memory_bytes
from bench.recipe.plan import work_key
from bench.record.machine import fingerprint
from bench.record.models import ArmRecord
from bench.record.run import Run, find_runs, write_atomic
from bench.record.samples import block_times
from bench.report.document import Block, Bullets, Cell, Column, Figure, Heading, Table, Text
from bench.report.figures import BAD, MUTED, PALETTE, WIDTH_IN, save, style
from bench.report.render import markdown
from bench.report.text import cell

UNITS = {"s/iter": "s/iter", "FPS": "images/s", "max memory": "MiB"}
GOOD = PALETTE[2]


@dataclass(frozen=True)
class Point:
    """One run: its value in `UNITS`, and the revision of the codebase where it is known."""

    run: str
    started_utc: str
    value: float
    revision: str


@dataclass(frozen=True)
class Series:
    """The runs of one arm of a recipe that did the same work on machines of one kind, oldest first."""

    recipe: str
    arm: str
    metric: str
    machine: str
    work: str
    points: tuple[Point, ...]
    changes: tuple[ChangePoint, ...]

    @property
    def title(self) -> str:
        return f"{self.recipe}, {self.arm}: {self.metric} on machine {self.machine}"

    @property
    def name(self) -> str:
        """File-safe, and different for every series."""
        text = f"{self.recipe}-{self.arm}-{self.metric}-{self.machine}-{self.work}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "suspects": [suspect_text(self, change) for change in self.changes]}


def collect(results: Path) -> tuple[list[Series], list[str]]:
    """All series of the stored runs, and the runs that cannot be read.

    Runs against themselves and checks of two revisions are no part of a history; failed arms have no value.
    """
    found: dict[tuple[str, str, str, str, str], list[Point]] = {}
    unreadable = []
    for folder in find_runs(results):
        try:
            for key, point in _points(Run(folder)):
                found.setdefault(key, []).append(point)
        except (BenchError, OSError, KeyError, ValueError) as error:
            unreadable.append(f"{folder.name} is left out: {error}")
    series = []
    for (recipe, arm, metric, machine, work), points in found.items():
        changes = change_points([point.value for point in points], metrics.METRICS[metric].better)
        series.append(Series(recipe, arm, metric, machine, work, tuple(points), tuple(changes)))
    return series, unreadable


def _points(run: Run) -> Iterator[tuple[tuple[str, str, str, str, str], Point]]:
    record = run.record()
    if record.aa or record.check is not None:
        return
    recipe, machine = str(record.recipe.get("name", "")), fingerprint(record.machine)
    for arm in run.arms():
        if arm.status != "ok":
            continue
        key = work_key(arm.codebase, arm.workload, arm.options)
        work = hashlib.sha256(key.encode()).hexdigest()[:6]
        for metric, value in _values(run, arm):
            point = Point(record.id, record.started_utc, value, _revision(arm))
            yield (recipe, arm.id, metric, machine, work), point


def _values(run: Run, arm: ArmRecord) -> Iterator[tuple[str, float]]:
    seconds = float(np.exp(np.log(block_times(run.samples(arm.id))["s_per_step"]).mean()))
    if arm.workload.task in ("infer", "eval"):
        yield "FPS", arm.workload.batch_size * arm.workload.ranks / seconds
    else:
        yield "s/iter", seconds
    if arm.memory:
        yield "max memory", max(memory_bytes(arm, arm.memory_counted()).values()) / 2**20


def _revision(arm: ArmRecord) -> str:
    return str(arm.environment.git.revision or arm.description.get("codebase_version") or "")


# -- what changed --------------------------------------------------------------------------------------------


def suspect_text(series: Series, change: ChangePoint) -> str:
    """The runs and revisions between which the change happened."""
    first, last = change.suspects
    good, bad = series.points[max(first - 1, 0)], series.points[last]
    text = f"after run {good.run}, at the latest in run {bad.run}"
    if good.revision and bad.revision and good.revision != bad.revision:
        return f"{text}; revisions {good.revision[:12]}..{bad.revision[:12]}"
    return f"{text}; the revision of the codebase is the same, so look at the machine and the other packages"


def change_text(series: Series, change: ChangePoint) -> str:
    unit = UNITS[series.metric]
    return (
        f"{change.direction} of {100 * change.change:+.1f} %: {change.before:.4g} → {change.after:.4g} {unit} "
        f"(p = {change.p_value:.2g}) at run {series.points[change.index].run}"
    )


COLUMNS = (
    Column("recipe"), Column("arm"), Column("metric"), Column("machine"), Column("runs", True),
    Column("latest", True), Column("changes"),
)  # fmt: skip


def blocks(found: Sequence[Series], notes: Sequence[str], *, bisect: bool, figures: bool) -> Iterator[Block]:
    """A line per series, and what is known of each change."""
    yield Heading(2, "History")
    if not found:
        yield Text("No stored run has a value.")
        return
    yield Table(COLUMNS, tuple(map(_row, found)))
    for series in found:
        if figures:
            yield Heading(3, series.title)
            yield Figure(
                series.name, f"{series.title}: {len(series.points)} runs, {len(series.changes)} changes"
            )
        if series.changes:
            heading = () if figures else (series.title,)
            texts = [_change_line(series, change, bisect=bisect) for change in series.changes]
            yield Bullets(tuple(f"{': '.join((*heading, text))}" for text in texts))
    if notes:
        yield Bullets(tuple(notes))


def _change_line(series: Series, change: ChangePoint, *, bisect: bool) -> str:
    text = change_text(series, change)
    return f"{text}; {suspect_text(series, change)}" if bisect else text


def _row(series: Series) -> tuple[Cell, ...]:
    runs = len(series.points)
    changes = ", ".join(f"{one.direction} {100 * one.change:+.1f} %" for one in series.changes)
    few = f"too few runs to say (needs {2 * MIN_RUNS})" if runs < 2 * MIN_RUNS else "none"
    return (
        cell(series.recipe), cell(series.arm), cell(series.metric), cell(series.machine), cell(str(runs)),
        cell(f"{series.points[-1].value:.4g} {UNITS[series.metric]}"), cell(changes or few),
    )  # fmt: skip


# -- figures -------------------------------------------------------------------------------------------------


def draw(series: Series) -> Canvas:
    """Value of each run, the level between changes, and the runs that may hold the change."""
    values = [point.value for point in series.points]
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, 2.8))
    ax.plot(values, "o", color=PALETTE[0], markersize=4)
    edges = [0, *(change.index for change in series.changes), len(values)]
    for start, end in itertools.pairwise(edges):
        ax.plot([start - 0.4, end - 0.6], [np.median(values[start:end])] * 2, color=MUTED, linewidth=1.2)
    for change in series.changes:
        colour = BAD if change.direction == "regression" else GOOD
        ax.axvline(change.index - 0.5, color=colour, linewidth=1)
        ax.axvspan(change.suspects[0] - 0.5, change.suspects[1] + 0.5, color=colour, alpha=0.12, linewidth=0)
        label = f"{100 * change.change:+.1f} %"
        ax.annotate(label, (change.index - 0.5, 1), xycoords=("data", "axes fraction"), color=colour, va="top",
                    xytext=(4, 0), textcoords="offset points")  # fmt: skip
    ax.set_title(series.title)
    ax.set_ylabel(UNITS[series.metric])
    step = max(1, len(values) // 8)
    ticks = range(0, len(values), step)
    ax.set_xticks(list(ticks), [series.points[index].started_utc[:10] for index in ticks])
    return canvas


def write(found: Sequence[Series], notes: Sequence[str], output: Path) -> Path:
    """`history.md`, `history.json` and a figure per series; the path of the first."""
    with style():
        for series in found:
            save(draw(series), output / "figures", series.name)
    path = output / "history.md"
    write_atomic(output / "history.json", json.dumps([one.as_json() for one in found], indent=1) + "\n")
    write_atomic(path, markdown.render(blocks(found, notes, bisect=True, figures=True)))
    return path
