"""`bench check`, `bench calibrate` and `bench history`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import RESULTS, Adapters, AsJson, Quiet, Recipe, Results, Settings, print_json
from bench.cli.run import plan_of
from bench.environments import cache_folder
from bench.errors import BenchError
from bench.gate import history as series
from bench.gate import output
from bench.gate.calibrate import calibrate as measure_noise
from bench.gate.calibrate import calibrated, impossible
from bench.gate.check import Result, check_revisions
from bench.gate.checkouts import sources_of
from bench.gate.metrics import read_settings
from bench.gate.stored import check_against_run, check_stored
from bench.recipe.codebases import find_codebases
from bench.record.run import Run, resolve_run
from bench.report import show

app = typer.Typer()

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
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds of measuring.")] = 600.0,
    inconclusive_is: Annotated[
        str, typer.Option(help="pass or fail; by default an exit code of its own.")
    ] = "inconclusive",
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML.")] = None,
    comment: Annotated[Path | None, typer.Option(help="Write a pull request comment in markdown.")] = None,
    settings: Settings = None,
    quiet: Quiet = False,
    results: Results = RESULTS,
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """CI gate: has it become slower? Exit code 0 no, 1 yes, 3 cannot be said."""
    asked = read_settings(tolerance or [], budget_s, inconclusive_is)
    if (base is None) == (baseline is None):
        raise BenchError("give --base REVISION or --baseline RUN")
    if baseline and (source or head != "HEAD"):
        raise BenchError("--source and --head are for --base: a stored run is compared with what is here now")
    if base and reference:
        raise BenchError("--reference is for --baseline: two revisions are measured side by side")
    cache, quiet = cache_folder(), quiet or as_json
    earlier = Run(resolve_run(baseline, results)) if baseline else None
    if earlier and not Path(subject).is_file():
        result = check_stored(Run(resolve_run(subject, results)), earlier, asked, cache, results, reference)
    else:
        codebases = find_codebases(adapters or [])
        loaded, plan = plan_of(Path(subject), settings or [], adapters or [])
        notes = list(impossible(plan, asked, cache))
        for note in notes if not quiet else ():
            print(note, file=sys.stderr)
        if earlier:
            result = check_against_run(
                loaded, plan, codebases, earlier, asked, results, cache, reference=reference, quiet=quiet
            )
        else:
            found = sources_of(source or [], codebases)
            result = check_revisions(
                loaded,
                plan,
                codebases,
                found,
                str(base),
                head,
                asked,
                results,
                cache,
                calibrated=calibrated(plan, cache),
                notes=notes,
                quiet=quiet,
            )
    _tell(result, junit, comment, as_json=as_json)
    raise typer.Exit(result.exit_code)


def _tell(result: Result, junit: Path | None, comment: Path | None, *, as_json: bool) -> None:
    """Print the outcome of a check, and hand it to the CI system that runs this."""
    step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
    output.write(result, junit, comment, Path(step_summary) if step_summary else None)
    if os.environ.get("GITHUB_ACTIONS"):  # the runner reads both streams, and standard output is a document's
        print("\n".join(output.workflow_commands(result)), file=sys.stderr)
    print_json(result.as_json()) if as_json else show(output.blocks(result))


@app.command()
def calibrate(
    recipe: Recipe,
    launches: Annotated[int, typer.Option(min=3, help="Fresh processes of the A/A run.")] = 12,
    tolerance: Tolerances = None,
    budget_s: Annotated[float, typer.Option(min=1, help="Budget of the checks to come, in seconds.")] = 600.0,
    settings: Settings = None,
    quiet: Quiet = False,
    results: Results = RESULTS,
    adapters: Adapters = None,
    as_json: AsJson = False,
) -> None:
    """Measure every arm against itself: the noise of this machine, and what a check can see in it."""
    asked = read_settings(tolerance or [], budget_s)
    loaded, plan = plan_of(recipe, settings or [], adapters or [])
    found = measure_noise(
        loaded,
        plan,
        find_codebases(adapters or []),
        asked,
        launches,
        results,
        cache_folder(),
        quiet=quiet or as_json,
    )
    print_json([one.as_json() for one in found]) if as_json else show(output.calibration_blocks(found))


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
    found, notes = series.collect(results)
    path = series.write(found, notes, output or Path("reports") / "history")
    if as_json:
        print_json([one.as_json() for one in found])
    else:
        show(series.blocks(found, notes, bisect=bisect, figures=False))
        print(path)
