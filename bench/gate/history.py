"""`bench history`: one number per stored run of every arm and machine, and where it changed for good."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.gate import metrics
from bench.gate.changes import MIN_RUNS, ChangePoint, change_points
from bench.gate.overview import Overview, overviews
from bench.judge.numbers import significant
from bench.record.run import find_runs
from bench.report.document import Block, Bullets, Column, Figure, Heading, Text
from bench.report.text import table_of

UNITS = {"s/iter": "s/iter", "FPS": "images/s", "max memory": "MiB"}
FALSE_CHANGES = 0.05
"""Share of the reported series in which nothing changed (Benjamini and Hochberg)."""

Key = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class RunValue:
    """One run: its value in `UNITS`, and the revision of the codebase where it is known.

    ``reference``: the same of the arm's baseline in that run, with its name and version; None where there is none.
    """

    run: str
    started_utc: str
    value: float
    revision: str
    reference: tuple[str, float] | None = None


@dataclass(frozen=True)
class Series:
    """The runs of one arm of a recipe that did the same work on machines of one kind, oldest first.

    ``relative_to``: the arm whose time was taken out before changes were looked for; "" for none.
    """

    recipe: str
    arm: str
    metric: str
    machine: str
    work: str
    points: tuple[RunValue, ...]
    changes: tuple[ChangePoint, ...]
    relative_to: str = ""

    @property
    def title(self) -> str:
        return f"{self.recipe}, {self.arm}: {self.quantity} on machine {self.machine}"

    @property
    def quantity(self) -> str:
        return f"{self.metric} ÷ that of {self.relative_to}" if self.relative_to else self.metric

    @property
    def unit(self) -> str:
        return f"× {self.relative_to}" if self.relative_to else UNITS[self.metric]

    @property
    def values(self) -> list[float]:
        """What changes are looked for in: the values, or their ratios to the reference arm."""
        if not self.relative_to:
            return [point.value for point in self.points]
        return [point.value / point.reference[1] for point in self.points if point.reference]

    @property
    def name(self) -> str:
        """File-safe, and different for every series."""
        text = f"{self.recipe}-{self.arm}-{self.metric}-{self.machine}-{self.work}"
        return re.sub(r"[^A-Za-z0-9._-]+", "-", text)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "suspects": [suspect_text(self, change) for change in self.changes]}


def collect(results: Path, cache: Path | None = None) -> tuple[list[Series], list[str]]:
    """All series of the stored runs, and the runs that cannot be read.

    Args:
        results: Folder of the runs.
        cache: Where what was read of each run is kept (`bench.gate.overview`).
    """
    return series_of(list(overviews(find_runs(results), cache)))


def series_of(runs: Sequence[Overview]) -> tuple[list[Series], list[str]]:
    """All series of these runs, oldest first, and the runs that could not be read.

    Runs against themselves and checks of two revisions are no part of a history; failed arms have no value. Times are
    divided by those of the recipe's baseline, where all runs have one of the same version. Of the series that are said
    to have changed, at most `FALSE_CHANGES` did not.
    """
    found: dict[Key, list[RunValue]] = {}
    for run in runs:
        for arm, metric, work, value, revision, *reference in () if run.error else run.points:
            point = RunValue(
                run.id, run.started_utc, value, revision, tuple(reference) if reference else None
            )
            found.setdefault((run.recipe, arm, metric, run.kind, work), []).append(point)
    series = [_searched(key, points) for key, points in found.items()]
    p_values = [min((change.p_value for change in one.changes), default=1.0) for one in series]
    if min(p_values, default=1.0) < 1:
        from scipy.stats import false_discovery_control  # half a second, for series that may have changed

        p_values = false_discovery_control(p_values).tolist()
    return [
        one if p_value <= FALSE_CHANGES else replace(one, changes=())
        for one, p_value in zip(series, p_values, strict=True)
    ], [f"{run.folder} is left out: {run.error}" for run in runs if run.error]


def _searched(key: Key, points: list[RunValue]) -> Series:
    recipe, arm, metric, machine, work = key
    references = {point.reference[0] if point.reference else "" for point in points}
    relative_to = references.pop() if len(references) == 1 else ""
    series = Series(recipe, arm, metric, machine, work, tuple(points), (), relative_to)
    return replace(series, changes=tuple(change_points(series.values, metrics.METRICS[metric].better)))


# -- what changed --------------------------------------------------------------------------------------------


def suspect_text(series: Series, change: ChangePoint) -> str:
    """The runs and revisions between which the change happened."""
    first, last = change.suspects
    good, bad = series.points[max(first - 1, 0)], series.points[last]
    text = f"after run {good.run}, at the latest in run {bad.run}"
    if good.revision and bad.revision and good.revision != bad.revision:
        return f"{text}; revisions {good.revision[:12]}..{bad.revision[:12]}"
    return f"{text}; the revision of the codebase is the same, so look at the machine and the other packages"


def levels_text(series: Series, change: ChangePoint) -> str:
    """`0.214 → 0.236 s`."""
    return f"{significant(change.before, 4)} → {significant(change.after, 4)} {series.unit}"


def change_text(series: Series, change: ChangePoint) -> str:
    return (
        f"{change.direction} of {100 * change.change:+.1f} %: {levels_text(series, change)} "
        f"(p = {change.p_value:.2g}) at run {series.points[change.index].run}"
    )


def blocks(
    found: Sequence[Series], notes: Sequence[str], *, bisect: bool = False, figures: bool = False
) -> Iterator[Block]:
    """What changed; with ``figures`` a line and a figure for every series, changed or not."""
    yield Heading(2, "History")
    shown = [series for series in found if series.changes or figures]
    changed = sum(bool(series.changes) for series in found)
    few = sum(len(series.points) < 2 * MIN_RUNS for series in found)
    yield Text(
        f"{changed} of {len(found)} series changed for good"
        + (f"; {few} have fewer than the {2 * MIN_RUNS} runs that an answer needs." if few else ".")
    )
    if shown:
        yield table_of(shown, COLUMNS)
    for series in shown:
        if figures:
            yield Heading(3, series.title)
            yield Figure(
                series.name, f"{series.title}: {len(series.points)} runs, {len(series.changes)} changes"
            )
        if series.changes:
            heading = "" if figures else f"{series.title}: "
            yield Bullets(
                tuple(
                    f"{heading}{change_text(series, one)}{f'; {suspect_text(series, one)}' if bisect else ''}"
                    for one in series.changes
                )
            )
    if notes:
        yield Bullets(tuple(notes))


def _changes_text(series: Series) -> str:
    """`worse +8.4 %` of the last change, with the number of those before it."""
    if not series.changes:
        return f"needs {2 * MIN_RUNS} runs" if len(series.points) < 2 * MIN_RUNS else "none"
    last, before = series.changes[-1], len(series.changes) - 1
    text = f"{'worse' if last.direction == 'regression' else 'better'} {100 * last.change:+.1f} %"
    return f"{text}, {before} before" if before else text


COLUMNS: dict[Column, Callable[[Series], Any]] = {
    Column("recipe"): lambda one: one.recipe,
    Column("arm"): lambda one: one.arm,
    Column("metric"): lambda one: (
        f"{one.metric} ÷ {one.relative_to}" if one.relative_to else f"{one.metric} ({one.unit})"
    ),
    Column("machine", priority=1): lambda one: one.machine,
    Column("runs", True, priority=3): lambda one: len(one.points),
    Column("latest", True, priority=2): lambda one: significant(one.values[-1], 4),
    Column("change", True): _changes_text,
}
