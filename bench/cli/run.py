"""`bench run`, `bench audit` and the dry run."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from bench.cli.cells import Asked, Sweep
from bench.cli.estimate import median_s, planned
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
    examples,
    plain,
    print_json,
    say,
)
from bench.environments import cache_folder
from bench.errors import BenchError, ExitCode
from bench.inputs.watched import TOLD
from bench.judge.audit import Audit, audit_run
from bench.judge.numbers import duration_text
from bench.measure.preflight import check_plan
from bench.measure.progress import listener
from bench.measure.session import Session, new_run, resumed
from bench.measure.until import growing
from bench.recipe.codebases import find_codebases
from bench.recipe.load import LoadedRecipe, load_recipe
from bench.recipe.plan import Plan, make_plan, notes_of
from bench.recipe.trust import refuse_untrusted
from bench.recipe.variables import refuse_variables
from bench.record.models import RunRecord
from bench.record.run import Run, resolve_run
from bench.report.answer import outcome_blocks
from bench.report.build import run_report
from bench.report.document import Column
from bench.report.render.terminal import show
from bench.report.text import counted, table_of

app = typer.Typer()

MOST_LAUNCHES = 30
"""Of `bench run --until`."""


@app.command(
    epilog=examples(
        "bench run quickstart",
        "bench run quickstart --dry-run",
        "bench run quickstart --set measure.launches=4",
        "bench run --resume latest",
        "bench run quickstart --shard 1/4 --store s3://bucket/prefix",
        "bench run quickstart --executor slurm --dry-run",
    )
)
def run(
    recipe: Annotated[Path | None, typer.Argument(help="A file, or a name of `bench list recipes`.")] = None,
    settings: Settings = NONE,
    resume: Annotated[
        str | None, typer.Option(help="Complete this run: its folder, its id, or latest.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: run failed arms again.")
    ] = False,
    until: Annotated[
        str | None,
        typer.Option(help="3%: add launches until every interval is that narrow (+/-), 30 at most."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its estimated time. Measure nothing.")
    ] = False,
    aa: Annotated[
        bool, typer.Option("--aa", help="Measure the baseline against itself, to see the noise.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to time an arm whose work is unequal.")
    ] = False,
    cell: Annotated[str | None, typer.Option(help="Measure the cell with this key (see --dry-run).")] = None,
    shard: Annotated[str | None, typer.Option(help="i/n: measure every n-th cell, from the i-th on.")] = None,
    skip_done: Annotated[
        bool, typer.Option("--skip-done", help="Measure cell by cell those that the store does not have.")
    ] = False,
    store: Annotated[
        str | None, typer.Option(help="Where finished cells are put: a folder or URL. Default: --results.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="slurm or ray: measure the cells on a cluster.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster. Default: this machine's.")
    ] = None,
    constraint: Annotated[str | None, typer.Option(help="Slurm: features that nodes must have.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(help="Slurm: an option of sbatch: --sbatch=--partition=gpu. Repeatable."),
    ] = None,
    allow_variables: AllowVariables = False,
    trust: Trust = False,
    quiet: Quiet = False,
    results: Results = RESULTS,
    adapters: Adapters = NONE,
    source: Sources = NONE,
    as_json: AsJson = False,
) -> None:
    """Measure every arm of a recipe."""
    asked = Asked(cell, shard, skip_done, store, executor, address, constraint, tuple(sbatch or ()))
    if (recipe is None) == (resume is None):
        raise BenchError(
            "name either a recipe, or a run with --resume", hint="bench list recipes; bench list runs"
        )
    if resume is not None and (settings or until or source or aa or strict or dry_run):
        raise BenchError(
            "a run is completed as it began: --resume takes no --set, --until, --source, --aa, --strict, --dry-run",
            hint="start a new run for other settings",
        )
    if retry_failed and resume is None:
        raise BenchError(
            "--retry-failed tries the failed arms of a run again", hint="--resume RUN --retry-failed"
        )
    if recipe is not None:
        settings = [*width_settings(until), *settings]
        loaded, plan = plan_of(
            recipe, settings, adapters, sources=source, aa=aa, allow_variables=allow_variables, trust=trust
        )
        flags = {"--aa": aa, "--strict": strict, "--allow-variables": allow_variables, "--trust": trust}
        passed = _passed(settings, adapters, source, flags)
        sweep = Sweep(loaded, plan, asked, results, adapters, passed, quiet or as_json, strict, as_json)
        if dry_run:
            document = planned(plan, results)
            document["problems"] = problems_of(loaded, plan, adapters, elsewhere=bool(executor))
            if asked.by_cell:
                sweep.dry_run(document, as_json=as_json)
            else:
                document["notes"] = notes_of(plan, find_codebases(adapters))
                print_json(document) if as_json else _print_dry_run(plan, document)
            told = Console(stderr=True, soft_wrap=True)
            for problem in document["problems"] if not as_json else ():
                told.print(plain(f"problem: {problem}", "red"))
            raise typer.Exit(ExitCode.BAD_INPUT if document["problems"] else ExitCode.SUCCESS)
        if asked.by_cell:
            raise typer.Exit(sweep.run())
        outcome = measure(loaded, plan, results, adapters, quiet=quiet or as_json, strict=strict)
    elif asked.by_cell:
        raise BenchError("a run by cells is completed by the same command as before, without --resume")
    else:
        begun = Run(resolve_run(str(resume), results), cache_folder())
        plan, record = resumed(begun, find_codebases(adapters))
        refuse_variables(plan.arms, str(begun.folder), allow_all=allow_variables)
        refuse_untrusted(plan.arms, str(begun.folder), cache_folder() / "trusted", trust=trust)
        outcome = _execute(begun, record, plan, adapters, quiet=quiet or as_json, retry_failed=retry_failed)
    print_json(outcome.as_json()) if as_json else print_outcome(outcome, quiet=quiet)
    raise typer.Exit(outcome.exit_code)


@app.command(epilog=examples("bench audit quickstart"))
def audit(
    recipe: Recipe,
    settings: Settings = NONE,
    quiet: Quiet = False,
    adapters: Adapters = NONE,
    source: Sources = NONE,
    as_json: AsJson = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 unless every arm is shown to do equal work.")
    ] = False,
    allow_variables: AllowVariables = False,
    trust: Trust = False,
) -> None:
    """Watch every arm for a few steps, and say whether they do equal work. Time nothing.

    Exit codes: 0; 4 if an arm failed; with --strict 3 if an arm is unequal or not shown to be equal.
    """
    loaded, plan = plan_of(
        recipe, settings, adapters, sources=source, allow_variables=allow_variables, trust=trust
    )
    audits, code = _audit(loaded, plan, adapters, quiet=quiet or as_json)
    if as_json:
        print_json([one.as_json() for one in audits])
    elif audits or not code:  # of failed and interrupted arms the reason has been told
        _print_audits(audits)
    if not code and strict and not all(one.equal for one in audits):
        code = ExitCode.INCONCLUSIVE
    raise typer.Exit(code)


@dataclass(frozen=True)
class Outcome:
    """What a measuring command leaves."""

    run: Run
    exit_code: int

    def as_json(self) -> dict[str, Any]:
        record, arms = self.run.record(), self.run.arms()
        return {
            "run": record.id,
            "folder": str(self.run.folder),
            "status": record.status,
            "exit_code": self.exit_code,
            "warnings": record.warnings,
            "audit": [one.as_json() for one in audit_run(arms, record.baseline).values()],
            "arms": [
                {
                    "id": arm.id,
                    "codebase": arm.codebase,
                    "levels": arm.levels,
                    "status": arm.status,
                    "failure": arm.failure.model_dump() if arm.failure else None,
                    "blocks": arm.blocks,
                    "s_per_iter": median_s(self.run, arm.id),
                }
                for arm in arms
            ],
        }


def plan_of(
    recipe: Path,
    settings: Sequence[str],
    adapters: Sequence[Path],
    *,
    sources: Sequence[str] = (),
    aa: bool = False,
    allow_variables: bool = False,
    trust: bool = False,
    own: Path | None = None,
) -> tuple[LoadedRecipe, Plan]:
    """A recipe and its plan, once all that it may not do without being asked has been refused.

    Args:
        recipe: A file, or a name of a shipped recipe.
        settings: `key=value` each.
        adapters: Folders of adapters of the user's.
        sources: `CODEBASE=PATH` each: what is imported from a checkout. Given here it is trusted.
        aa: Measure the baseline against itself.
        allow_variables: The recipe may set any environment variable.
        trust: The user trusts the code that the recipe names.
        own: A checkout whose code the user asked to measure.

    Raises:
        BenchError: The recipe is wrong, or names what was not allowed.
    """
    loaded, codebases = load_recipe(recipe, settings), find_codebases(adapters)
    given = dict(map(split_source, sources))
    if given:
        added = [
            f"arms.{index}.source={json.dumps(given[spec.codebase])}"
            for index, spec in enumerate(loaded.recipe.arms)
            if spec.codebase in given and spec.source is None
        ]
        if not added:
            raise BenchError(f"no arm of this recipe measures {', '.join(given)}", where=str(loaded.path))
        loaded = load_recipe(recipe, [*settings, *added])
    plan = make_plan(loaded, codebases, aa=aa)
    refuse_variables(plan.arms, str(loaded.path), allow_all=allow_variables)
    named = [replace(arm, source=None) if str(arm.source) in given.values() else arm for arm in plan.arms]
    refuse_untrusted(named, str(loaded.path), cache_folder() / "trusted", trust=trust, own=own)
    return loaded, plan


def problems_of(
    loaded: LoadedRecipe, plan: Plan, adapters: Sequence[Path], *, elsewhere: bool = False
) -> list[str]:
    """What would fail, as far as it shows without a model (`check_plan`); long reading is told of."""
    telling = TOLD.set(lambda text: say(text, error=True))
    try:
        asked = loaded.recipe.environment.affinity
        return check_plan(plan, find_codebases(adapters), cache_folder(), asked, elsewhere=elsewhere)
    finally:
        TOLD.reset(telling)


def split_source(text: str) -> tuple[str, str]:
    """`CODEBASE=PATH` as a name and an absolute path. Raises BenchError where the path is no folder."""
    name, equals, path = text.partition("=")
    folder = Path(path).expanduser()
    if not equals or not folder.is_dir():
        raise BenchError(f"--source {text}: expected CODEBASE=PATH of a checkout")
    return name, str(folder.resolve())


def width_settings(until: str | None) -> list[str]:
    """`--until 3%` as settings; those that the user gives come later and count."""
    if until is None:
        return []
    try:
        share = float(until.removesuffix("%")) / 100
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise BenchError(f"--until {until}: expected per cent, more than 0", hint="for example --until 3%")
    return [f"measure.until={share}", f"measure.launches={MOST_LAUNCHES}"]


def _passed(
    settings: Sequence[str], adapters: Sequence[Path], sources: Sequence[str], flags: Mapping[str, bool]
) -> tuple[str, ...]:
    """The options that the command of one cell needs as well."""
    given = [f"--set={setting}" for setting in settings]
    given += [f"--adapters={folder.absolute()}" for folder in adapters]
    given += [f"--source={source}" for source in sources]
    return (*given, *(flag for flag, on in flags.items() if on))


def measure(
    loaded: LoadedRecipe,
    plan: Plan,
    results: Path,
    adapters: Sequence[Path],
    *,
    quiet: bool,
    strict: bool = False,
) -> Outcome:
    run, record = new_run(loaded, plan, results, ["bench", *sys.argv[1:]])
    return _execute(run, record, plan, adapters, quiet=quiet, strict=strict)


def _execute(
    run: Run,
    record: RunRecord,
    plan: Plan,
    adapters: Sequence[Path],
    *,
    quiet: bool,
    retry_failed: bool = False,
    strict: bool = False,
) -> Outcome:
    with listener(plan, quiet=quiet, done=run.journal()) as shown:
        plan, more = growing(plan, run, shown.note)
        codebases = find_codebases(adapters)
        for note in notes_of(plan, codebases):
            shown.note(note)
        session = Session(plan, run, record, codebases, cache_folder(), shown, strict, more_launches=more)
        code = session.execute(retry_failed=retry_failed)
    return Outcome(run, code)


def print_outcome(outcome: Outcome, *, quiet: bool, reported: bool = False) -> None:
    """Where the run is, and what to do next."""
    say(outcome.run.folder)
    if quiet:
        return
    arms = outcome.run.arms()
    for arm in arms:
        if arm.failure is not None:
            failed = f"failed: {arm.id}: {arm.failure.reason}: {arm.failure.message}"
            log = f"\n  log: {outcome.run.folder / arm.failure.log}" if arm.failure.log_tail else ""
            Console(stderr=True, soft_wrap=True).print(plain(failed + log, "red"))
    if outcome.exit_code != ExitCode.INTERRUPTED or any(arm.blocks for arm in arms):
        show(outcome_blocks(run_report(outcome.run)), Console(stderr=True, highlight=False))
    folder = shlex.quote(str(outcome.run.folder))
    if outcome.exit_code == ExitCode.INTERRUPTED:
        say(f"interrupted; complete it with: bench run --resume {folder}", error=True)
    elif not reported:
        say(f"next: bench report {folder}", error=True)


def _print_dry_run(plan: Plan, document: dict[str, Any]) -> None:
    say(f"{plan.name}: {counted(len(plan.arms), 'arm')}")
    table = {
        Column("arm"): lambda arm: arm["id"],
        Column("model", priority=1): lambda arm: arm["model"],
        Column("task", priority=2): lambda arm: arm["task"],
        Column("steps", True): lambda arm: arm["steps"],
        Column("about", True): lambda arm: duration_text(arm["estimate_s"]),
    }
    console = Console()
    show([table_of(document["arms"], table)], console)
    measure = plan.measure
    design = f"{measure.launches} launches × {measure.rounds} rounds × {measure.steps} steps"
    if all(arm.workload.task == "train_eval" for arm in plan.arms):
        design = "training to the last step (evaluations counted as steps)"
    console.print(
        f"{design} in {counted(document['cells'], 'cell')}"
        f"{' (interleaved)' if measure.interleave else ''}; about {duration_text(document['estimate_s'])},"
        f" from {document['estimate_from']}",
        markup=False,
    )
    for arm in document["arms"]:
        if arm["variables"]:
            pairs = " ".join(f"{name}={shlex.quote(value)}" for name, value in arm["variables"].items())
            say(f"variables of {arm['id']}: {pairs}")
    for note in document["notes"]:
        say(f"note: {note}")


def _audit(
    loaded: LoadedRecipe, plan: Plan, adapters: Sequence[Path], *, quiet: bool
) -> tuple[list[Audit], int]:
    """Every verdict that there can be, and the exit code. Arms that fail are reported on standard error."""
    plan = replace(plan, measure=plan.measure.model_copy(update={"rounds": 0}))
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as folder:
        outcome = measure(loaded, plan, Path(folder), adapters, quiet=quiet)
        arms = outcome.run.arms()
        for arm in arms:
            if arm.failure is not None:
                failed = f"{arm.id} cannot be audited: {arm.failure.reason}: {arm.failure.message}"
                say("\n".join([failed, *arm.failure.log_tail]), error=True)
        return list(audit_run(arms, plan.baseline).values()), outcome.exit_code


#: Differences and unknown facts of one arm that are printed; the rest is counted, and `--json` has all.
SHOWN = 12


def _print_audits(audits: Sequence[Audit]) -> None:
    console = Console(highlight=False)

    def below(text: str, style: str) -> None:
        console.print(plain(f"  {text}", style), soft_wrap=True)

    for one in audits:
        console.print(plain(f"{one.arm} against {one.baseline}: {one.verdict}"))
        for difference in one.differences[:SHOWN]:
            below(str(difference), "red")
        if len(one.differences) > SHOWN:
            below(f"and {len(one.differences) - SHOWN} more differences", "red")
        if one.unknown:
            below(f"not observed in both: {', '.join(one.unknown[:SHOWN])}", "yellow")
        for note in one.notes:
            below(note, "dim")
    if not audits:
        console.print("nothing to compare: the recipe names no baseline, or it has one arm", markup=False)
