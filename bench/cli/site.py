"""`bench site`: a static site of many runs."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import NONE, Adapters, AsJson, examples, print_json, reading_cache, say
from bench.recipe.codebases import find_codebases
from bench.site.build import build

app = typer.Typer(
    name="site",
    no_args_is_help=True,
    help="Make a static site of many runs: latest reports, histories, changes.",
)


@app.callback()
def site() -> None:
    """Make a static site of many runs: latest reports, histories, changes."""


@app.command("build", epilog=examples("bench site build results -o public"))
def site_build(
    results: Annotated[list[Path], typer.Argument(help="Folders of runs.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the site.")],
    adapters: Adapters = NONE,
    as_json: AsJson = False,
) -> None:
    """Write an index of all runs, the latest report of each recipe, and the history of each recipe and machine."""
    built = build(results, output, reading_cache(), find_codebases(adapters))
    if as_json:
        print_json(asdict(built))
        return
    for note in built.notes:
        say(note, error=True)
    say(built.index)
