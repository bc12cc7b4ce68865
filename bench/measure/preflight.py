"""What can be checked before any model is built: files, weights, environments; and whether a run may go on here."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench.environments import interpreter_path, named_python, python_of
from bench.errors import BenchError, near, read_file
from bench.inputs import weights as mappings
from bench.inputs.batches import check_objects
from bench.inputs.dataset import open_all
from bench.inputs.npz import check_npz, read_npz
from bench.measure.process import FOREIGN, WorkerFailure, worker_path
from bench.recipe.codebases import Codebase
from bench.recipe.compose import FILES, near_file, refuse_missing_file
from bench.recipe.plan import Arm, Plan
from bench.recipe.workload import Workload
from bench.record import machine
from bench.record.models import ArmRecord, RunRecord
from bench.record.run import Run

#: The codebase whose seeded initialisation is transplanted into all others; canonical names are its names.
WEIGHTS_SOURCE = "native"
_PICKLE, _ZIP = (0, b"\x80"), (0, b"PK")
#: How files of weights begin: place and bytes.
_MAGIC = {
    ".pth": (_PICKLE, _ZIP),
    ".pt": (_PICKLE, _ZIP),
    ".pkl": (_PICKLE,),
    ".pdparams": (_PICKLE,),
    ".safetensors": ((8, b"{"),),
}


def check_plan(
    plan: Plan,
    codebases: Mapping[str, Codebase],
    cache: Path,
    affinity: Sequence[int] | None = None,
    *,
    elsewhere: bool = False,
) -> list[str]:
    """What would fail or be ignored, as far as it shows without a model: data is read as a run reads it.

    Args:
        plan: What is to be measured.
        codebases: The known ones, by name.
        cache: Folder of the cache.
        affinity: Processors that the recipe asks for.
        elsewhere: The arms run on other machines, so the devices of this one say nothing.

    Returns:
        Problems in words; none when all that a recipe asks for is there and sound.
    """
    read = functools.cache(lambda workload: _error_of(_check_data, workload, cache))
    own = tuple(dict.fromkeys(arm.own_name for arm in plan.arms if arm.own_name))
    found_there: _Faults = {}
    problems: dict[str, list[str]] = {}
    for arm in plan.arms:
        codebase = arm.checkout.codebase if arm.checkout else codebases[arm.codebase]
        found = [
            _error_of(check_weights, arm) or _error_of(_check_formats, arm, codebase),
            read(_as_read(arm.workload)),
            None if elsewhere else _error_of(_check_device, arm),
            None if elsewhere else _error_of(_check_processors, affinity or ()),
            _error_of(_check_source, arm)
            or _error_of(_check_model, arm)
            or _error_of(_check_environment, arm, codebase, own, found_there),
            _error_of(generator) if arm.workload.task == "serve" else None,
        ]
        for problem in filter(None, found):
            problems.setdefault(problem, []).append(arm.id)
    every = len(plan.arms)
    return [
        f"{'all arms' if len(arms) == every > 1 else ', '.join(arms[:2])}"
        f"{f' and {len(arms) - 2} more' if 2 < len(arms) < every else ''}: {problem}"
        for problem, arms in problems.items()
    ]


def _error_of(check: Callable[..., object], *given: Any) -> str | None:
    try:
        check(*given)
    except BenchError as error:
        return str(error)
    return None


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
        python = interpreter_path(Path(arm.python))
        if not os.access(python, os.X_OK) or python.is_dir():
            raise BenchError("not an interpreter that can be started", where=str(python))
        return python
    if arm.environment is not None:
        return named_python(arm.environment, codebase)
    return python_of(codebase)


_STARTED = "Python has started"
_IMPORT = f"""import json, sys
print({_STARTED!r}, flush=True)
from bench.worker.__main__ import load_module
find, faults = load_module(sys.argv[1]).Adapter.find_model, {{}}
for name in sys.argv[2:]:
    try:
        find(name)
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else type(error).__name__ + ": "
        faults[name] = kind + str(error)
print("\\n" + json.dumps(faults))"""


def check_interpreter(
    python: Path, codebase: Codebase, source: Path | None = None, models: Sequence[str] = ()
) -> dict[str, str]:
    """Import the adapter of a codebase in an interpreter, as a worker does, with a checkout before what is installed.

    Args:
        python: The interpreter.
        codebase: The codebase.
        source: The checkout.
        models: The codebase's own names of models, to be looked up there.

    Returns:
        What is wrong with a name, by name.

    Raises:
        BenchError: It does not start, or something does not import.
    """
    python = interpreter_path(python)
    if python.is_dir():
        raise BenchError("this is a folder", where=str(python), hint=f"its interpreter: {python}/bin/python")
    with tempfile.TemporaryDirectory(prefix="bench-adopt-") as folder:
        variables = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        source = source.resolve() if source else codebase.source_folder
        variables["PYTHONPATH"] = os.pathsep.join(
            [str(worker_path(Path(folder) / "path")), *([str(source)] if source else [])]
        )
        try:
            done = subprocess.run(
                [python, "-c", _IMPORT, str(codebase.adapter_file), *models],
                cwd=folder,
                env={**variables, **codebase.variables},
                capture_output=True,
                text=True,
                errors="replace",
            )
        except OSError as error:
            raise BenchError(f"cannot be started: {error.strerror or error}", where=str(python)) from None
    if _STARTED not in done.stdout:
        raise BenchError("this is no Python interpreter of 3.8 or newer", where=str(python))
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise BenchError(
            f"the adapter of {codebase.name} cannot run here: {reason[0]}",
            where=str(python),
            hint=f"install what is missing there; adapters need Python 3.10 or newer and {codebase.packages[0]}",
        )
    faults: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return faults


def _check_source(arm: Arm) -> None:
    """The folder that a codebase is imported from is there, and something can be imported from it."""
    if arm.source is not None and not arm.source.is_dir():
        raise BenchError("source is not a folder", where=str(arm.source))
    if arm.source is not None and not any((*arm.source.glob("*.py"), *arm.source.glob("*/*.py"))):
        raise BenchError("source has no Python package", where=str(arm.source))


_Faults = dict[tuple[Path, ...], dict[str, str]]


def _check_environment(arm: Arm, codebase: Codebase, own: Sequence[str], known: _Faults) -> None:
    """The interpreter is there. One that the user chose imports the adapter (bench tries those that it makes), and the
    codebase has the arm's model there: all `own` names are looked up at once, and `known` after that."""
    python = interpreter_of(arm, codebase)
    if not (arm.python or arm.environment or arm.source or arm.own_name):
        return
    place = (python, codebase.folder, arm.source or Path())
    if place not in known:
        known[place] = check_interpreter(python, codebase, arm.source, own)
    if fault := known[place].get(arm.own_name):
        raise BenchError(fault, hint=near_file(arm.own_name) if arm.own_name.endswith(FILES) else None)


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
                hint = near(path, ("random", "transplant"), cutoff=0.8) or None
                raise BenchError("weights file not found", where=str(file), hint=hint)


def weights_file(path: str, workload: Workload) -> Path:
    """A file of weights, whose name may hold the model's, or the newest that a run in a folder left of the model, in
    canonical names. Raises BenchError."""
    file = Path(path.replace("{model}", workload.model)).expanduser().resolve()
    if file.is_dir():
        runs = [file] if (file / "run.json").exists() else sorted(p.parent for p in file.glob("*/run.json"))
        file = next((found for run in reversed(runs) if (found := _kept(Run(run), workload.model))), file)
    if not file.is_file():
        raise BenchError(f"no weights of {workload.model} at {file}")
    return file


def _kept(run: Run, model: str) -> Path | None:
    """The checkpoint of the source codebase's arm of a model."""
    arms = (arm.id for arm in run.arms() if arm.codebase == WEIGHTS_SOURCE and arm.workload.model == model)
    paths = (run.folder / "checkpoints" / f"{arm}.npz" for arm in arms)
    return next((path for path in paths if path.is_file()), None)


def _check_formats(arm: Arm, codebase: Codebase) -> None:
    """Files of weights are what their names say, and canonical ones are of the model. Raises BenchError."""
    if arm.weights is not None:
        _check_format(weights_file(arm.weights, arm.workload), codebase)
    elif arm.workload.weights not in ("random", "transplant"):
        state = read_npz(file := weights_file(arm.workload.weights, arm.workload))
        if mappings.supports(arm.codebase, arm.workload.model):
            try:
                mappings.to_codebase(arm.codebase, arm.workload.model, state)
            except (KeyError, ValueError) as error:
                raise BenchError(f"not weights of {arm.workload.model}: {error}", where=str(file)) from None


def _check_format(file: Path, codebase: Codebase) -> None:
    if codebase.checkpoints and file.suffix not in codebase.checkpoints:
        raise BenchError(
            f"{codebase.name} reads weights from {', '.join(codebase.checkpoints)}", where=str(file)
        )
    if file.suffix == ".npz":
        check_npz(file)
    with file.open("rb") as opened:
        begin = opened.read(9)
    if not any(
        begin[start : start + len(magic)] == magic for start, magic in _MAGIC.get(file.suffix, [(0, b"")])
    ):
        raise BenchError(f"not a file of weights: it begins with {begin!r}", where=str(file))


def _as_read(workload: Workload) -> Workload:
    """What of a workload decides which files are read."""
    input = workload.input.model_copy(update={"size": (32, 32), "mode": "shared", "workers": 0})
    keys = ("task", "model", "eval_images", "eval_split")
    return Workload(input=input, **{key: getattr(workload, key) for key in keys})


def _check_data(workload: Workload, cache: Path) -> None:
    """Splits, annotations, images and outlines are sound, as far as the workload reads them."""
    for dataset in open_all(workload, cache):
        check_objects(dataset, workload.model)


def _check_processors(affinity: Sequence[int]) -> None:
    """The processors that a recipe asks for are there."""
    if absent := sorted(set(affinity) - set(machine.affinity())):
        there = ", ".join(map(str, machine.affinity()))
        raise BenchError(f"environment.affinity: no processor {absent[0]} here", hint=f"there are {there}")


def generator() -> Any:
    """The module of MLPerf's load generator. Raises BenchError where it is not installed."""
    try:
        import mlperf_loadgen
    except ImportError:
        raise BenchError(
            "task serve needs MLPerf's load generator", hint="pip install 'detection-bench[serve]'"
        ) from None
    return mlperf_loadgen


def _check_model(arm: Arm) -> None:
    """The file of a model of the user's is there, and is what its name says. Raises BenchError."""
    if arm.model is None or not arm.model.endswith(FILES):
        return
    refuse_missing_file(arm.model)
    if not (file := Path(arm.model)).is_file():
        return  # a name of the codebase's own
    content = read_file(file)
    try:
        if file.suffix == ".py":
            compile(content, str(file), "exec")
        elif file.suffix == ".onnx" and content[:1] != b"\x08":
            raise ValueError(f"not an ONNX model: it begins with {content[:9]!r}")
        elif file.suffix != ".onnx":
            list(yaml.parse(content))
    except SyntaxError as error:
        raise BenchError(f"not Python: {error.msg}", where=f"{file}:{error.lineno}") from None
    except yaml.YAMLError as error:
        raise BenchError(f"not YAML: {' '.join(str(error).split())}", where=str(file)) from None
    except ValueError as error:
        raise BenchError(str(error), where=str(file)) from None


def _check_device(arm: Arm) -> None:
    """A GPU is here, where the recipe asks for one."""
    told = importlib.util.find_spec("pynvml") is not None  # without the package nobody knows
    if arm.workload.device == "cuda" and told and not machine.gpu_facts().get("gpus"):
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


def brings(source: Path, package: str) -> bool:
    """Whether a folder has a package, itself or in folders of its own."""
    return any(one for depth in ("", "*/", "*/*/") for one in source.glob(f"{depth}{package}/__init__.py"))


def refuse_other_source(wanted: Path, found: Path, named: str) -> None:
    """An arm that is named after a revision or a folder must not measure an installed package instead."""
    if not found.resolve().is_relative_to(wanted.resolve()):
        raise WorkerFailure("environment", f"imports {found}, not {named}", "prepare")
