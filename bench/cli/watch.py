"""`bench watch`: follow a run that another process measures."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.console import Console

from bench.cli.options import NONE, RESULTS, Adapters, Results, examples, say
from bench.environments import cache_folder
from bench.errors import BenchError
from bench.measure.live import seconds_of
from bench.measure.progress import Quiet, listener
from bench.measure.session import plan_of_run
from bench.recipe.codebases import find_codebases
from bench.recipe.plan import Plan
from bench.record.run import Run, resolve_run
from bench.report.answer import outcome_blocks
from bench.report.build import run_report
from bench.report.render.terminal import show

app = typer.Typer()


@app.command(epilog=examples("bench watch latest"))
def watch(
    run: Annotated[str, typer.Argument(help="Run: folder, id or latest.")] = "latest",
    every_s: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    results: Results = RESULTS,
    adapters: Adapters = NONE,
) -> None:
    """Follow a run of another process: progress, ratios so far, and the outcome when it ends."""
    found = Run(resolve_run(run, results), cache_folder())
    if found.status() == "running":
        plan, _ = plan_of_run(found, find_codebases(adapters))
        done = found.journal()
        with listener(plan, quiet=False, done=done) as shown:
            follow(found, plan, shown, len(done), every_s)
    say(f"{found.folder}: {found.status()}")
    show(outcome_blocks(run_report(found)), Console(highlight=False))


def follow(run: Run, plan: Plan, shown: Quiet, seen: int, every_s: float) -> None:
    """Show every block and failure from the `seen`-th block on, until no session measures the run any more."""
    arms, failed = {arm.id: arm for arm in plan.arms}, set()
    while True:
        running = run.status() == "running"  # asked first: what the session wrote last is read after it
        blocks = run.journal()
        for block in blocks[seen:]:
            if block.arm in arms:
                shown.block(arms[block.arm], block.launch, block.round, seconds_of(block))
        seen = len(blocks)
        try:
            records = run.arms()
        except BenchError:  # written at this moment
            records = []
        for record in records:
            if record.failure is not None and record.id in arms and record.id not in failed:
                failed.add(record.id)
                shown.failed(arms[record.id], record.failure)
        if not running:
            return
        time.sleep(every_s)
