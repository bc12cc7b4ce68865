"""`bench vs` and `bench init`: from models, files and data of the user's to a recipe, a run and its verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.cli.options import (
    NONE,
    RESULTS,
    Adapters,
    AsJson,
    Quiet,
    Results,
    Settings,
    examples,
    print_json,
    say,
)
from bench.cli.run import measure, plan_of, print_outcome, problems_of, width_settings
from bench.errors import BenchError, ExitCode, telling
from bench.recipe import compose
from bench.recipe.codebases import find_codebases
from bench.recipe.load import checked, load_recipe
from bench.recipe.plan import make_plan, notes_of
from bench.recipe.trust import code_of
from bench.report.write import generate

app = typer.Typer()

Data = Annotated[
    str,
    typer.Option(
        "--data", help="A folder of COCO, YOLO or VOC; ANNOTATIONS.json=FOLDER; or shapes (generated)."
    ),
]
Task = Annotated[
    str, typer.Option("--task", help="train, infer or serve. With infer, models with weights show AP.")
]
Size = Annotated[
    str, typer.Option("--size", help="800x1333: short and long side. 640 or 640x640: exactly that square.")
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Images per step.")]
Images = Annotated[int, typer.Option("--images", min=1, help="Images: the first ones of the split.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
Arms = typer.Argument(
    metavar="ARM...",
    help="CODEBASE:MODEL or CODEBASE:MODEL@WEIGHTS. MODEL is a name of `bench list models`, a name or a config file of "
    "the codebase's own, hf:FOLDER, onnx:FILE.onnx or python:MODULE:FUNCTION. CODEBASE=WHERE:MODEL runs in a named "
    "environment, an interpreter or a checkout.",
)


@app.command(
    epilog=examples(
        "bench vs native:mask_rcnn_r50_fpn torchvision:maskrcnn_resnet50_fpn --task train --size 512",
        "bench vs mmdet:my_config.py@epoch_12.pth detectron2:my.yaml@model_final.pth --data coco",
        "bench vs mmdet:my_config.py mmdet=mmdet-3.2:my_config.py --data coco --task train",
        "bench vs python:mypackage.models:build torchvision:fasterrcnn_resnet50_fpn_v2 --data shapes",
    )
)
def vs(
    arms: Annotated[list[str], Arms],
    data: Data = "shapes",
    task: Task = "infer",
    size: Size = "800x1333",
    batch: Batch = 1,
    images: Images = 16,
    device: Device = "cpu",
    launches: Annotated[int, typer.Option(min=1, help="Fresh processes of each arm.")] = 3,
    rounds: Annotated[int, typer.Option(min=1, help="Visits to every arm in each launch.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a visit.")] = 2,
    until: Annotated[
        str | None,
        typer.Option(help="3%: add launches until every interval is that narrow (+/-), 30 at most."),
    ] = None,
    settings: Settings = NONE,
    save: Annotated[Path | None, typer.Option(help="File for the recipe that is run.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write the recipe and check it. Measure nothing.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the report. Default: reports/NAME/RUN.")
    ] = None,
    quiet: Quiet = False,
    results: Results = RESULTS,
    adapters: Adapters = NONE,
    as_json: AsJson = False,
) -> None:
    """Compare models by name, config or checkpoint, in one line.

    It writes the recipe that it runs, measures, and writes the report. The first arm is the baseline.
    Files that you name here run as your own code: no --trust is needed.
    """
    asked = compose.Asked(tuple(arms), data, task, size, batch, images, device, launches, rounds, steps)
    codebases = find_codebases(adapters)
    content = compose.composed(asked, codebases)
    for note in compose.misspelt(arms, codebases):
        say(f"note: {note}", error=True)
    path = save or results / str(content["name"]) / "recipe.yaml"
    given = [*width_settings(until), *settings]
    checked(content, {("workload", "device"): "--device"}, Path("bench vs"), given)
    write_recipe(path, content)
    loaded, plan = plan_of(path, [], adapters, trust=True)
    if problems := problems_of(loaded, plan, adapters):
        raise BenchError("\n  ".join(["this cannot be measured:", *problems]), where=str(path))
    if dry_run:
        for note in notes_of(plan, codebases):
            say(f"note: {note}", error=True)
        print_json({"recipe": str(path)}) if as_json else say(path)
        return
    if not quiet:
        say(content["description"], error=True)
    outcome = measure(loaded, plan, results, adapters, quiet=quiet or as_json)
    complete, report = outcome.exit_code != ExitCode.INTERRUPTED, None
    if not as_json:  # first: a report that cannot be written must not hide the run
        print_outcome(outcome, quiet=quiet, reported=complete)
        say(f"recipe: {path}", error=True)
    if complete:
        target = output or Path("reports") / plan.name / outcome.run.folder.name
        report = generate([outcome.run], target, codebases=codebases)
    if as_json:
        print_json({**outcome.as_json(), "recipe": str(path), "report": str(report) if report else None})
    else:
        say(report or "no report: the run is not complete")
    raise typer.Exit(outcome.exit_code)


@app.command(epilog=examples("bench init", "bench init recipe.yaml"))
def init(
    path: Annotated[Path, typer.Argument(help="File to write.")] = Path("recipe.yaml"),
    arms: Annotated[
        list[str] | None, typer.Option("--arm", help="An arm, as in bench vs. Repeatable. Default: ask.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="As in bench vs. Default: ask.")] = None,
    task: Annotated[str | None, typer.Option("--task", help="As in bench vs. Default: ask.")] = None,
    size: Annotated[str | None, typer.Option("--size", help="As in bench vs. Default: ask.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="As in bench vs. Default: ask.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    adapters: Adapters = NONE,
) -> None:
    """Ask what to compare, and write a commented recipe."""
    if path.exists() and not force:
        raise BenchError("exists already", where=str(path), hint="another name, or --force")
    known = find_codebases(adapters)
    chosen = list(arms or [])
    if not chosen:
        say(f"An arm is CODEBASE:MODEL[@WEIGHTS]. Codebases: {', '.join(known)}.", error=True)
        asking = "First arm, the baseline"
        while answer := _ask(asking, "", lambda text: text and compose.parse_arm(text, known)):
            chosen.append(answer)
            asking = "Next arm, or nothing"
    asked = compose.Asked(
        tuple(chosen),
        data or _ask("Data set: a folder of COCO, YOLO or VOC, or shapes", "shapes", compose.input_of),
        task or _ask("Task: train, infer or serve", "infer", compose.check_task),
        size or _ask("Size: 800x1333 (short and long side), or 640 (a square)", "800x1333", compose.size_of),
        batch or int(_ask("Images per step", "1", compose.check_batch)),
    )
    write_recipe(path, compose.composed(asked, known))
    say(path)
    code = any(list(code_of(arm)) for arm in make_plan(load_recipe(path), known).arms)
    say(f"next: bench run {path}{' --trust' if code else ''}", error=True)


def _ask(question: str, default: str, check: Callable[[str], object]) -> str:
    """An answer that passes the check: a slip must not cost the answers before it."""
    while True:
        answer = str(typer.prompt(question, default=default, show_default=bool(default))).strip()
        try:
            check(answer)
            return answer
        except BenchError as error:
            say(error, error=True)


def write_recipe(path: Path, content: dict[str, Any]) -> None:
    """A commented recipe in a file. Raises BenchError where it cannot be written."""
    with telling("cannot be written", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(compose.recipe_text(content))
