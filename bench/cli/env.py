"""`bench env`: environments of the codebases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import environments
from bench.cli.listing import environments as environment_rows
from bench.cli.listing import show
from bench.cli.options import NONE, Adapters, AsJson, examples, print_json, say
from bench.errors import BenchError, ExitCode, did_you_mean
from bench.measure.preflight import check_interpreter
from bench.recipe.codebases import Codebase, find_codebases, get_codebase

app = typer.Typer(
    name="env", no_args_is_help=True, help="Create, list, check and remove environments of codebases."
)
Groups = Annotated[
    list[str], typer.Option("--group", help="Optional install steps, such as compiled-ops. Repeatable.")
]


@app.command(
    "create",
    epilog=examples(
        "bench env create mmdet",
        "bench env create --all",
        "bench env create mmdet --as mmdet-3.2 --pin mmdet==3.2.0",
    ),
)
def env_create(
    codebases: Annotated[list[str], typer.Argument(help="Names of codebases.")] = NONE,
    group: Groups = NONE,
    everything: Annotated[
        bool, typer.Option("--all", help="All codebases with an environment of their own.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--as", help="Name of an environment beside the locked one, for recipes.")
    ] = None,
    pin: Annotated[
        list[str],
        typer.Option(help="With --as: a package in place of the locked version: mmdet==3.2.0. Repeatable."),
    ] = NONE,
    adapters: Adapters = NONE,
) -> None:
    """Build the locked environment of a codebase. Do nothing if it exists."""
    known = find_codebases(adapters)
    own = [name for name, codebase in known.items() if codebase.environment.kind == "own"]
    names = own if everything else codebases
    if not names:
        raise BenchError("name a codebase, or --all", hint=f"known: {', '.join(known)}")
    if name and len(names) > 1:
        raise BenchError("--as names one environment, of one codebase")
    for codebase in (get_codebase(one, known) for one in names):
        folder = environments.create(codebase, group, lambda text: say(text, error=True), name=name, pins=pin)
        say(folder)
        if advice := environments.gpu_advice(codebase, folder):
            say(advice, error=True)


@app.command(
    "adopt",
    epilog=examples(
        "bench env adopt mmdet --python /opt/conda/envs/det/bin/python",
        "bench env adopt mmdet-old --python ~/old/bin/python",
    ),
)
def env_adopt(
    name: Annotated[
        str, typer.Argument(help="Name for recipes. A codebase's own name makes it the default.")
    ],
    python: Annotated[Path, typer.Option(help="Interpreter in which the codebase is installed.")],
    codebase: Annotated[
        str | None, typer.Option(help="Its codebase. Default: the one that NAME begins with.")
    ] = None,
    adapters: Adapters = NONE,
) -> None:
    """Let a codebase run in an interpreter that exists. Nothing is installed there."""
    known = find_codebases(adapters)
    fitting = sorted((one for one in known if name == one or name.startswith(f"{one}-")), key=len)
    if codebase is None and not fitting:
        raise BenchError(f"which codebase is '{name}' of?", hint="--codebase NAME; bench list codebases")
    found = get_codebase(codebase or fitting[-1], known)
    python = python.expanduser()
    check_interpreter(python, found)
    packages = environments.adopt(name, found, python)
    shown = ", ".join(f"{one} {packages[one]}" for one in found.packages if one in packages)
    say(f"{name}: {found.name} runs in {python} ({shown}; {len(packages)} packages recorded)")
    say(f"in recipes: arms: - {{codebase: {found.name}, environment: {name}}}")


@app.command("list", epilog=examples("bench env list"))
def env_list(as_json: AsJson = False) -> None:
    """List environments with their size and the time that building took."""
    show(environment_rows(), as_json)


@app.command("check", epilog=examples("bench env check paddledet"))
def env_check(
    codebase: Annotated[str, typer.Argument(help="Name of a codebase or of an environment.")],
    adapters: Adapters = NONE,
    as_json: AsJson = False,
) -> None:
    """Compare an environment with its lock. Exit code 2 if they differ."""
    if codebase in environments.names():
        folder = environments.folder_of_name(codebase)
        owner = get_codebase(environments.read_lock(folder)["codebase"], find_codebases(adapters))
        found = environments.check_folder(owner, folder)
    else:
        found = environments.check(_codebase(codebase, adapters))
    drifts = [str(drift) for drift in found]
    print_json(drifts) if as_json else say("\n".join(drifts) or f"{codebase}: as locked")
    raise typer.Exit(ExitCode.BAD_INPUT if drifts else ExitCode.SUCCESS)


@app.command("remove", epilog=examples("bench env remove detectron2"))
def env_remove(
    codebase: Annotated[str, typer.Argument(help="Name of a codebase or of an environment.")],
    adapters: Adapters = NONE,
) -> None:
    """Remove all environments of a codebase, or one by its name. An adopted one is only forgotten."""
    if codebase in environments.names():
        say(f"removed {environments.remove_named(codebase)}")
        return
    for folder in environments.remove(_codebase(codebase, adapters)):
        say(f"removed {folder}")


def _codebase(name: str, adapters: list[Path]) -> Codebase:
    """A codebase by its name, which is none of an environment. Raises BenchError."""
    known = find_codebases(adapters)
    try:
        return get_codebase(name, known)
    except BenchError:
        hint = did_you_mean(name, {*known, *environments.names()})
        raise BenchError(f"no codebase and no environment is called '{name}'", hint=hint) from None
