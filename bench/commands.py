"""What the commands do, between their arguments and the modules that do the work."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.console import Console
from rich.table import Table

from bench import environments
from bench.audit import Audit, audit_run
from bench.codebases import find_codebases, get_codebase
from bench.environments import cache_folder
from bench.errors import BenchError, ExitCode, did_you_mean
from bench.plan import Plan, estimate_s_per_step, level_text, make_plan, steps_of, work_key
from bench.progress import listener
from bench.recipe import LoadedRecipe, load_recipe
from bench.record import Run, RunRecord, block_times, find_runs, resolve_run
from bench.session import Session, new_run, resumed

if TYPE_CHECKING:
    from bench.calibration import Calibration
    from bench.check import Result, Settings
    from bench.datasets import Checked
    from bench.evaluation import Evaluation
    from bench.report import Verdict


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
                    "s_per_iter": _median_s(self.run, arm.id),
                }
                for arm in arms
            ],
        }


def _median_s(run: Run, arm: str) -> float | None:
    blocks = block_times(run.samples(arm))
    return float(blocks["s_per_step"].median()) if len(blocks) else None


def plan_of(
    recipe: Path, settings: Sequence[str], adapters: Sequence[Path], *, aa: bool = False
) -> tuple[LoadedRecipe, Plan]:
    loaded = load_recipe(recipe, settings)
    return loaded, make_plan(loaded, find_codebases(adapters), aa=aa)


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


def resume(name: str, results: Path, adapters: Sequence[Path], *, retry_failed: bool, quiet: bool) -> Outcome:
    run = Run(resolve_run(name, results))
    plan, record = resumed(run, find_codebases(adapters))
    return _execute(run, record, plan, adapters, quiet=quiet, retry_failed=retry_failed)


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
    with listener(plan, quiet=quiet, done=len(run.journal())) as shown:
        session = Session(plan, run, record, find_codebases(adapters), cache_folder(), shown, strict)
        code = session.execute(retry_failed=retry_failed)
    return Outcome(run, code)


def print_outcome(outcome: Outcome, *, quiet: bool) -> None:
    """Where the run is, and what to do next."""
    print(outcome.run.folder)
    if quiet:
        return
    say = Console(stderr=True, highlight=False)
    for arm in outcome.run.arms():
        if arm.failure is not None:
            say.print(
                f"failed: {arm.id}: {arm.failure.reason}: {arm.failure.message}", markup=False, style="red"
            )
    if outcome.exit_code == ExitCode.INTERRUPTED:
        say.print(f"interrupted; complete it with: bench run --resume {outcome.run.folder}", markup=False)
    else:
        say.print(f"next: bench report {outcome.run.folder}", markup=False)


def past_s_per_step(results: Path) -> dict[str, float]:
    """Median seconds per step of the work that past runs of this results folder measured; later runs win."""
    past: dict[str, float] = {}
    for folder in find_runs(results)[-20:]:
        run = Run(folder)
        for arm in run.arms():
            seconds = _median_s(run, arm.id)
            if seconds is not None:
                past[work_key(arm.codebase, arm.workload, arm.options)] = seconds
    return past


def dry_run(plan: Plan, results: Path) -> dict[str, Any]:
    """The plan as data, with an estimate of its time."""
    past = past_s_per_step(results)
    arms, total_s, measured = [], 0.0, True
    for arm in plan.arms:
        seconds, known = estimate_s_per_step(arm, past)
        steps = steps_of(arm, plan.measure)
        launches = 1 if arm.workload.task == "train_eval" else plan.measure.launches
        arm_s = seconds * steps + launches * 10.0  # starting a worker takes some seconds
        total_s, measured = total_s + arm_s, measured and known
        arms.append(
            {
                "id": arm.id,
                "codebase": arm.codebase,
                "cell": arm.cell,
                "levels": dict(arm.levels),
                "model": arm.workload.model,
                "task": arm.workload.task,
                "ranks": arm.workload.ranks,
                "steps": steps,
                "estimate_s": round(arm_s, 1),
                "estimate_from": "a past run" if known else "a rough count of operations",
            }
        )
    return {
        "recipe": plan.name,
        "cells": len(plan.cells),
        "arms": arms,
        "measure": plan.measure.model_dump(),
        "baseline": dict(plan.baseline),
        "estimate_s": round(total_s, 1),
        "estimate_from": "past runs" if measured else "rough counts of operations where no past run tells",
    }


def print_dry_run(plan: Plan, document: dict[str, Any]) -> None:
    table = Table(
        "arm", "model", "task", "levels", "steps", "about", title=f"{plan.name}: {len(plan.arms)} arms"
    )
    for arm in document["arms"]:
        levels = ", ".join(f"{key}={level_text(value)}" for key, value in arm["levels"].items())
        table.add_row(
            arm["id"], arm["model"], arm["task"], levels, str(arm["steps"]), f"{arm['estimate_s']:.0f} s"
        )
    console = Console()
    console.print(table)
    measure = plan.measure
    design = f"{measure.launches} launches × {measure.rounds} rounds × {measure.steps} steps"
    if all(arm.workload.task == "train_eval" for arm in plan.arms):
        design = "training to the last step (evaluations counted as steps)"
    console.print(
        f"{design} in {document['cells']} cells"
        f"{' (interleaved)' if measure.interleave else ''}; about {document['estimate_s'] / 60:.0f} min,"
        f" from {document['estimate_from']}",
        markup=False,
    )


def report(names: Sequence[str], results: Path, output: Path | None) -> Path:
    from bench.report import generate

    runs = [Run(resolve_run(name, results)) for name in names]
    first = runs[0].record()
    target = output or Path("reports") / str(first.recipe["name"]) / first.id
    return generate(runs, target, codebases=find_codebases(), verdicts=verdicts(runs))


def published_report(names: Sequence[str], results: Path, output: Path | None) -> Path:
    from bench.report.published import generate_published

    runs = [Run(resolve_run(name, results)) for name in names]
    return generate_published(output or Path("reports") / "reference", measured=runs)


def transcribe(files: Sequence[Path]) -> list[Path]:
    """The tables of the model-zoo document, written where `bench report --published` reads them."""
    from bench.importers.model_zoo import transcribe
    from bench.importers.published import PUBLISHED, ZOO

    if len(files) != 1:
        raise BenchError("model-zoo takes one document")
    return transcribe(files[0], PUBLISHED / ZOO)


def evaluate(ground_truth: Path, detections: Path, iou_type: str, backend: str) -> list[Evaluation]:
    from bench import evaluation

    wanted: dict[str, tuple[Literal["bbox", "segm"], ...]]
    wanted = {"bbox": ("bbox",), "segm": ("segm",), "both": ("bbox", "segm")}
    if iou_type not in wanted:
        raise BenchError(f"unknown IoU type '{iou_type}'", hint=did_you_mean(iou_type, wanted))
    return [evaluation.evaluate(ground_truth, detections, one, backend=backend) for one in wanted[iou_type]]


def print_evaluations(found: Sequence[Evaluation]) -> None:
    """The 12 numbers, one column per IoU type, and the images they are of."""
    console = Console(highlight=False)
    table = Table("", *(one.iou_type for one in found))
    for name in found[0].metrics:
        values = (one.metrics[name] for one in found)
        table.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values))
    console.print(table)
    one = found[0]
    console.print(
        f"{len(one.image_ids)} images, {one.images_without_objects} of them without objects; {one.objects} objects,"
        f" {one.crowds} crowds, {one.detections} detections; evaluated by {one.backend}",
        markup=False,
    )


def print_splits(splits: dict[str, dict[str, Any]], *, as_json: bool) -> None:
    """What was written, a line per split."""
    if as_json:
        print(json.dumps(splits, indent=1))
        return
    for split, counts in splits.items():
        print(f"{split}: {', '.join(f'{number} {name}' for name, number in counts.items())}")


def print_checked(found: Checked) -> None:
    for split, counts in found.splits.items():
        numbers = ", ".join(f"{value} {name}" for name, value in counts.items() if name != "classes")
        print(f"{split}: {numbers.replace('_', ' ')}, {len(counts['classes'])} classes")
    for problem in found.problems:
        print(f"{problem.split}: {problem.kind}: {problem.where}: {problem.text}")
    print("no problem found" if not found.problems else f"{len(found.problems)} problems")


def verdicts(runs: Sequence[Run]) -> dict[tuple[str, str], Verdict]:
    """The audit's verdicts by (run, arm), as tables show them."""
    from bench.report import Verdict

    found = {}
    for run in runs:
        record = run.record()
        for arm, audit in audit_run(run.arms(), record.baseline).items():
            text = "equal" if audit.equal else "unequal work"
            found[record.id, arm] = Verdict(text, audit.equal, tuple(map(str, audit.differences)))
    return found


def audit(recipe: Path, settings: Sequence[str], adapters: Sequence[Path], *, quiet: bool) -> list[Audit]:
    """Start every arm once, let it describe its work and take one step, and compare; nothing is timed or kept."""
    loaded, plan = plan_of(recipe, settings, adapters)
    once = {"warmup": 1, "rounds": 0, "phase_steps": 0, "memory_steps": 0, "predict": False}
    plan = replace(plan, measure=plan.measure.model_copy(update=once))
    with tempfile.TemporaryDirectory(prefix="bench-audit-") as folder:
        outcome = measure(loaded, plan, Path(folder), adapters, quiet=quiet)
        arms = outcome.run.arms()
        failed = [arm for arm in arms if arm.failure is not None]
        for arm in failed:
            assert arm.failure is not None
            say = f"{arm.id} cannot be audited: {arm.failure.reason}: {arm.failure.message}"
            print("\n".join([say, *arm.failure.log_tail]), file=sys.stderr)
        if outcome.exit_code:
            raise SystemExit(outcome.exit_code)
        return list(audit_run(arms, plan.baseline).values())


def print_audits(audits: Sequence[Audit]) -> None:
    console = Console(highlight=False)
    for one in audits:
        console.print(
            f"{one.arm} against {one.baseline}: {'equal' if one.equal else 'unequal work'}", markup=False
        )
        for difference in one.differences:
            console.print(f"  {difference}", markup=False, style="red", soft_wrap=True)
        if one.unknown:
            console.print(f"  not known of both: {', '.join(one.unknown)}", markup=False, style="dim")
    if not audits:
        console.print("nothing to compare: the recipe names no baseline, or it has one arm", markup=False)


def compare(a: str, b: str, results: Path, *, as_json: bool) -> None:
    from bench.report import comparison_blocks, comparison_table, resolve_side, show, to_json

    comparison = comparison_table(resolve_side(a, results), resolve_side(b, results))
    if as_json:
        print(json.dumps(to_json(comparison), indent=1))
    else:
        show(comparison_blocks(comparison), Console())


def check(
    subject: str,
    overrides: Sequence[str],
    adapters: Sequence[Path],
    sources: Sequence[str],
    base: str | None,
    head: str,
    baseline: str | None,
    reference: str | None,
    settings: Settings,
    results: Path,
    *,
    quiet: bool,
) -> Result:
    """A recipe between two revisions, a recipe against a stored run, or a stored run against another."""
    from bench import calibration, checkouts
    from bench import check as gatekeeper

    if (base is None) == (baseline is None):
        raise BenchError("give --base REVISION or --baseline RUN")
    if baseline and (sources or head != "HEAD"):
        raise BenchError("--source and --head are for --base: a stored run is compared with what is here now")
    if base and reference:
        raise BenchError("--reference is for --baseline: two revisions are measured side by side")
    cache = cache_folder()
    earlier = Run(resolve_run(baseline, results)) if baseline else None
    if earlier and not Path(subject).is_file():
        return gatekeeper.check_stored(
            Run(resolve_run(subject, results)), earlier, settings, cache, reference
        )
    codebases = find_codebases(adapters)
    loaded, plan = plan_of(Path(subject), overrides, adapters)
    notes = list(calibration.impossible(plan, settings, cache))
    for note in notes if not quiet else ():
        print(note, file=sys.stderr)
    if earlier:
        return gatekeeper.check_against_run(
            loaded, plan, codebases, earlier, settings, results, cache, reference=reference, quiet=quiet
        )
    found = checkouts.sources_of(sources, codebases)
    return gatekeeper.check_revisions(
        loaded, plan, codebases, found, str(base), head, settings, results, cache, notes=notes, quiet=quiet
    )


def tell(result: Result, junit: Path | None, comment: Path | None, *, as_json: bool) -> None:
    """Print the outcome of a check, and hand it to the CI system that runs this."""
    from bench import gate_output
    from bench.report import show

    step_summary = os.environ.get("GITHUB_STEP_SUMMARY")
    gate_output.write(result, junit, comment, Path(step_summary) if step_summary else None)
    if os.environ.get("GITHUB_ACTIONS"):  # the runner reads both streams, and standard output is a document's
        print("\n".join(gate_output.workflow_commands(result)), file=sys.stderr)
    if as_json:
        print(json.dumps(result.as_json(), indent=1))
    else:
        show(gate_output.blocks(result))


def calibrate(
    recipe: Path,
    overrides: Sequence[str],
    adapters: Sequence[Path],
    settings: Settings,
    launches: int,
    results: Path,
    *,
    quiet: bool,
) -> list[Calibration]:
    from bench import calibration

    loaded, plan = plan_of(recipe, overrides, adapters)
    return calibration.calibrate(
        loaded, plan, find_codebases(adapters), settings, launches, results, cache_folder(), quiet=quiet
    )


def print_calibrations(found: Sequence[Calibration]) -> None:
    from bench.gate_output import calibration_blocks
    from bench.report import show

    show(calibration_blocks(found))


def history(results: Path, output: Path | None, *, bisect: bool, as_json: bool) -> None:
    """Series of the stored runs on standard output; their figures into a folder."""
    from bench import series
    from bench.report import show

    found, notes = series.collect(results)
    path = series.write(found, notes, output or Path("reports") / "history")
    if as_json:
        print(json.dumps([one.as_json() for one in found], indent=1))
    else:
        show(series.blocks(found, notes, bisect=bisect, figures=False))
        print(path)


def create_environments(
    names: Sequence[str], groups: Sequence[str], adapters: Sequence[Path], *, everything: bool
) -> None:
    codebases = find_codebases(adapters)
    if everything:
        names = [name for name, codebase in codebases.items() if codebase.environment.kind == "own"]
    if not names:
        raise BenchError("name a codebase, or --all", hint=f"known: {', '.join(codebases)}")
    for name in names:
        codebase = get_codebase(name, codebases)
        print(environments.create(codebase, groups, progress=lambda text: print(text, file=sys.stderr)))


def check_environment(name: str, adapters: Sequence[Path]) -> list[str]:
    return [str(drift) for drift in environments.check(get_codebase(name, find_codebases(adapters)))]


def remove_environments(name: str, adapters: Sequence[Path]) -> list[Path]:
    return environments.remove(get_codebase(name, find_codebases(adapters)))
