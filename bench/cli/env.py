"""`bench env`: environments of the codebases."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bench import environments
from bench.cli.listing import environments as environment_rows
from bench.cli.listing import show
from bench.cli.options import Adapters, AsJson, print_json
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases, get_codebase

app = typer.Typer(
    name="env", no_args_is_help=True, help="Create, list, check and remove the environments of codebases."
)
Groups = Annotated[list[str] | None, typer.Option("--group", help="Optional install steps: compiled-ops.")]


@app.command("create")
def env_create(
    codebases: Annotated[list[str] | None, typer.Argument(help="Codebases to build for.")] = None,
    group: Groups = None,
    everything: Annotated[bool, typer.Option("--all", help="Every codebase that has one.")] = False,
    adapters: Adapters = None,
) -> None:
    """Build the locked virtual environment of a codebase; nothing to do when it is there."""
    known = find_codebases(adapters or [])
    names = list(codebases or [])
    if everything:
        names = [name for name, codebase in known.items() if codebase.environment.kind == "own"]
    if not names:
        raise BenchError("name a codebase, or --all", hint=f"known: {', '.join(known)}")
    for name in names:
        codebase = get_codebase(name, known)
        print(environments.create(codebase, group or [], progress=lambda text: print(text, file=sys.stderr)))


@app.command("list")
def env_list(as_json: AsJson = False) -> None:
    """Environments of this machine, their size and how long they took to build."""
    show(environment_rows(), as_json)


@app.command("check")
def env_check(
    codebase: Annotated[str, typer.Argument(help="A codebase.")],
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Compare an environment with its lock; exit code 1 when it drifted."""
    found = environments.check(get_codebase(codebase, find_codebases(adapters or [])))
    drifts = [str(drift) for drift in found]
    print_json(drifts) if as_json else typer.echo("\n".join(drifts) or f"{codebase}: as locked")
    raise typer.Exit(1 if drifts else 0)


@app.command("remove")
def env_remove(
    codebase: Annotated[str, typer.Argument(help="A codebase.")], adapters: Adapters = None
) -> None:
    """Remove all environments of a codebase."""
    for folder in environments.remove(get_codebase(codebase, find_codebases(adapters or []))):
        typer.echo(f"removed {folder}")
