"""`bench site build`: run folders in, a folder of pages out that any static host can serve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bench.errors import BenchError
from bench.gate.history import Series, series_of
from bench.gate.overview import Overview, overviews
from bench.recipe.codebases import Codebase
from bench.record.run import Run, find_runs, write_atomic
from bench.report.answer import headline
from bench.report.app.page import render_page
from bench.report.build import run_report
from bench.report.document import Block
from bench.report.render.page import framed, html_of, templates
from bench.report.text import counted
from bench.report.values import Report
from bench.site import pages


@dataclass(frozen=True)
class Built:
    """What was written. ``notes``: runs that are left out, and reports that could not be made."""

    index: Path
    runs: int
    reports: int
    histories: int
    changes: int
    notes: tuple[str, ...]


def build(
    results: Sequence[Path], output: Path, cache: Path | None, codebases: Mapping[str, Codebase] | None = None
) -> Built:
    """Write the site.

    Args:
        results: Folders of runs.
        output: Folder of the site. Reports in it that an earlier build wrote stay, so that links to them do.
        cache: Where overviews of runs are kept.
        codebases: For the titles in reports.

    Raises:
        BenchError: there is no run at all.
        BenchError: `output` cannot be written.
    """
    folders = {folder.name: folder for root in results for folder in find_runs(root)}
    if not folders:
        raise BenchError("no runs in " + ", ".join(map(str, results)), hint="bench run quickstart makes one")
    names = sorted(folders)
    runs = list(overviews([folders[name] for name in names], cache))
    series, notes = series_of(runs)
    found = pages.places(runs)
    by_place: dict[pages.Place, list[Series]] = {}
    for one in series:
        by_place.setdefault((one.recipe, one.machine), []).append(one)
    reports, answers = {}, {}
    for last in (members[-1] for members in found.values()):
        try:
            report = Report((run_report(Run(folders[last.folder]), codebases=codebases),))
            write_atomic(output / pages.report_page(last), render_page(report))
            reports[last.id] = pages.report_page(last)
            answers[last.id] = headline(report.runs[0])[0]
        except BenchError as error:
            notes.append(f"no report of {last.id}: {error}")
    for place, members in found.items():
        context = pages.history_context(place, by_place.get(place, []), members)
        _write(output / pages.history_page(place), "history.html.j2", up="../", **context)
    tables = [*pages.latest(found, by_place, reports, answers), *pages.changes(by_place)]
    _write_index(output, runs, [*tables, *pages.run_table(runs, reports)], series, notes)
    return Built(
        output / "index.html",
        len(runs),
        len(reports),
        len(found),
        sum(len(one.changes) for one in series),
        tuple(notes),
    )


def history_section(run: Run, results: Path, cache: Path | None) -> Markup:
    """The section of a report on the stored runs of its recipe on machines of its kind; empty for a single one.

    Args:
        run: The run that is reported.
        results: Folder of the runs.
        cache: Where overviews of runs are kept.
    """
    record = run.record()
    recipe = str(record.recipe.get("name", ""))
    folders = [folder for folder in find_runs(results) if folder.parent.name == recipe]
    runs = list(overviews(folders, cache))
    place = next(((one.recipe, one.kind) for one in runs if one.id == record.id), None)
    members = pages.places(runs).get(place, []) if place else []
    if place is None or len(members) < 2 or all(one.id != record.id for one in members):
        return Markup("")
    context = pages.history_context(place, series_of(members)[0], members)
    return Markup(_templates().get_template("in_report.html.j2").render(**context))


def _write_index(
    output: Path,
    runs: Sequence[Overview],
    tables: Sequence[Block],
    series: Sequence[Series],
    notes: Sequence[str],
) -> None:
    _write(
        output / "index.html",
        "index.html.j2",
        title="Benchmark results",
        tables=html_of(tables),
        notes=notes[: pages.MOST_ROWS],
        counts=f"{counted(len(runs), 'run')} of {counted(len({run.recipe for run in runs if run.recipe}), 'recipe')}",
    )
    for name, values in (
        (
            "runs.json",
            [{key: value for key, value in asdict(run).items() if key != "points"} for run in runs],
        ),
        ("history.json", [one.as_json() for one in series]),
    ):
        write_atomic(output / name, json.dumps(values, ensure_ascii=False) + "\n")
    write_atomic(output / ".nojekyll", "")  # GitHub Pages serves the files as they are


def _write(path: Path, template: str, **context: Any) -> None:
    write_atomic(path, framed(_templates().get_template(template), listing=True, **context))


@cache
def _templates() -> jinja2.Environment:
    ours = jinja2.PackageLoader("bench.site", ".")
    return templates().overlay(
        loader=jinja2.ChoiceLoader([ours, jinja2.PackageLoader("bench.report", "render")])
    )
