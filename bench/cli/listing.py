"""`bench list`: tables of what there is. Each function returns rows; `show` prints them as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.cli.options import RESULTS, Adapters, AsJson, Results, examples
from bench.environments import list_environments, python_of, versions
from bench.errors import BenchError
from bench.recipe.codebases import Codebase, find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.models import MODELS
from bench.record.run import Run, find_runs
from bench.shipped import RECIPES

Rows = list[dict[str, Any]]


def show(rows: Rows, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(key) is None else str(row[key]) for key in columns))
    Console().print(table if rows else "nothing here")


def environment_state(codebase: Codebase) -> tuple[bool, str]:
    """Whether a codebase can be run here, with its version or the way to get it."""
    try:
        python_of(codebase)
        installed = versions(codebase)
    except BenchError as error:
        return False, f"{error.message}; {error.hint}" if error.hint else error.message
    missing = [name for name in codebase.packages if name not in installed]
    if missing:
        hint = "pip install 'detection-bench[native]'" if codebase.environment.kind == "project" else ""
        return False, f"not installed: {', '.join(missing)} {hint}".strip()
    return True, ", ".join(f"{name} {installed[name]}" for name in codebase.packages)


def codebases(adapters: Sequence[Path]) -> Rows:
    rows = []
    for codebase in find_codebases(adapters).values():
        ready, state = environment_state(codebase)
        rows.append(
            {
                "codebase": codebase.name,
                "ready": "yes" if ready else "no",
                "environment": state,
                "models": len(codebase.models),
                "input": ", ".join(codebase.inputs),
                "adapter": str(codebase.folder),
            }
        )
    return rows


def environments() -> Rows:
    return [
        {
            "codebase": one.codebase,
            "groups": ", ".join(one.groups),
            "python": one.python,
            "packages": len(one.packages),
            "size_mib": round(one.size_bytes / 2**20),
            "create_s": round(one.create_s),
            "folder": str(one.folder),
        }
        for one in list_environments()
    ]


def models(adapters: Sequence[Path]) -> Rows:
    """The matrix model × codebase: the tasks of an offer, or a dash; `notes` says why not, and what is special."""
    found = find_codebases(adapters)
    names = list(dict.fromkeys([*MODELS, *(name for one in found.values() for name in one.models)]))
    rows = []
    for name in names:
        row: dict[str, Any] = {"model": name}
        notes = {}
        for codebase in found.values():
            offer = codebase.models.get(name)
            row[codebase.name] = "–" if offer is None else " ".join(offer.tasks)
            note = codebase.why_missing(name) if offer is None else offer.note
            if note:
                notes[codebase.name] = note
        rows.append({**row, "notes": notes})
    return rows


def show_models(rows: Rows, as_json: bool) -> None:
    if as_json:
        show(rows, as_json)
        return
    show([{key: value for key, value in row.items() if key != "notes"} for row in rows], as_json)
    models_by_note: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for codebase, note in row["notes"].items():
            models_by_note.setdefault((codebase, note), []).append(row["model"])
    for (codebase, note), names in models_by_note.items():
        print(f"{codebase}: {note} ({', '.join(names) if len(names) <= 6 else f'{len(names)} models'})")


def recipes(folder: Path | None) -> Rows:
    """The recipes of a folder: by default `recipes` where it is called so, else those that are shipped."""
    if folder is None:
        folder = Path("recipes") if Path("recipes").is_dir() else RECIPES
    rows = []
    for path in sorted(folder.glob("**/*.yaml")):
        try:
            recipe = load_recipe(path).recipe
            arms = ", ".join(arm.label or arm.codebase for arm in recipe.arms)
            rows.append({"recipe": str(path), "arms": arms, "description": recipe.description.strip()})
        except BenchError as error:
            rows.append({"recipe": str(path), "arms": "", "description": f"not valid: {error.message}"})
    return rows


def runs(results: Path) -> Rows:
    rows = []
    for folder in find_runs(results):
        try:
            record, status = Run(folder).record(), Run(folder).status()
        except BenchError as error:  # one broken record must not hide the other runs
            rows.append(
                {"run": str(folder), "started": "", "status": str(error.message), "arms": 0, "machine": ""}
            )
            continue
        rows.append(
            {
                "run": str(folder),
                "started": record.started_utc,
                "status": status,
                "arms": len(record.arms),
                "machine": record.machine.get("cpu", {}).get("model", ""),
            }
        )
    return rows


app = typer.Typer(name="list", no_args_is_help=True, help="List codebases, models, recipes or runs.")


@app.command("codebases", epilog=examples("bench list codebases"))
def list_codebases(adapters: Adapters = None, as_json: AsJson = False) -> None:
    """List codebases with an adapter, and the state of their environments."""
    show(codebases(adapters or []), as_json)


@app.command("models", epilog=examples("bench list models"))
def list_models(adapters: Adapters = None, as_json: AsJson = False) -> None:
    """List which codebase offers which model, and why not."""
    show_models(models(adapters or []), as_json)


@app.command("recipes", epilog=examples("bench list recipes"))
def list_recipes(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to look; by default recipes/, else those of bench.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List recipes with their descriptions."""
    show(recipes(folder), as_json)


@app.command("runs", epilog=examples("bench list runs"))
def list_runs(results: Results = RESULTS, as_json: AsJson = False) -> None:
    """List runs, oldest first."""
    show(runs(results), as_json)
