"""What can be checked before any model is built: files, weights, environments; and whether a run may go on here."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.environments import named_python, python_of
from bench.errors import BenchError
from bench.inputs.dataset import check_dataset, evaluated_input
from bench.measure.process import FOREIGN, WorkerFailure, worker_path
from bench.recipe.codebases import Codebase
from bench.recipe.plan import Arm, Plan
from bench.record import machine
from bench.record.models import ArmRecord, RunRecord


def check_plan(plan: Plan, codebases: Mapping[str, Codebase]) -> list[str]:
    """What would fail or be ignored, in words; nothing when all that a recipe asks for is there."""
    problems: dict[str, list[str]] = {}
    for arm in plan.arms:
        for check in (check_weights, _check_data, _check_device, _check_source):
            try:
                check(arm)
            except BenchError as error:
                problems.setdefault(str(error), []).append(arm.id)
        try:
            interpreter_of(arm, arm.checkout.codebase if arm.checkout else codebases[arm.codebase])
        except BenchError as error:
            problems[str(error)] = [arm.codebase]
    return [
        f"{arms[0]}{f' and {len(arms) - 1} more' if len(arms) > 1 else ''}: {problem}"
        for problem, arms in problems.items()
    ]


def interpreter_of(arm: Arm, codebase: Codebase) -> Path:
    """The interpreter that an arm runs in: its own, that of its named environment, or that of its codebase.

    Args:
        arm: An arm of a plan.
        codebase: Its codebase.

    Returns:
        The path of the interpreter.

    Raises:
        BenchError: It is not there.
    """
    if arm.python is not None:
        # Not resolved: a virtual environment is known by the path of the link.
        python = Path(os.path.abspath(Path(arm.python).expanduser()))
        if not os.access(python, os.X_OK) or python.is_dir():
            raise BenchError("not an interpreter that can be started", where=str(python))
        return python
    if arm.environment is not None:
        return named_python(arm.environment, codebase)
    return python_of(codebase)


_IMPORT = "import sys\nfrom bench.worker.__main__ import load_module\nload_module(sys.argv[1])"


def check_interpreter(python: Path, codebase: Codebase) -> None:
    """Import the adapter of a codebase in an interpreter, as a worker does.

    Raises:
        BenchError: It does not start, or something does not import.
    """
    with tempfile.TemporaryDirectory(prefix="bench-adopt-") as folder:
        variables = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        source = codebase.source_folder
        variables["PYTHONPATH"] = os.pathsep.join(
            [str(worker_path(Path(folder) / "path")), *([str(source)] if source else [])]
        )
        try:
            done = subprocess.run(
                [python, "-c", _IMPORT, str(codebase.adapter_file)],
                cwd=folder,
                env={**variables, **codebase.variables},
                capture_output=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise BenchError(f"cannot be started: {error.strerror or error}", where=str(python)) from None
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BenchError(
            f"the adapter of {codebase.name} cannot run here: {reason[0]}",
            where=str(python),
            hint=f"install what is missing there; adapters need Python 3.10 or newer and {codebase.packages[0]}",
        )


def _check_source(arm: Arm) -> None:
    """The folder that a codebase is imported from is there."""
    if arm.source is not None and not arm.source.is_dir():
        raise BenchError("source is not a folder", where=str(arm.source))


def check_weights(arm: Arm) -> None:
    """Weights that are asked for are there, and the model can take them."""
    asked = arm.workload.weights
    if asked not in ("random", "transplant") and arm.workload.own_model and arm.weights is None:
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
    check_dataset(workload.input, workload.task)
    if workload.evaluates:
        check_dataset(evaluated_input(workload), "eval")


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


def refuse_other_source(wanted: Path, found: Path, named: str) -> None:
    """An arm that is named after a revision or a folder must not measure an installed package instead."""
    if not found.resolve().is_relative_to(wanted.resolve()):
        raise WorkerFailure("environment", f"imports {found}, not {named}", "prepare")
