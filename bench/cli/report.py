"""`bench report`, `bench compare` and `bench eval`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from bench.cli.options import RESULTS, AsJson, Results, examples, print_json
from bench.errors import BenchError, did_you_mean
from bench.judge import accuracy
from bench.recipe.codebases import find_codebases
from bench.record.run import Run, resolve_run
from bench.reference.page import generate_published
from bench.report.comparison import comparison_blocks, comparison_table, resolve_side
from bench.report.render.terminal import show
from bench.report.values import to_json
from bench.report.write import generate

app = typer.Typer()


class Figures(StrEnum):
    """Which figures a report has."""

    MAIN = "main"
    ALL = "all"


@app.command(epilog=examples("bench report", "bench report latest", "bench report --published"))
def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Runs to report: folder, id or latest. Default: latest.")
    ] = None,
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
    """Write the report of one or several runs: Markdown, figures and a static page."""
    named = [Run(resolve_run(name, results)) for name in runs or ([] if published else ["latest"])]
    if published:
        path = generate_published(output or Path("reports") / "reference", measured=named)
    else:
        first = named[0].record()
        target = output or Path("reports") / str(first.recipe["name"]) / first.id
        path = generate(named, target, codebases=find_codebases(), every_figure=figures == Figures.ALL)
    print_json({"report": str(path)}) if as_json else typer.echo(path)


@app.command(epilog=examples("bench compare latest:slow latest:fast"))
def compare(
    a: Annotated[str, typer.Argument(help="Baseline: RUN or RUN:ARM.")],
    b: Annotated[str, typer.Argument(help="Compared with it: RUN or RUN:ARM.")],
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Print the ratio of two runs or of two arms."""
    comparison = comparison_table(resolve_side(a, results), resolve_side(b, results))
    print_json(to_json(comparison)) if as_json else show(comparison_blocks(comparison), Console())


@app.command("eval", epilog=examples("bench eval instances.json results.json --iou-type segm"))
def evaluate(
    ground_truth: Annotated[Path, typer.Argument(help="Ground truth: COCO instances JSON.")],
    detections: Annotated[Path, typer.Argument(help="Detections: COCO results JSON.")],
    iou_type: Annotated[str, typer.Option(help="bbox, segm or both.")] = "both",
    backend: Annotated[str, typer.Option(help="hotcoco (fast) or pycocotools (the reference).")] = "hotcoco",
    as_json: AsJson = False,
) -> None:
    """Compute COCO AP and AR of detections."""
    wanted: dict[str, tuple[Literal["bbox", "segm"], ...]]
    wanted = {"bbox": ("bbox",), "segm": ("segm",), "both": ("bbox", "segm")}
    if iou_type not in wanted:
        raise BenchError(f"unknown IoU type '{iou_type}'", hint=did_you_mean(iou_type, wanted))
    found = [accuracy.evaluate(ground_truth, detections, one, backend=backend) for one in wanted[iou_type]]
    print_json([one.as_json() for one in found]) if as_json else _print_evaluations(found)


def _print_evaluations(found: Sequence[accuracy.Evaluation]) -> None:
    """The 12 numbers, one column per IoU type, and the images they are of."""
    console = Console(highlight=False)
    table = Table("", *(one.iou_type for one in found))
    for name in found[0].metrics:
        values = (one.metrics[name] for one in found)
        table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    one = found[0]
    console.print(
        f"{len(one.image_ids)} images, {one.images_without_objects} of them without objects; {one.objects} objects,"
        f" {one.crowds} crowds, {one.detections} detections; evaluated by {one.backend}",
        markup=False,
    )
