"""`bench calibrate`: what a check can see on this machine, measured by checking every arm against itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from bench.errors import BenchError
from bench.gate import decide, simulate
from bench.gate.check import FEWEST_LAUNCHES, FIRST_LAUNCHES, PerLaunch, doubled, finite, lean
from bench.gate.metrics import Settings
from bench.gate.simulate import Noise
from bench.gate.values import SIDES, interleaved, side_id
from bench.judge import ratio
from bench.measure.progress import Quiet
from bench.measure.session import Session, new_run
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe
from bench.recipe.plan import Checkout, Plan, work_key
from bench.recipe.workload import Workload
from bench.record import machine
from bench.record.run import write_atomic
from bench.record.samples import block_times


@dataclass(frozen=True)
class Calibration:
    """What an A/A run of one arm showed on a machine, and what a check of it can see.

    ``start_s``: to start and warm up base and head; ``round_s``: one block of each. ``smallest_slowdown``: found in
    95 % of checks at this tolerance, budget and number of rounds.
    """

    arm: str
    recipe: str
    machine: str
    created_utc: str
    noise: Noise
    rounds: int
    start_s: float
    round_s: float
    false_alarms: simulate.FalseAlarms
    tolerance: float
    budget_s: float
    smallest_slowdown: float
    suggestion: simulate.Suggestion
    load_average: list[float]

    def as_json(self) -> dict[str, Any]:
        document = dataclasses.asdict(self)
        document["smallest_slowdown"] = finite(self.smallest_slowdown)
        document["suggestion"]["smallest_slowdown"] = finite(self.suggestion.smallest_slowdown)
        return document


def calibrate(
    loaded: LoadedRecipe,
    plan: Plan,
    codebases: Mapping[str, Codebase],
    settings: Settings,
    launches: int,
    results: Path,
    cache: Path,
    *,
    quiet: bool,
) -> list[Calibration]:
    """Measure every arm against itself, as a check would, and store what that says under the machine's fingerprint.

    ``launches``: of the A/A run. ``settings.budget_s``: the budget of the checks to come.
    """
    if launches < FIRST_LAUNCHES:
        raise BenchError(f"{launches} launches are too few to estimate their spread", hint="take 12 or more")
    nowhere: Mapping[str, Checkout | None] = dict.fromkeys(SIDES)
    chosen, pairs = doubled(
        lean(plan, settings, launches=1), dict.fromkeys((a.codebase for a in plan.arms), nowhere)
    )
    chosen = replace(chosen, name=f"{plan.name}-calibration")
    ends: list[float] = []

    def more_launches() -> int:
        """The first launch also prepares data and weights: the others tell what a launch takes."""
        ends.append(time.monotonic())
        return launches - 1 if len(ends) == 1 else 0

    run, record = new_run(loaded, chosen, results, ["bench", *sys.argv[1:]])
    record.aa = True
    shown: Quiet = Quiet() if quiet else PerLaunch()
    code = Session(chosen, run, record, codebases, cache, shown, more_launches=more_launches).execute()
    if code:
        failed = "; ".join(f"{arm.id}: {arm.failure.message}" for arm in run.arms() if arm.failure)
        raise MeasuringError(failed or "interrupted", code)
    rounds = plan.measure.rounds
    launch_s = (ends[-1] - ends[0]) / (launches - 1) / len(pairs)  # of one pair, its rounds included
    found = interleaved(run, pairs, settings, cache)
    arms = {arm.id: arm for arm in run.arms()}
    calibrations = []
    for name in pairs:
        base, head = (block_times(run.samples(side_id(name, side))) for side in SIDES)
        paired = ratio.pair(head, base)
        noise = simulate.noise(paired.launch, paired.log_ratio)
        round_s = _round_s(base) + _round_s(head)
        start_s = max(0.0, launch_s - rounds * round_s)
        arm = arms[side_id(name, "base")]
        target = settings.metrics_of(arm.workload.task)[0]
        check = decide.Plan.within(max(FEWEST_LAUNCHES, int(settings.budget_s / launch_s)))
        calibration = Calibration(
            arm=name,
            recipe=plan.name,
            machine=machine.fingerprint(record.machine),
            created_utc=machine.utc_now(),
            noise=noise,
            rounds=rounds,
            start_s=round(start_s, 4),
            round_s=round(round_s, 4),
            false_alarms=simulate.false_alarms(found[name, target.name][1], target, check),
            tolerance=target.tolerance,
            budget_s=settings.budget_s,
            smallest_slowdown=simulate.smallest_slowdown(noise, target, check, rounds),
            suggestion=simulate.suggest(noise, start_s, round_s, settings.budget_s, target),
            load_average=record.load_before,
        )
        path = _calibration_path(cache, calibration.machine, arm.codebase, arm.workload, arm.options, plan)
        write_atomic(path, json.dumps(calibration.as_json(), indent=1))
        calibrations.append(calibration)
    return calibrations


def _round_s(blocks: pd.DataFrame) -> float:
    return float((blocks["s_per_step"] * blocks["steps"]).median())


class MeasuringError(BenchError):
    """An arm failed, or the user interrupted."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message, hint="bench run with the same recipe shows the log of the arm")
        self.exit_code = exit_code


def _calibration_path(
    cache: Path, fingerprint: str, codebase: str, workload: Workload, options: Mapping[str, Any], plan: Plan
) -> Path:
    """One file per machine and work; the steps of a block are part of the work, since noise averages over them."""
    key = repr((work_key(codebase, workload, options), plan.measure.steps, plan.measure.settle))
    return cache / "calibration" / fingerprint / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def impossible(plan: Plan, settings: Settings, cache: Path) -> Iterator[str]:
    """What the calibration of this machine says against the check that is asked for."""
    fingerprint = machine.fingerprint(machine.describe_machine())
    for arm in plan.arms:
        path = _calibration_path(cache, fingerprint, arm.codebase, arm.workload, arm.options, plan)
        target = settings.metrics_of(arm.workload.task)[0]
        try:
            stored = json.loads(path.read_text())
            launch_s = stored["start_s"] + plan.measure.rounds * stored["round_s"]
            seen = Noise(**stored["noise"])
        except FileNotFoundError:
            yield f"{arm.id}: this machine is not calibrated for this work (bench calibrate)"
            continue
        except (OSError, ValueError, KeyError, TypeError):
            yield f"{arm.id}: the calibration of this machine cannot be read ({path})"
            continue
        fit = int(settings.budget_s / launch_s)
        if fit < FEWEST_LAUNCHES:
            yield (
                f"{arm.id}: {settings.budget_s:.0f} s are about {fit} launches on this machine; a regression needs "
                f"{FEWEST_LAUNCHES} to be confirmed, about {FEWEST_LAUNCHES * launch_s:.0f} s"
            )
            continue
        warning = simulate.warn_impossible(seen, target, decide.Plan.within(fit), plan.measure.rounds)
        if warning:
            yield f"{arm.id}: {warning}"
