"""`bench report`, `bench compare` and `bench eval`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.console import Console

from bench.cli.cells import runs_of
from bench.cli.options import RESULTS, AsJson, Results, examples, print_json, reading_cache, say
from bench.errors import BenchError, did_you_mean
from bench.judge import accuracy
from bench.judge.results import IouType, what_is_there
from bench.recipe.codebases import find_codebases
from bench.record.pool import PooledRun
from bench.record.run import Run, resolve_run, write_atomic
from bench.report.comparison import comparison_blocks, comparison_table, resolve_side
from bench.report.document import Column, Table
from bench.report.export import FORMATS, export
from bench.report.notebook import LoadedRun
from bench.report.render.terminal import show
from bench.report.text import cell, to_json
from bench.report.write import generate

app = typer.Typer()


class Figures(StrEnum):
    """Which figures a report has."""

    MAIN = "main"
    ALL = "all"


@app.command(epilog=examples("bench report", "bench report RUN RUN2 RUN3", "bench report --published"))
def report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run to report: folder, id or latest; several sessions of one recipe; or a store of cells."
        ),
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="Report several runs side by side. Do not pool them.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to. Default: reports/RECIPE/RUN.")
    ] = None,
    published: Annotated[
        bool,
        typer.Option("--published", help="Report the published tables and the SOLOv2 log; runs follow them."),
    ] = False,
    figures: Annotated[
        Figures, typer.Option("--figures", help="all: also draw the single steps of every workload.")
    ] = Figures.MAIN,
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Write the report of a run: Markdown, figures and a static page.

    Several runs of one recipe are pooled as sessions: ratios and intervals are over all of them.
    """
    names = runs or ([] if published else ["latest"])
    named = [run for name in names for run in runs_of(name, results)]
    if published:
        from bench.reference.page import generate_published

        path = generate_published(output or Path("reports") / "reference", measured=named)
    else:
        from bench.site.build import history_section

        if len(named) > 1 and not apart:
            named = [PooledRun(named)]
        first = named[0].record()
        target = output or Path("reports") / str(first.recipe["name"]) / first.id
        path = generate(
            named,
            target,
            codebases=find_codebases(),
            every_figure=figures == Figures.ALL,
            history=history_section(named[0], results, reading_cache()) if len(named) == 1 else "",
        )
    print_json({"report": str(path)}) if as_json else say(path)


@app.command(epilog=examples("bench compare latest:torchvision,train latest:native,train,ema=off"))
def compare(
    a: Annotated[str, typer.Argument(help="Baseline: RUN or RUN:ARM, of ARM as many words as tell it.")],
    b: Annotated[str, typer.Argument(help="Compared with it: RUN or RUN:ARM.")],
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Print the ratio of two runs or of two arms."""
    comparison = comparison_table(resolve_side(a, results), resolve_side(b, results))
    print_json(to_json(comparison)) if as_json else show(comparison_blocks(comparison), Console())


@app.command(
    "export", epilog=examples("bench export latest --format csv", "bench export latest --format latex")
)
def export_run(
    run: Annotated[str, typer.Argument(help="Run: folder, id or latest.")] = "latest",
    format_: Annotated[str, typer.Option("--format", "-f", help=f"One of {', '.join(FORMATS)}.")] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File. Default: standard output.")
    ] = None,
    results: Results = RESULTS,
) -> None:
    """Export the ratios of a run for other tools."""
    found = export(LoadedRun(Run(resolve_run(run, results))), format_)
    if output:
        write_atomic(output, found)
    elif isinstance(found, str):
        sys.stdout.write(found)
    elif sys.stdout.isatty():
        raise BenchError(f"{format_} is not for a terminal", hint="name a file: --output FILE")
    else:
        sys.stdout.buffer.write(found)


@app.command("eval", epilog=examples("bench eval instances.json results.json --iou-type segm"))
def evaluate(
    ground_truth: Annotated[Path, typer.Argument(help="Ground truth: COCO instances JSON.")],
    detections: Annotated[Path, typer.Argument(help="Detections: COCO results JSON.")],
    iou_type: Annotated[
        str, typer.Option(help="bbox, segm, keypoints, or both: what both files have.")
    ] = "both",
    backend: Annotated[str, typer.Option(help="hotcoco (fast) or pycocotools (the reference).")] = "hotcoco",
    as_json: AsJson = False,
) -> None:
    """Compute COCO AP and AR of detections, per class, and what the errors cost."""
    known = ["bbox", "segm", "keypoints", "both"]
    if iou_type not in known:
        raise BenchError(f"unknown IoU type '{iou_type}'", hint=did_you_mean(iou_type, known))
    wanted: Sequence[IouType] = [cast(IouType, iou_type)]
    if iou_type == "both":
        wanted, missing = what_is_there(ground_truth, detections)
        if not wanted:
            raise BenchError("nothing to evaluate: " + "; ".join(missing.values()), where=str(detections))
        for kind in (kind for kind in ("bbox", "segm") if kind in missing):
            typer.echo(f"not evaluated: {kind}: {missing[kind]}", err=True)
    found = [accuracy.evaluate(ground_truth, detections, one, backend=backend, errors=True) for one in wanted]
    print_json([one.as_json() for one in found]) if as_json else _print_evaluations(found)


#: More classes than this are not printed one by one.
_MOST_CLASSES = 100


def _print_evaluations(found: Sequence[accuracy.Evaluation]) -> None:
    """The numbers, one column per IoU type, the images they are of, AP per class, and what errors cost."""
    console = Console(highlight=False)
    names = dict.fromkeys(name for one in found for name in one.metrics)
    _print_table(console, "", found, [(name, [one.metrics.get(name) for one in found]) for name in names])
    one = found[0]
    console.print(
        f"{len(one.image_ids)} images, {one.images_without_objects} of them without objects; {one.objects} objects,"
        f" {one.crowds} crowds, {one.detections} detections; evaluated by {one.backend}",
        markup=False,
    )
    classes = [
        (row.name, [each.classes[place].metrics["AP"] for each in found])
        for place, row in enumerate(one.classes)
    ]
    if len(classes) <= _MOST_CLASSES:
        _print_table(console, "AP of a class", found, classes)
    else:
        console.print(f"AP of {len(classes)} classes: see --json")
    costs = [{} if each.errors is None else each.errors.cost for each in found]
    kinds = [(text, [cost.get(name) for cost in costs]) for name, text in accuracy.ERRORS.items()]
    if any(costs):
        _print_table(console, "AP50 lost by errors", found, kinds)


def _print_table(
    console: Console,
    title: str,
    found: Sequence[accuracy.Evaluation],
    rows: Sequence[tuple[str, Sequence[float | None]]],
) -> None:
    columns = (Column(title), *(Column(one.iou_type, True) for one in found))
    cells = (
        map(cell, (name, *("–" if one is None else f"{one:.3f}" for one in ones))) for name, ones in rows
    )
    show([Table(columns, tuple(map(tuple, cells)))], console)
