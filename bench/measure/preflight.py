"""What can be checked before any model is built: files, weights, environments; and whether a run may go on here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.environments import python_of
from bench.errors import BenchError
from bench.inputs.dataset import check_dataset
from bench.measure.process import WorkerFailure
from bench.recipe.codebases import Codebase
from bench.recipe.plan import Arm, Checkout, Plan
from bench.record import machine
from bench.record.models import ArmRecord, RunRecord


def check_plan(plan: Plan, codebases: Mapping[str, Codebase]) -> list[str]:
    """What would fail or be ignored, in words; nothing when all that a recipe asks for is there."""
    problems: dict[str, None] = {}
    for arm in plan.arms:
        for check in (check_weights, _check_data, _check_device):
            try:
                check(arm)
            except BenchError as error:
                problems[f"{arm.id}: {error}"] = None
        try:
            python_of(arm.checkout.codebase if arm.checkout else codebases[arm.codebase])
        except BenchError as error:
            problems[f"{arm.codebase}: {error}"] = None
    return list(problems)


def check_weights(arm: Arm) -> None:
    """Weights that are asked for are there, and the model can take them."""
    asked = arm.workload.weights
    if asked not in ("random", "transplant") and "://" in arm.workload.model and arm.weights is None:
        raise BenchError(
            f"weights {asked} are of canonical models, and {arm.workload.model} is none",
            hint="give the arm weights of its own: arms: - {codebase: …, weights: FILE}",
        )
    for path in (arm.weights, None if asked in ("random", "transplant") else asked):
        if path is not None:
            file = Path(path.replace("{model}", arm.workload.model)).expanduser()
            if not file.exists():
                raise BenchError("weights file not found", where=str(file))


def _check_data(arm: Arm) -> None:
    """The data set has the splits that the arm reads."""
    workload = arm.workload
    check_dataset(workload.input.dataset, workload.input.split, workload.task)
    if workload.evaluates:
        check_dataset(workload.input.dataset, workload.eval_split, "eval")


def _check_device(arm: Arm) -> None:
    """A GPU is here, where the recipe asks for one."""
    if arm.workload.device == "cuda" and not machine.gpu_facts().get("gpus"):
        raise BenchError(
            "device: cuda, and this machine shows no NVIDIA GPU", hint="--set workload.device=cpu"
        )


def refuse_other_place(record: RunRecord, arms: list[ArmRecord], environment: Mapping[str, Any]) -> None:
    """A run goes on only where it began: on the same kind of machine, with the same bench.

    Args:
        record: Of the run that is to go on.
        arms: What it has measured.
        environment: Facts of the machine now.

    Raises:
        BenchError: names what is different.
    """
    measured = any(arm.blocks for arm in arms)
    there, here = machine.fingerprint(record.machine), machine.fingerprint(environment)
    if measured and there != here:
        raise BenchError(
            f"the run began on a machine of another kind ({there}, this one is {here})",
            hint="one ratio cannot mix two machines: start a new run here",
        )


def refuse_other_revision(began: str | None, now: str | None, what: str) -> None:
    """A run goes on with the revision that it began with. Raises BenchError."""
    if began and now and began != now:
        raise BenchError(
            f"the run began with {what} {began[:12]}, and this is {now[:12]}",
            hint="check that revision out, or start a new run",
        )


def refuse_other_packages(began: Mapping[str, str], now: Mapping[str, str], arm: str) -> None:
    """An arm goes on with the packages that it began with. Raises BenchError."""
    if not began or not now:
        return
    changed = [
        f"{name} {began.get(name, 'missing')} → {now.get(name, 'missing')}"
        for name in sorted({*began, *now})
        if began.get(name) != now.get(name)
    ]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise BenchError(
            f"{arm}: packages changed since the run began: {shown}",
            hint="restore the environment (bench env create), or start a new run",
        )


def refuse_other_source(checkout: Checkout, imported: str | None) -> None:
    """An arm that is named after a revision must not measure an installed package instead."""
    found = Path(imported) if imported else checkout.codebase.folder
    if not found.resolve().is_relative_to(checkout.tree.resolve()):
        raise WorkerFailure("environment", f"imports {found}, not the revision under check", "prepare")
