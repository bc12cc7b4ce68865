"""The commands. Each one reads its arguments and calls one function; heavy imports wait until a command needs them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bench import __version__, interrupts
from bench.errors import BenchError, ExitCode

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Measure object-detection codebases against each other, on the same work, and say how sure it is.\n\n"
    "Start with [bold]bench run recipes/quickstart.yaml[/bold], then [bold]bench report[/bold].\n\n"
    "Exit codes: 0 success, 1 regression, 2 bad input, 3 inconclusive, 4 an arm failed, 130 interrupted.",
)

Results = Annotated[Path, typer.Option("--results", help="Where runs are kept.")]
Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapters", help="A folder with an adapter (or several) of your own. Repeatable."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]
RESULTS = Path("results")


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")


def _version(show: bool) -> None:
    if show:
        typer.echo(f"bench {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Options before a command."""


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A file, or a name of `bench list recipes`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="key=value over the recipe: --set measure.rounds=3")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="Complete this run (folder, id or `latest`).")] = None,
    retry_failed: Annotated[bool, typer.Option(help="With --resume: try failed arms again.")] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Print the plan and an estimate of its time; measure nothing.")
    ] = False,
    aa: Annotated[bool, typer.Option("--aa", help="Measure the baseline against itself.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Do not time an arm that does unequal work.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    results: Results = RESULTS,
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Measure every arm of a recipe."""
    from bench import commands

    if (recipe is None) == (resume is None):
        raise BenchError("give a recipe or --resume RUN", hint="bench list recipes; bench list runs")
    if recipe is not None:
        loaded, plan = commands.plan_of(recipe, settings or [], adapters or [], aa=aa)
        if dry_run:
            document = commands.dry_run(plan, results)
            _print_json(document) if as_json else commands.print_dry_run(plan, document)
            return
        outcome = commands.measure(
            loaded, plan, results, adapters or [], quiet=quiet or as_json, strict=strict
        )
    else:
        outcome = commands.resume(
            str(resume), results, adapters or [], retry_failed=retry_failed, quiet=quiet or as_json
        )
    _print_json(outcome.as_json()) if as_json else commands.print_outcome(outcome, quiet=quiet)
    raise typer.Exit(outcome.exit_code)


@app.command()
def audit(
    recipe: Annotated[Path, typer.Argument(help="A file, or a name of `bench list recipes`.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Check that the arms of a recipe do equal work, without timing them."""
    from bench import commands

    audits = commands.audit(recipe, settings or [], adapters or [], quiet=quiet or as_json)
    _print_json([one.as_json() for one in audits]) if as_json else commands.print_audits(audits)


@app.command()
def report(
    runs: Annotated[
        list[str] | None, typer.Argument(help="Runs (folder, id or `latest`); by default the latest.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder to write to.")] = None,
    published: Annotated[
        bool, typer.Option("--published", help="The published tables and the SOLOv2 log; runs go below them.")
    ] = False,
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Write markdown, figures and a static page from what was measured."""
    from bench import commands

    if published:
        path = commands.published_report(runs or [], results, output)
    else:
        path = commands.report(runs or ["latest"], results, output)
    _print_json({"report": str(path)}) if as_json else typer.echo(path)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="The baseline: a run, or RUN:ARM.")],
    b: Annotated[str, typer.Argument(help="What is compared with it: a run, or RUN:ARM.")],
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Print the ratio table of two runs or two arms."""
    from bench import commands

    commands.compare(a, b, results, as_json=as_json)


Tolerances = Annotated[
    list[str] | None,
    typer.Option("--tolerance", help="METRIC=SHARE: s/iter=3%, 'max memory=5%', AP=0.002. Repeatable."),
]


@app.command()
def check(
    subject: Annotated[str, typer.Argument(metavar="RECIPE|RUN", help="What to check.")],
    base: Annotated[str | None, typer.Option(help="Git revision to compare with, measured now.")] = None,
    head: Annotated[str, typer.Option(help="Git revision under check.")] = "HEAD",
    baseline: Annotated[str | None, typer.Option(help="Stored run to compare with.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="With --baseline: compare through this arm of both runs.")
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option(help="CODEBASE=PATH of its git checkout; by default this project's.")
    ] = None,
    tolerance: Tolerances = None,
    weight: Annotated[
        list[str] | None, typer.Option(help="METRIC=NUMBER: its share of the false alarms.")
    ] = None,
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds of measuring.")] = 600.0,
    inconclusive_is: Annotated[
        str, typer.Option(help="pass or fail; by default an exit code of its own.")
    ] = "inconclusive",
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    comment: Annotated[Path | None, typer.Option(help="Write a pull request comment in markdown.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    results: Results = RESULTS,
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """CI gate: has it become slower? Exit code 0 no, 1 yes, 3 cannot be said."""
    from bench import commands
    from bench.check import read_settings

    asked = read_settings(tolerance or [], weight or [], budget_s, inconclusive_is)
    result = commands.check(
        subject, settings or [], adapters or [], source or [], base, head, baseline, reference, asked, results,
        quiet=quiet or as_json,
    )  # fmt: skip
    commands.tell(result, junit, comment, as_json=as_json)
    raise typer.Exit(result.exit_code)


@app.command()
def calibrate(
    recipe: Annotated[Path, typer.Argument(help="A file, or a name of `bench list recipes`.")],
    launches: Annotated[int, typer.Option(min=3, help="Fresh processes of the A/A run.")] = 12,
    tolerance: Tolerances = None,
    budget_s: Annotated[float, typer.Option(min=1, help="Budget of the checks to come, in seconds.")] = 600.0,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
    results: Results = RESULTS,
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Measure every arm against itself: the noise of this machine, and what a check can see in it."""
    from bench import commands
    from bench.check import read_settings

    asked = read_settings(tolerance or [], [], budget_s)
    found = commands.calibrate(
        recipe, settings or [], adapters or [], asked, launches, results, quiet=quiet or as_json
    )
    _print_json([one.as_json() for one in found]) if as_json else commands.print_calibrations(found)


@app.command()
def history(
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the runs and revisions to suspect of each change.")
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the figures.")] = None,
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Lasting changes over all stored runs, per arm and machine, with a figure each."""
    from bench import commands

    commands.history(results, output, bisect=bisect, as_json=as_json)


@app.command("import")
def import_(
    log_format: Annotated[
        str, typer.Argument(metavar="FORMAT", help="`auto`, or a format it names in an error.")
    ],
    files: Annotated[list[Path], typer.Argument(help="A log, or the parts of one that was rotated.")],
    from_iter: Annotated[int | None, typer.Option(help="First iteration of the wall-clock rate.")] = None,
    to_iter: Annotated[int | None, typer.Option(help="Last iteration of the wall-clock rate.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a training log of another tool: rates by its own clock, printed rates, losses, evaluations."""
    from bench import importers

    if log_format == "model-zoo":
        from bench import commands

        written = commands.transcribe(files)
        _print_json(list(map(str, written))) if as_json else typer.echo("\n".join(map(str, written)))
        return
    result = importers.import_logs(log_format, files, from_iter=from_iter, to_iter=to_iter)
    _print_json(importers.to_json(result)) if as_json else typer.echo(importers.render(result))


@app.command("eval")
def evaluate(
    ground_truth: Annotated[Path, typer.Argument(help="COCO instances JSON.")],
    detections: Annotated[Path, typer.Argument(help="COCO results JSON.")],
    iou_type: Annotated[str, typer.Option(help="bbox, segm or both.")] = "both",
    backend: Annotated[str, typer.Option(help="hotcoco (fast) or pycocotools (the reference).")] = "hotcoco",
    as_json: AsJson = False,
) -> None:
    """COCO AP and AR of detections, and which images were evaluated."""
    from bench import commands

    found = commands.evaluate(ground_truth, detections, iou_type, backend)
    _print_json([one.as_json() for one in found]) if as_json else commands.print_evaluations(found)


data_app = typer.Typer(no_args_is_help=True, help="Convert, check and sample data sets.")
app.add_typer(data_app, name="data")


@data_app.command("convert")
def data_convert(
    layout: Annotated[str, typer.Argument(help="voc, cityscapes or widerface.")],
    source: Annotated[Path, typer.Argument(help="Folder in that layout.")],
    target: Annotated[Path, typer.Argument(help="New folder, in COCO layout.")],
    as_json: AsJson = False,
) -> None:
    """Write a data set in COCO layout, with instance masks where it has them."""
    from bench import commands, datasets

    commands.print_splits(datasets.convert(layout, source, target), as_json=as_json)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="Folder in COCO layout.")], as_json: AsJson = False
) -> None:
    """Find broken images, wrong sizes, boxes outside, empty classes; exit code 1 for all but empty classes."""
    from bench import commands, datasets

    found = datasets.check(folder)
    _print_json(found.as_json()) if as_json else commands.print_checked(found)
    raise typer.Exit(0 if found.sound else 1)


@data_app.command("sample")
def data_sample(
    source: Annotated[Path, typer.Argument(help="Folder in COCO layout.")],
    target: Annotated[Path, typer.Argument(help="New folder.")],
    images: Annotated[int, typer.Option(min=1, help="Images of each split.")],
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Write a reproducible part of a data set."""
    from bench import commands, datasets

    commands.print_splits(datasets.sample(source, target, images, seed), as_json=as_json)


list_app = typer.Typer(no_args_is_help=True, help="List codebases, models, recipes or runs.")
app.add_typer(list_app, name="list")


@list_app.command("codebases")
def list_codebases(adapters: Adapters = None, as_json: AsJson = False) -> None:
    """Codebases that have an adapter, and whether their environment is there."""
    from bench import listing

    listing.show(listing.codebases(adapters or []), as_json)


@list_app.command("models")
def list_models(adapters: Adapters = None, as_json: AsJson = False) -> None:
    """The matrix of canonical models and codebases: what is missing, and why."""
    from bench import listing

    listing.show_models(listing.models(adapters or []), as_json)


@list_app.command("recipes")
def list_recipes(
    folder: Annotated[
        Path | None, typer.Argument(help="Where to look; by default recipes/, else those of bench.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recipes and what they say they measure."""
    from bench import listing

    listing.show(listing.recipes(folder), as_json)


@list_app.command("runs")
def list_runs(results: Results = RESULTS, as_json: AsJson = False) -> None:
    """Runs, oldest first."""
    from bench import listing

    listing.show(listing.runs(results), as_json)


env_app = typer.Typer(
    no_args_is_help=True, help="Create, list, check and remove the environments of codebases."
)
app.add_typer(env_app, name="env")
Groups = Annotated[list[str] | None, typer.Option("--group", help="Optional install steps: compiled-ops.")]


@env_app.command("create")
def env_create(
    codebases: Annotated[list[str] | None, typer.Argument(help="Codebases to build for.")] = None,
    group: Groups = None,
    everything: Annotated[bool, typer.Option("--all", help="Every codebase that has one.")] = False,
    adapters: Adapters = None,
) -> None:
    """Build the locked virtual environment of a codebase; nothing to do when it is there."""
    from bench import commands

    commands.create_environments(codebases or [], group or [], adapters or [], everything=everything)


@env_app.command("list")
def env_list(as_json: AsJson = False) -> None:
    """Environments of this machine, their size and how long they took to build."""
    from bench import listing

    listing.show(listing.environments(), as_json)


@env_app.command("check")
def env_check(
    codebase: Annotated[str, typer.Argument(help="A codebase.")],
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Compare an environment with its lock; exit code 1 when it drifted."""
    from bench import commands

    drifts = commands.check_environment(codebase, adapters or [])
    _print_json(drifts) if as_json else typer.echo("\n".join(drifts) or f"{codebase}: as locked")
    raise typer.Exit(1 if drifts else 0)


@env_app.command("remove")
def env_remove(
    codebase: Annotated[str, typer.Argument(help="A codebase.")], adapters: Adapters = None
) -> None:
    """Remove all environments of a codebase."""
    from bench import commands

    for folder in commands.remove_environments(codebase, adapters or []):
        typer.echo(f"removed {folder}")


@app.command()
def doctor(adapters: Adapters = None, as_json: AsJson = False) -> None:
    """Say what works on this machine, and how to get what does not."""
    from bench import doctor as examination

    findings = examination.examine(adapters or [])
    _print_json([finding.as_json() for finding in findings]) if as_json else examination.show(findings)


def main() -> NoReturn:
    """The console script: errors meant for the user become one message and an exit code."""
    try:
        with interrupts.handled():
            app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:  # `bench list models | head`
        sys.stderr.close()
        sys.exit(ExitCode.SUCCESS)
    sys.exit(ExitCode.SUCCESS)
