"""What the pages of a site say, from overviews of runs and their series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.gate.changes import MIN_RUNS, ChangePoint
from bench.gate.history import Series, levels_text, suspect_text
from bench.gate.overview import Overview
from bench.judge.numbers import significant
from bench.report.text import counted
from bench.site.chart import HEIGHT, WIDTHS, shapes

#: Rows of a table of runs or changes; runs.json and history.json have all.
MOST_ROWS = 200


@dataclass(frozen=True)
class Link:
    """A cell of a table that leads somewhere; without ``to`` it is text."""

    text: str
    to: str = ""


@dataclass(frozen=True)
class Listing:
    """A table. ``cells``: text, or a link."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Link, ...], ...]
    note: str = ""


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
) -> Listing:
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
                Link(last.recipe),
                Link(f"{last.machine}, kind {place[1][:6]}".removeprefix(", ")),
                Link(last.id, reports.get(last.id, "")),
                Link(last.started_utc[:10]),
                Link(f"{answers.get(last.id, '')} {counts}{failed}, {last.error or last.status}.".strip()),
                Link(counted(len(runs), "run"), history_page(place)),
                Link(changed),
            )
        )
    columns = ("recipe", "machine", "latest run", "date", "result", "history", "changed for good")
    return Listing("Latest run of each recipe", columns, tuple(rows))


def changes(series: Mapping[Place, Sequence[Series]]) -> Listing:
    """Every change, the latest first."""
    found = [
        (one.points[change.index], place, one, change)
        for place, members in series.items()
        for one in members
        for change in one.changes
    ]
    found.sort(key=lambda one: one[0].started_utc, reverse=True)
    rows = tuple(
        (
            Link(point.started_utc[:10]),
            Link(place[0]),
            Link(one.arm),
            Link(one.quantity, f"{history_page(place)}#{one.name}"),
            Link(effect(change)),
            Link(levels_text(one, change)),
            Link(suspect_text(one, change)),
        )
        for point, place, one, change in found[:MOST_ROWS]
    )
    columns = ("date", "recipe", "arm", "metric", "change", "level", "between")
    return Listing("Changes", columns, rows, _more(len(found), "history.json"))


def effect(change: ChangePoint) -> str:
    """`regression +8.0 %`."""
    return f"{change.direction} {100 * change.change:+.1f} %"


def run_table(runs: Sequence[Overview], reports: Mapping[str, str]) -> Listing:
    """The latest runs."""
    rows = tuple(
        (
            Link(run.id or run.folder, reports.get(run.id, "")),
            Link(run.recipe),
            Link(run.started_utc[:10]),
            Link(run.machine),
            Link(run.error or " ".join(filter(None, (run.purpose, run.status)))),
        )
        for run in reversed(runs[-MOST_ROWS:])
    )
    return Listing(
        "Runs", ("run", "recipe", "date", "machine", "status"), rows, _more(len(runs), "runs.json")
    )


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
