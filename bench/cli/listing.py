"""`bench list`: tables of what there is. Each function returns rows; `show` prints them as a table or as JSON."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import NONE, RESULTS, Adapters, AsJson, Results, examples, print_json, say
from bench.environments import list_environments, python_of, versions
from bench.errors import BenchError
from bench.recipe.codebases import Codebase, find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.models import BACKBONES, MODELS
from bench.record.run import Run, find_runs
from bench.report.document import Cell, Column, Table
from bench.report.render import terminal
from bench.shipped import RECIPES

Rows = list[dict[str, Any]]


def show(rows: Rows, as_json: bool, droppable: Sequence[str] = ()) -> None:
    """Print rows as a table of the terminal's width, or as JSON.

    Args:
        rows: One mapping per row.
        as_json: JSON instead of a table.
        droppable: Columns that go where there is no room, the first one first.
    """
    if as_json:
        print_json(rows)
        return
    if not rows:
        print("nothing here")
        return
    names = list(dict.fromkeys(key for row in rows for key in row))
    numeric = {name for name in names if all(isinstance(row.get(name), int | float) for row in rows)}
    columns = tuple(
        Column(
            name.replace("_", " "),
            name in numeric,
            priority=len(droppable) - droppable.index(name) if name in droppable else 0,
            prose=name == "description",
        )
        for name in names
    )
    lines = tuple(
        tuple(Cell("" if row.get(name) is None else str(row[name])) for name in names) for row in rows
    )
    terminal.show([Table(columns, lines)])


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
            "name": one.name,
            "groups": ", ".join(one.groups),
            "python": one.python,
            "packages": len(one.packages),
            "size_mib": round(one.size_bytes / 2**20),
            "create_s": round(one.create_s),
            "folder": one.interpreter or str(one.folder),
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


def _family(model: str) -> str:
    """A model without its backbone or size."""
    if model in MODELS and MODELS[model].family:
        return MODELS[model].family
    backbone = next((name for name in BACKBONES if model.endswith(f"_{name}")), "")
    return model.removesuffix(f"_{backbone}") if backbone else model


def families(rows: Rows) -> dict[str, str]:
    """Family and number of its models → how many each codebase offers."""
    grouped: dict[str, Rows] = {}
    for row in rows:
        grouped.setdefault(_family(row["model"]), []).append(row)
    offers = {name: Counter(one for row in grouped[name] for one in _offering(row)) for name in grouped}
    return {
        f"{name} ({len(grouped[name])})": ", ".join(
            f"{one}\N{NO-BREAK SPACE}{number}" for one, number in offers[name].items()
        )
        for name in grouped
    }


def _in_two_columns(lines: Mapping[str, str]) -> None:
    """A long text goes on below itself."""
    wide = max(map(len, lines), default=0) + 2
    for name, text in lines.items():
        width, rest = shutil.get_terminal_size().columns, " " * wide
        say(
            "\n".join(
                textwrap.wrap(text or "–", width, initial_indent=name.ljust(wide), subsequent_indent=rest)
            )
        )


def _offering(row: Mapping[str, Any]) -> dict[str, str]:
    """Codebase → tasks, of those that offer a model."""
    return {name: tasks for name, tasks in row.items() if name not in ("model", "notes") and tasks != "–"}


def _offers(row: Mapping[str, Any]) -> str:
    """`mmdet native; infer: onnx`."""
    by_tasks: dict[str, list[str]] = {}
    for name, tasks in _offering(row).items():
        by_tasks.setdefault("" if tasks == "train infer" else f"{tasks}: ", []).append(name)
    return "; ".join(f"{tasks}{' '.join(names)}" for tasks, names in sorted(by_tasks.items()))


def show_models(rows: Rows, as_json: bool, every: bool) -> None:
    """One row per family, or with ``every`` one per model and the reasons for what is missing."""
    if as_json:
        show(rows, as_json)
        return
    if not every:
        _in_two_columns(families(rows))
        print(
            "Behind each codebase: how many models of the family it offers.\n--all: every model and the reasons."
        )
        return
    _in_two_columns({row["model"]: _offers(row) for row in rows})
    print("For training and inference, where no task is named.")
    models_by_note: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for codebase, note in row["notes"].items():
            if note == f"{codebase} offers no {row['model']}":
                continue  # the dash says it
            models_by_note.setdefault((codebase, note), []).append(row["model"])
    for (codebase, note), names in models_by_note.items():
        say(f"{codebase}: {note} ({', '.join(names) if len(names) <= 6 else f'{len(names)} models'})")


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
        row = {"run": str(folder), "started": "", "status": "", "arms": 0, "machine": ""}
        try:
            record = Run(folder).record()
            row |= {
                "started": record.started_utc,
                "status": Run(folder).status_of(record),
                "arms": len(record.arms),
            }
            if isinstance(cpu := record.machine.get("cpu"), dict):
                row["machine"] = cpu.get("model", "")
        except BenchError as error:  # one broken record must not hide the other runs
            row["status"] = error.message
        rows.append(row)
    return rows


app = typer.Typer(name="list", no_args_is_help=True, help="List codebases, models, recipes or runs.")


@app.command("codebases", epilog=examples("bench list codebases"))
def list_codebases(adapters: Adapters = NONE, as_json: AsJson = False) -> None:
    """List codebases with an adapter, and the state of their environments."""
    rows = codebases(adapters)
    lacking = {} if as_json else {row["codebase"]: row["environment"] for row in rows if row["ready"] == "no"}
    shown = [{**row, "environment": "see below"} if row["codebase"] in lacking else row for row in rows]
    show(shown, as_json, droppable=("adapter", "input", "models"))
    for name, state in lacking.items():
        say(f"{name}: {state}")


@app.command("models", epilog=examples("bench list models"))
def list_models(
    adapters: Adapters = NONE,
    every: Annotated[
        bool, typer.Option("--all", help="List every model, its tasks and what is missing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List which codebase offers which models."""
    show_models(models(adapters), as_json, every)


@app.command("recipes", epilog=examples("bench list recipes"))
def list_recipes(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to look; by default recipes/, else those of bench.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List recipes with their descriptions."""
    rows = recipes(folder)
    if not as_json:  # one line each: the first sentence
        for row in rows:
            sentence = re.split(r"(?<=[.:;])\s", " ".join(row["description"].split()), maxsplit=1)[0]
            row["description"] = textwrap.shorten(sentence, 100, placeholder=" …")
            row["recipe"] = Path(row["recipe"]).stem
    show(rows, as_json, droppable=("arms",))


@app.command("runs", epilog=examples("bench list runs"))
def list_runs(results: Results = RESULTS, as_json: AsJson = False) -> None:
    """List runs, oldest first."""
    show(runs(results), as_json, droppable=("machine", "started"))
