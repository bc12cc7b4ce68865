"""`bench check`, `bench calibrate` and `bench history`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import (
    NONE,
    RESULTS,
    Adapters,
    AllowVariables,
    AsJson,
    Quiet,
    Recipe,
    Results,
    Settings,
    Sources,
    Trust,
    closed_pipe_is_fine,
    examples,
    print_json,
    reading_cache,
    say,
)
from bench.cli.run import plan_of
from bench.environments import cache_folder
from bench.errors import BenchError
from bench.gate import history as series
from bench.gate import output
from bench.gate.calibrate import calibrate as measure_noise
from bench.gate.calibrate import calibrated, impossible
from bench.gate.check import Result, Subject, check_revisions
from bench.gate.checkouts import adapters_here, repository_of, sources_here, sources_of
from bench.gate.metrics import read_settings
from bench.gate.stored import check_against_run, check_stored
from bench.recipe.codebases import find_codebases
from bench.record.run import Run, resolve_run
from bench.report.render.terminal import show
from bench.site import chart

app = typer.Typer()

Tolerances = Annotated[
    list[str],
    typer.Option(
        "--tolerance", help="METRIC=SHARE that may be lost: s/iter=3%, 'max memory=5%', AP=0.002. Repeatable."
    ),
]


@app.command(
    epilog=examples(
        "bench check recipes/check.yaml --base HEAD~1",
        "bench check recipes/check.yaml --base HEAD~1 --tolerance s/iter=5%",
    )
)
def check(
    subject: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="Recipe to measure, or stored run to compare.")
    ],
    base: Annotated[
        str | None, typer.Option(help="Git revision to compare with. Both are measured now.")
    ] = None,
    head: Annotated[str, typer.Option(help="Git revision to judge.")] = "HEAD",
    baseline: Annotated[str | None, typer.Option(help="Stored run to compare with.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="With --baseline: an arm of both runs that did not change.")
    ] = None,
    source: Annotated[
        list[str] | None,
        typer.Option(help="CODEBASE=PATH of a git checkout. Default: found in this checkout. Repeatable."),
    ] = None,
    tolerance: Tolerances = NONE,
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds of measuring.")] = 600.0,
    inconclusive_is: Annotated[
        str, typer.Option(help="Treat inconclusive as pass or fail. Default: exit code 3.")
    ] = "inconclusive",
    junit: Annotated[Path | None, typer.Option(help="File for JUnit XML.")] = None,
    comment: Annotated[Path | None, typer.Option(help="File for a pull-request comment in Markdown.")] = None,
    allow_variables: AllowVariables = False,
    trust: Trust = False,
    settings: Settings = NONE,
    quiet: Quiet = False,
    results: Results = RESULTS,
    adapters: Adapters = NONE,
    as_json: AsJson = False,
) -> None:
    """Fail if HEAD is slower than BASE. Exit codes: 0 pass, 1 regression, 3 inconclusive."""
    asked = read_settings(tolerance, budget_s, inconclusive_is)
    if (base is None) == (baseline is None):
        raise BenchError("name what to compare with: --base REVISION or --baseline RUN")
    if baseline and (source or head != "HEAD"):
        raise BenchError("--source and --head need --base: --baseline compares with what is here now")
    if base and reference:
        raise BenchError("--reference needs --baseline: --base measures both revisions together")
    cache, quiet = cache_folder(), quiet or as_json
    adapters = adapters or (adapters_here(Path.cwd()) if base else [])
    earlier = Run(resolve_run(baseline, results)) if baseline else None
    if earlier and not Path(subject).is_file():
        result = check_stored(Run(resolve_run(subject, results)), earlier, asked, cache, results, reference)
    else:
        codebases = find_codebases(adapters)
        loaded, plan = plan_of(
            Path(subject),
            settings,
            adapters,
            allow_variables=allow_variables,
            trust=trust,
            own=repository_of(Path.cwd()) if base else None,
        )
        notes = list(impossible(plan, asked, cache))
        for note in notes if not quiet else ():
            say(note, error=True)
        measured = Subject(loaded, plan, codebases, asked, results, cache, quiet)
        if earlier:
            result = check_against_run(measured, earlier, reference)
        else:
            found = (
                sources_of(source, codebases) if source else sources_here(Path.cwd(), codebases, plan.arms)
            )
            spread = calibrated(plan, cache)
            result = check_revisions(measured, found, str(base), head, calibrated=spread, notes=notes)
    _tell(result, junit, comment, as_json=as_json)
    raise typer.Exit(result.exit_code)


def _tell(result: Result, junit: Path | None, comment: Path | None, *, as_json: bool) -> None:
    """Print the outcome of a check, and hand it to the CI system that runs this."""
    if os.environ.get("GITHUB_ACTIONS"):  # the runner reads both streams, and standard output is a document's
        say("\n".join(output.workflow_commands(result)), error=True)
    with closed_pipe_is_fine():
        print_json(result.as_json()) if as_json else show(output.blocks(result))
    # Last: a file that cannot be written hides no verdict.
    step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
    output.write(result, junit, comment, Path(step_summary) if step_summary else None)


@app.command(epilog=examples("bench calibrate recipes/check.yaml --launches 12"))
def calibrate(
    recipe: Recipe,
    launches: Annotated[int, typer.Option(min=3, help="Launches of the A/A run.")] = 12,
    tolerance: Tolerances = NONE,
    budget_s: Annotated[float, typer.Option(min=1, help="Seconds that a later check may measure.")] = 600.0,
    source: Sources = NONE,
    allow_variables: AllowVariables = False,
    trust: Trust = False,
    settings: Settings = NONE,
    quiet: Quiet = False,
    results: Results = RESULTS,
    adapters: Adapters = NONE,
    as_json: AsJson = False,
) -> None:
    """Measure every arm against itself, and say what a check can detect on this machine."""
    asked = read_settings(tolerance, budget_s)
    adapters = adapters or adapters_here(Path.cwd())
    loaded, plan = plan_of(
        recipe,
        settings,
        adapters,
        sources=source,
        allow_variables=allow_variables,
        trust=trust,
        own=repository_of(Path.cwd()),
    )
    codebases, quiet = find_codebases(adapters), quiet or as_json
    found = measure_noise(Subject(loaded, plan, codebases, asked, results, cache_folder(), quiet), launches)
    print_json([one.as_json() for one in found]) if as_json else show(output.calibration_blocks(found))


@app.command(epilog=examples("bench history --bisect"))
def history(
    bisect: Annotated[
        bool, typer.Option("--bisect", help="Name the runs and revisions between which each change happened.")
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write figures and tables of all series to this folder."),
    ] = None,
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Find lasting changes in the stored runs, per arm and machine."""
    if not results.is_dir():
        raise BenchError("no such folder of runs", where=str(results), hint="bench run quickstart makes one")
    found, notes = series.collect(results, reading_cache())
    path = chart.write(found, notes, output) if output else None
    if as_json:
        print_json([one.as_json() for one in found])
        return
    show(series.blocks(found, notes, bisect=bisect))
    if path:
        say(path)
