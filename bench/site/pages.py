"""What the pages of a site say, from overviews of runs and their series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.gate.changes import MIN_RUNS, ChangePoint
from bench.gate.history import Series, levels_text, suspect_text
from bench.gate.overview import Overview
from bench.judge.numbers import significant
from bench.report.document import Block, Cell, Column, Heading, Table, Text
from bench.report.text import counted
from bench.site.chart import HEIGHT, WIDTHS, shapes

#: Rows of a table of runs or changes; runs.json and history.json have all.
MOST_ROWS = 200


Place = tuple[str, str]
"""A recipe and a kind of machine."""


def places(runs: Sequence[Overview]) -> dict[Place, list[Overview]]:
    """The plain runs of every recipe on every kind of machine, oldest first."""
    found: dict[Place, list[Overview]] = {}
    for run in runs:
        if run.recipe and not run.purpose:
            found.setdefault((run.recipe, run.kind), []).append(run)
    return dict(sorted(found.items()))


def history_page(place: Place) -> str:
    """Path of a history below the site."""
    return f"history/{place[0]}-{place[1]}.html"


def report_page(run: Overview) -> str:
    """Path of a report below the site."""
    return f"reports/{run.recipe}/{run.id}/index.html"


def latest(
    found: Mapping[Place, Sequence[Overview]],
    series: Mapping[Place, Sequence[Series]],
    reports: Mapping[str, str],
    answers: Mapping[str, str],
) -> list[Block]:
    """The latest run of each recipe on each kind of machine.

    Args:
        found: `places`.
        series: Those of each place.
        reports: Run → path of its report.
        answers: Run → the first sentence of its report.
    """
    rows = []
    for place, runs in found.items():
        last = runs[-1]
        members = series.get(place, ())
        changed = f"{sum(bool(one.changes) for one in members)} of {len(members)} series"
        if all(len(one.points) < 2 * MIN_RUNS for one in members):
            changed = f"needs {2 * MIN_RUNS} runs to say"
        counts = counted(last.arms, "arm")
        failed = f", {last.failed} failed" if last.failed else ""
        rows.append(
            (
                Cell(last.recipe),
                Cell(f"{last.machine}, kind {place[1][:6]}".removeprefix(", ")),
                Cell(last.id, link=reports.get(last.id, "")),
                Cell(last.started_utc[:10]),
                Cell(f"{answers.get(last.id, '')} {counts}{failed}, {last.error or last.status}.".strip()),
                Cell(counted(len(runs), "run"), link=history_page(place)),
                Cell(changed),
            )
        )
    columns = ("recipe", "machine", "latest run", "date", "result", "history", "changed for good")
    return _listed("Latest run of each recipe", columns, rows)


def changes(series: Mapping[Place, Sequence[Series]]) -> list[Block]:
    """Every change, the latest first."""
    found = [
        (one.points[change.index], place, one, change)
        for place, members in series.items()
        for one in members
        for change in one.changes
    ]
    found.sort(key=lambda one: one[0].started_utc, reverse=True)
    rows = [
        (
            Cell(point.started_utc[:10]),
            Cell(place[0]),
            Cell(one.arm),
            Cell(one.quantity, link=f"{history_page(place)}#{one.name}"),
            Cell(effect(change)),
            Cell(levels_text(one, change)),
            Cell(suspect_text(one, change)),
        )
        for point, place, one, change in found[:MOST_ROWS]
    ]
    columns = ("date", "recipe", "arm", "metric", "change", "level", "between")
    return _listed("Changes", columns, rows, _more(len(found), "history.json"))


def effect(change: ChangePoint) -> str:
    """`regression +8.0 %`."""
    return f"{change.direction} {100 * change.change:+.1f} %"


def run_table(runs: Sequence[Overview], reports: Mapping[str, str]) -> list[Block]:
    """The latest runs."""
    rows = [
        (
            Cell(run.id or run.folder, link=reports.get(run.id, "")),
            Cell(run.recipe),
            Cell(run.started_utc[:10]),
            Cell(run.machine),
            Cell(run.error or " ".join(filter(None, (run.purpose, run.status)))),
        )
        for run in reversed(runs[-MOST_ROWS:])
    ]
    return _listed(
        "Runs", ("run", "recipe", "date", "machine", "status"), rows, _more(len(runs), "runs.json")
    )


def _listed(
    title: str, columns: Sequence[str], rows: Sequence[tuple[Cell, ...]], note: str = ""
) -> list[Block]:
    """A table below its heading; nothing without a row."""
    table = Table(tuple(map(Column, columns)), tuple(rows))
    return [Heading(2, title), *([Text(note)] if note else []), table] if rows else []


def _more(count: int, where: str) -> str:
    return f"The latest {MOST_ROWS} of {count}; {where} has all." if count > MOST_ROWS else ""


def history_context(place: Place, members: Sequence[Series], runs: Sequence[Overview]) -> dict[str, Any]:
    """What the page of one history shows: series that changed, by their last change, then the others."""
    enough = [one for one in members if len(one.points) >= 2 * MIN_RUNS]
    changed = sorted((one for one in enough if one.changes), key=lambda one: -abs(one.changes[-1].change))
    steady = [one for one in enough if not one.changes]
    short = [one for one in members if len(one.points) < 2 * MIN_RUNS]
    return {
        "title": f"History of {place[0]}",
        "recipe": place[0],
        "machine": runs[-1].machine or "an unknown machine",
        "kind": place[1],
        "first": runs[0].started_utc[:10],
        "last": runs[-1].started_utc[:10],
        "count": len(runs),
        "changed": list(map(_drawn, changed)),
        "steady": list(map(_drawn, steady)),
        "short": [f"{one.arm}, {one.quantity}: {2 * MIN_RUNS - len(one.points)} more runs" for one in short],
    }


def _drawn(series: Series) -> dict[str, Any]:
    last = series.values[-1]
    return {
        "name": series.name,
        "title": f"{series.arm}: {series.quantity}",
        "latest": f"{significant(last, 4)} {series.unit}, {len(series.points)} runs",
        "changes": list(_sentences(series)),
        "height": HEIGHT,
        "drawings": [(width, shapes(series, width)) for width in WIDTHS],
        "alt": f"{series.title}: {len(series.points)} runs, {len(series.changes)} changes",
    }


def _sentences(series: Series) -> Iterator[str]:
    for change in series.changes:
        point = series.points[change.index]
        yield (
            f"{point.started_utc[:10]}: {effect(change)}, {levels_text(series, change)} "
            f"(p = {change.p_value:.2g}); {suspect_text(series, change)}"
        )
