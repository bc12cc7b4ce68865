"""`bench import` and `bench compare-logs`: training logs of other tools."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench import importers
from bench.cli.options import NONE, AsJson, examples, print_json, say
from bench.errors import BenchError

app = typer.Typer()


@app.command(
    "import", epilog=examples("bench import auto results/published/solov2_reference_log/excerpt.log.txt")
)
def import_(
    log_format: Annotated[str, typer.Argument(metavar="FORMAT", help="auto, or the name of a format.")],
    files: Annotated[list[Path], typer.Argument(help="The log, or its parts if it was rotated.")] = NONE,
    from_iter: Annotated[int | None, typer.Option(help="First iteration of the rate.")] = None,
    to_iter: Annotated[int | None, typer.Option(help="Last iteration of the rate.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a training log of another tool: rates, losses and evaluations."""
    if not files:
        raise BenchError("name a format and a log", hint=f"bench import auto {shlex.quote(log_format)}")
    result = importers.import_logs(log_format, files, from_iter=from_iter, to_iter=to_iter)
    print_json(importers.to_json(result)) if as_json else say(importers.render(result))


@app.command("compare-logs", epilog=examples("bench compare-logs ours.log theirs.log --images-per-step 16"))
def compare_logs(
    files: Annotated[list[Path], typer.Argument(help="Two logs or more. The first is the baseline.")],
    images_per_step: Annotated[
        list[float] | None,
        typer.Option(help="Images of a step over all cards. Once, or once per log."),
    ] = None,
    section: Annotated[
        list[int] | None,
        typer.Option(help="Section of a log, as numbered by bench import. Default: the longest."),
    ] = None,
    from_iter: Annotated[int | None, typer.Option(help="First iteration of the rates.")] = None,
    to_iter: Annotated[int | None, typer.Option(help="Last iteration of the rates.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put training logs side by side: rates, memory, accuracy."""
    results = [importers.import_logs("auto", [file], from_iter=from_iter, to_iter=to_iter) for file in files]
    comparison = importers.compare_logs(results, images_per_step or (), section or ())
    if as_json:
        print_json({"logs": list(map(asdict, comparison))})
    else:
        say(importers.render_comparison(comparison))
