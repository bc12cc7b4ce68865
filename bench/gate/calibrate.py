"""`bench calibrate`: what a check can see on this machine, measured by checking every arm against itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.gate import simulate
from bench.gate.check import FIRST_LAUNCHES, Subject, doubled, finite, lean
from bench.gate.decide import FEWEST_LAUNCHES, Launches, Schedule, Spread
from bench.gate.metrics import Metric, Settings
from bench.gate.simulate import Noise
from bench.gate.values import SIDES, interleaved, side_id
from bench.recipe.plan import Arm, Checkout, Plan, work_key
from bench.recipe.workload import Workload
from bench.record import machine
from bench.record.run import Run, write_atomic
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
    bias: simulate.Bias
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


def calibrate(subject: Subject, launches: int) -> list[Calibration]:
    """Measure every arm against itself, as a check would, and store what that says under the machine's fingerprint.

    Args:
        subject: the recipe, and the settings of the checks to come.
        launches: of the A/A run.

    Returns:
        A calibration for each arm.

    Raises:
        BenchError: for too few launches, or when an arm fails.
    """
    if launches < FIRST_LAUNCHES:
        raise BenchError(f"{launches} launches are too few to estimate their spread", hint="take 12 or more")
    plan, settings, cache = subject.plan, subject.settings, subject.cache
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

    run, record = subject.new_run(chosen, "calibration")
    record.aa = True
    if code := subject.execute(chosen, run, record, more_launches):
        failed = "; ".join(f"{arm.id}: {arm.failure.message}" for arm in run.arms() if arm.failure)
        raise MeasuringError(failed or "interrupted", code)
    launch_s = (ends[-1] - ends[0]) / (launches - 1) / len(pairs)  # of one pair, its rounds included
    found = interleaved(run, pairs, settings, cache)
    calibrations = []
    for name in pairs:
        arm = next(one for one in run.arms() if one.id == side_id(name, "base"))
        target = settings.metrics_of(arm.workload.task)[0]
        calibration = _calibration(
            run, name, plan, target, found[name, target.name][1], settings.budget_s, launch_s
        )
        path = _calibration_path(cache, calibration.machine, arm.codebase, arm.workload, arm.options, plan)
        write_atomic(path, json.dumps(calibration.as_json(), indent=1))
        calibrations.append(calibration)
    return calibrations


def _calibration(
    run: Run, name: str, plan: Plan, target: Metric, seen: Launches, budget_s: float, launch_s: float
) -> Calibration:
    """What the A/A run says of one arm; ``seen``: its launches, ``launch_s``: seconds that one takes."""
    record, rounds = run.record(), plan.measure.rounds
    blocks = [block_times(run.samples(side_id(name, side))) for side in SIDES]
    tables = [table.set_index(["launch", "round"])["s_per_step"] for table in blocks]
    of_launch = (tables[1] / tables[0]).dropna().groupby("launch")
    noise = simulate.noise([np.log(np.asarray(ratios, dtype=np.float64)) for _, ratios in of_launch])
    round_s = sum(float((table["s_per_step"] * table["steps"]).median()) for table in blocks)
    start_s = max(0.0, launch_s - rounds * round_s)
    check = Schedule.within(max(FEWEST_LAUNCHES, int(budget_s / launch_s)))
    return Calibration(
        arm=name,
        recipe=plan.name,
        machine=machine.fingerprint(record.machine),
        created_utc=machine.utc_now(),
        noise=noise,
        rounds=rounds,
        start_s=round(start_s, 4),
        round_s=round(round_s, 4),
        bias=simulate.bias(seen.values, target),
        false_alarms=simulate.false_alarms(seen, target, check),
        tolerance=target.tolerance,
        budget_s=budget_s,
        smallest_slowdown=simulate.smallest_slowdown(noise, target, check, rounds),
        suggestion=simulate.suggest(noise, start_s, round_s, budget_s, target),
        load_average=record.load_before,
    )


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


@dataclass(frozen=True)
class _Stored:
    """Noise of an arm on this machine, and the seconds of one launch."""

    noise: Noise
    launch_s: float


def _stored(arm: Arm, plan: Plan, cache: Path) -> _Stored:
    """The calibration of this machine for the work of an arm. Raises FileNotFoundError, or others if damaged."""
    fingerprint = machine.fingerprint(machine.describe_machine())
    path = _calibration_path(cache, fingerprint, arm.codebase, arm.workload, arm.options, plan)
    stored = json.loads(path.read_text())
    launch_s = stored["start_s"] + plan.measure.rounds * stored["round_s"]
    return _Stored(Noise(**stored["noise"]), launch_s)


def calibrated(plan: Plan, cache: Path) -> dict[str, Spread]:
    """Spread of the launches of each arm against itself, for the arms that this machine is calibrated for."""
    found = {}
    for arm in plan.arms:
        try:
            seen = _stored(arm, plan, cache).noise
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found[arm.id] = Spread(seen.launch_mean_sd(plan.measure.rounds), seen.launches - 1)
    return found


def impossible(plan: Plan, settings: Settings, cache: Path) -> Iterator[str]:
    """What the calibration of this machine says against the check that is asked for."""
    for arm in plan.arms:
        target = settings.metrics_of(arm.workload.task)[0]
        try:
            stored = _stored(arm, plan, cache)
        except FileNotFoundError:
            yield f"{arm.id}: this machine is not calibrated for this work (bench calibrate)"
            continue
        except (OSError, ValueError, KeyError, TypeError):
            yield f"{arm.id}: the calibration of this machine cannot be read (in {cache / 'calibration'})"
            continue
        fit = int(settings.budget_s / stored.launch_s)
        if fit < FEWEST_LAUNCHES:
            yield (
                f"{arm.id}: {settings.budget_s:.0f} s are about {fit} launches on this machine; a regression needs "
                f"{FEWEST_LAUNCHES} to be confirmed, about {FEWEST_LAUNCHES * stored.launch_s:.0f} s"
            )
            continue
        warning = simulate.warn_impossible(stored.noise, target, Schedule.within(fit), plan.measure.rounds)
        if warning:
            yield f"{arm.id}: {warning}"
