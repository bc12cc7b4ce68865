"""Judge stored runs: no new measurement."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.gate import decide
from bench.gate.check import Comparison, PerLaunch, Result, _name, lean
from bench.gate.metrics import TIME_METRICS, Metric, Settings
from bench.gate.values import _metrics_of, badness
from bench.judge.pairs import baseline_of
from bench.judge.steady import Floats
from bench.measure.progress import Quiet
from bench.measure.session import Session, new_run
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe
from bench.recipe.plan import Plan, baseline_ids, work_key
from bench.record import machine
from bench.record.models import ArmRecord
from bench.record.run import Run

# -- stored runs ----------------------------------------------------------------------------------------------


def check_stored(
    head: Run, base: Run, settings: Settings, cache: Path, reference: str | None = None, **about: Any
) -> Result:
    """Judge a run against an earlier one, arm by arm.

    On machines of one kind times are compared as they are. On others they are compared as ratios to a reference arm
    that both runs measured: ``reference`` (label or codebase), else the recipe's baseline; without one that is a
    BenchError.
    """
    records = {"base": base.record(), "head": head.record()}
    same = machine.fingerprint(records["base"].machine) == machine.fingerprint(records["head"].machine)
    earlier = {_identity(arm): arm for arm in base.arms() if arm.status == "ok"}
    arms = [arm for arm in head.arms() if arm.status == "ok" and _identity(arm) in earlier]
    by_id = {arm.id: arm for arm in arms}
    settings.refuse_unused(arm.workload.task for arm in arms)
    asked = records["head"].baseline
    through = baseline_ids(arms, {**asked, "codebase": reference}) if reference else {}
    found: dict[tuple[str, str], tuple[Metric, Floats, Floats]] = {}
    used: dict[str, None] = {}
    for arm in arms:
        for target in _metrics_of(settings, arm):
            sides = badness(base, earlier[_identity(arm)], target, cache), badness(head, arm, target, cache)
            if target.name in TIME_METRICS and (reference or not same):
                fixed = by_id.get(through.get(arm.id, "")) if reference else baseline_of(arm, arms, asked)
                if fixed is None:
                    wanted = f"'{reference}'" if reference else "that both runs measured"
                    because = "" if same else "the runs are of different machines, and "
                    raise BenchError(
                        f"{because}{arm.id} has no reference arm {wanted}",
                        hint="measure an arm that does not change in both runs and name it: --reference ARM",
                    )
                if fixed.id == arm.id:
                    continue
                used[fixed.label] = None
                theirs = (
                    badness(base, earlier[_identity(fixed)], target, cache),
                    badness(head, fixed, target, cache),
                )
                sides = (sides[0] - theirs[0]).dropna(), (sides[1] - theirs[1]).dropna()
            means = [decide.launch_means(side.index.get_level_values("launch"), side) for side in sides]
            found[arm.id, target.name] = target, means[0], means[1]
    plan = decide.Plan(settings.false_alarm, settings.false_pass)
    verdict = decide.decide_stored({_name(*key): value for key, value in found.items()}, plan)
    state: Any = verdict.state
    how = "stored run of a machine of the same kind" if same else "stored run of ANOTHER machine"
    if used:
        how += f", through the reference arm {', '.join(used)} measured in both (ratio of ratios)"
    notes = list(about.pop("notes", ()))
    missing = [arm.id for arm in head.arms() if arm not in arms]
    if missing:
        notes.append(f"not in both runs, so not compared: {', '.join(missing)}")
    notes.append("not interleaved: what the machine did between the two runs is part of the difference")
    return Result(
        recipe=str(records["head"].recipe.get("name", "")),
        base=base.folder.name,
        head=head.folder.name,
        how=how,
        state=state,
        exit_code=settings.exit_code(state),
        comparisons=tuple(
            Comparison(arm, target, verdict.decisions[_name(arm, metric)])
            for (arm, metric), (target, _, _) in found.items()
        ),
        notes=tuple(notes),
        run=str(head.folder),
        **about,
    )


def _identity(arm: ArmRecord) -> tuple[str, str]:
    return arm.label, work_key(arm.codebase, arm.workload, arm.options)


def check_against_run(
    loaded: LoadedRecipe,
    plan: Plan,
    codebases: Mapping[str, Codebase],
    base: Run,
    settings: Settings,
    results: Path,
    cache: Path,
    *,
    reference: str | None = None,
    quiet: bool,
) -> Result:
    """Measure the recipe now, as `bench run` does, and judge it against a stored run."""
    started = time.monotonic()
    plan = lean(plan, settings, time_budget_s=settings.budget_s)
    settings.refuse_unused(arm.workload.task for arm in plan.arms)
    run, record = new_run(loaded, plan, results, ["bench", *sys.argv[1:]])
    shown: Quiet = Quiet() if quiet else PerLaunch()
    code = Session(plan, run, record, codebases, cache, shown).execute()
    elapsed_s = round(time.monotonic() - started, 1)
    warnings = run.record().warnings
    if code:
        errors = [f"{a.id} failed in {a.failure.stage}: {a.failure.message}" for a in run.arms() if a.failure]
        about = plan.name, base.folder.name, run.folder.name, "stored run"
        return Result(*about, "error", code, errors=tuple(errors or ["interrupted"]), run=str(run.folder),
                      elapsed_s=elapsed_s, notes=tuple(warnings))  # fmt: skip
    return check_stored(run, base, settings, cache, reference, elapsed_s=elapsed_s, notes=warnings)
