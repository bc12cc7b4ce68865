"""`bench env`: environments of the codebases."""

from __future__ import annotations

from typing import Annotated

import typer

from bench import environments
from bench.cli.listing import environments as environment_rows
from bench.cli.listing import show
from bench.cli.options import Adapters, AsJson, examples, print_json, say
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases, get_codebase

app = typer.Typer(
    name="env", no_args_is_help=True, help="Create, list, check and remove environments of codebases."
)
Groups = Annotated[
    list[str] | None,
    typer.Option("--group", help="Optional install steps, such as compiled-ops. Repeatable."),
]


@app.command("create", epilog=examples("bench env create mmdet", "bench env create --all"))
def env_create(
    codebases: Annotated[list[str] | None, typer.Argument(help="Names of codebases.")] = None,
    group: Groups = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All codebases with an environment of their own.")
    ] = False,
    adapters: Adapters = None,
) -> None:
    """Build the locked environment of a codebase. Do nothing if it exists."""
    known = find_codebases(adapters or [])
    names = list(codebases or [])
    if everything:
        names = [name for name, codebase in known.items() if codebase.environment.kind == "own"]
    if not names:
        raise BenchError("name a codebase, or --all", hint=f"known: {', '.join(known)}")
    for name in names:
        codebase = get_codebase(name, known)
        say(environments.create(codebase, group or [], progress=lambda text: say(text, error=True)))


@app.command("list", epilog=examples("bench env list"))
def env_list(as_json: AsJson = False) -> None:
    """List environments with their size and the time that building took."""
    show(environment_rows(), as_json)


@app.command("check", epilog=examples("bench env check paddledet"))
def env_check(
    codebase: Annotated[str, typer.Argument(help="Name of a codebase.")],
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Compare an environment with its lock. Exit code 1 if they differ."""
    found = environments.check(get_codebase(codebase, find_codebases(adapters or [])))
    drifts = [str(drift) for drift in found]
    print_json(drifts) if as_json else say("\n".join(drifts) or f"{codebase}: as locked")
    raise typer.Exit(1 if drifts else 0)


@app.command("remove", epilog=examples("bench env remove detectron2"))
def env_remove(
    codebase: Annotated[str, typer.Argument(help="Name of a codebase.")], adapters: Adapters = None
) -> None:
    """Remove all environments of a codebase."""
    for folder in environments.remove(get_codebase(codebase, find_codebases(adapters or []))):
        say(f"removed {folder}")
