"""The cell as the unit of work: its key, and how one of them is measured and kept.

A cell is all arms of a comparison. It is measured on one machine, in a run folder of its own, and put into a store
when it is finished. One that is lost on the way starts again from its beginning, never half and half.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench import __version__, shipped
from bench.environments import cache_folder, read_lock, versions
from bench.environments.named import folder_of_name
from bench.errors import BenchError, ExitCode
from bench.measure.launchers import allocated
from bench.measure.scratch import own_folder
from bench.measure.session import Session, new_run
from bench.measure.until import growing
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe
from bench.recipe.plan import Arm, Plan
from bench.record.machine import fingerprint
from bench.record.models import CellRecord
from bench.record.places import Places
from bench.record.run import Run
from bench.record.software import environment_of, git_diff, git_revision
from bench.record.store import Store, packed
from bench.worker.batches import file_sha256

#: A cell with more disturbed blocks is measured again, at most so often.
MOST_DISTURBED, ATTEMPTS = 0.5, 2

KEY_DIGITS = 16

#: Parts of bench that take part in measuring, and what of them is code.
MEASURING, CODE = ("worker", "measure", "inputs", "recipe"), (".py", ".yaml", ".txt", ".c", ".cpp", ".h")


@dataclass(frozen=True)
class Cell:
    """One cell of a plan."""

    key: str
    index: int
    arms: tuple[Arm, ...]

    @property
    def name(self) -> str:
        return self.arms[0].cell


def cells_of(plan: Plan, codebases: Mapping[str, Codebase]) -> list[Cell]:
    """The cells of a plan with their keys, in its order.

    The key is a hash of what the cell measures and how, of the environments' locks, and of the code: the files that
    take part in measuring, and revision and changes of a codebase's checkout. It is the same on every machine that has
    the same of all these, whatever else of this project is changed meanwhile.
    """
    names = dict.fromkeys(arm.codebase for arm in plan.arms)
    shared = {
        "measure": plan.measure.model_dump(mode="json"),
        "baseline": dict(plan.baseline),
        "bench": [__version__, *_contents()],
    }
    software = {name: _software(codebases[name]) for name in names}
    return [Cell(_key(shared, software, arms), index, arms) for index, arms in enumerate(plan.cells)]


def _key(shared: Mapping[str, Any], software: Mapping[str, Any], arms: Sequence[Arm]) -> str:
    described = [
        {
            "id": arm.id,
            "codebase": arm.codebase,
            "label": arm.label,
            "levels": dict(arm.levels),
            "workload": arm.workload.model_dump(mode="json"),
            "options": dict(arm.options),
            "variables": dict(arm.variables),
            "threads": arm.threads,
            "baseline": arm.baseline,
            "files": [arm.model, arm.weights, *map(file_sha256, map(str, _files(arm)))],
            "own": [
                arm.python,
                arm.environment,
                _own_packages(arm),
                _code(arm.source) if arm.source else None,
            ],
        }
        for arm in arms
    ]
    used = {arm.codebase: software[arm.codebase] for arm in arms}
    # As records name places, so that the key does not depend on where a clone or a home is.
    values = Places(Path("/")).recipe([shared, described, used])
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:KEY_DIGITS]


def _files(arm: Arm) -> list[Path]:
    """Files of weights that the arm starts from, and of its own model."""
    named = [arm.model, arm.weights, arm.workload.weights]
    paths = [Path(text.replace("{model}", arm.workload.model)).expanduser() for text in named if text]
    return [path for path in paths if path.is_file()]


def _own_packages(arm: Arm) -> dict[str, str]:
    """What the arm's own environment has; empty where it runs in that of its codebase, or has none."""
    if arm.python:
        return dict(environment_of(Path(arm.python).expanduser()).get("packages", {}))
    if arm.environment:
        with contextlib.suppress(BenchError):  # the arm will fail and say so
            return dict(read_lock(folder_of_name(arm.environment))["packages"])
    return {}


def _software(codebase: Codebase) -> dict[str, Any]:
    """The lock of a codebase's environment, its adapter and its source."""
    try:
        packages = versions(codebase)
    except BenchError:
        packages = {}  # its arms will fail and say so; with an environment the key is another one
    adapter = sorted(path for path in codebase.folder.glob("*") if path.suffix in (".py", ".yaml"))
    source = codebase.source_folder
    return {
        "packages": dict(sorted(packages.items())),
        "adapter": {path.name: file_sha256(str(path)) for path in adapter},
        "source": _code(source) if source else None,
    }


def _contents() -> list[str]:
    """Digests of what of this project takes part in measuring."""
    package = Path(__file__).parents[1]
    folders = [package / name for name in MEASURING] + [shipped.ROOT / "adapters", shipped.ROOT / "detectors"]
    return [_digest_of(folder) for folder in folders]


def _digest_of(folder: Path) -> str:
    """Of all code and settings in a folder."""
    found = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in CODE):
        found.update(f"{path.relative_to(folder).as_posix()} {file_sha256(str(path))}\n".encode())
    return found.hexdigest()


def _code(folder: Path) -> list[Any]:
    """Revision and changes of a source folder; nothing where git tracks none."""
    revision = git_revision(folder)
    return [revision.get("revision"), git_diff(folder) if revision.get("dirty") else ""]


def pick(cells: Sequence[Cell], key: str | None, shard: str | None) -> list[Cell]:
    """The cells that a command asks for: one by its key, every n-th one, or all. Raises BenchError."""
    if key is not None:
        found = [cell for cell in cells if cell.key == key]
        if not found:
            raise BenchError(
                f"no cell of this plan has the key {key}",
                hint="recipe, environments or code differ from those that the key is of; see --dry-run --store",
            )
        return found
    if shard is None:
        return list(cells)
    number, _, count = shard.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise BenchError(f"--shard {shard}: expected i/n with i from 1 to n", hint="for example --shard 1/4")
    return list(cells[int(number) - 1 :: int(count)])


@dataclass(frozen=True)
class Cells:
    """What all cells that this process measures share."""

    loaded: LoadedRecipe
    plan: Plan
    planned: int
    codebases: Mapping[str, Codebase]
    store: Store
    command: list[str]
    listener: Callable[[Plan], Any]
    """A plan → context manager of what is told about its progress."""
    strict: bool = False

    def measure(self, cell: Cell) -> int:
        """Measure one cell from its beginning and keep it, unless it was interrupted. Returns the exit code."""
        try:  # a cell that cannot be measured here is not finished by saying so
            allocated(max((arm.workload.nodes for arm in cell.arms), default=1))
        except ValueError as error:
            raise BenchError(str(error), where=cell.key) from None
        places = [cache_folder() / "cells"]
        first = attempt_of(os.environ)
        for attempt in range(first, first + ATTEMPTS):
            with own_folder(places) as folder:
                run, code, share = self._attempt(cell, folder, attempt)
                if code not in (ExitCode.SUCCESS, ExitCode.ARM_FAILED):
                    return code
                if share <= MOST_DISTURBED or attempt == first + ATTEMPTS - 1:
                    self.store.put(self.plan.name, cell.key, packed(run.folder))
                    return code
        raise AssertionError("the last attempt is kept")

    def _attempt(self, cell: Cell, folder: Path, attempt: int) -> tuple[Run, int, float]:
        plan = replace(self.plan, cells=(cell.arms,))
        run, record = new_run(self.loaded, plan, folder, self.command)
        here = CellRecord(
            digest=cell.key,
            index=cell.index,
            planned=self.planned,
            attempt=attempt,
            node=node_of(os.environ),
            scheduler=scheduler_of(os.environ),
            fingerprint=fingerprint(record.machine),
        )
        record.cells = {cell.name: here}
        with self.listener(plan) as listener:
            plan, more = growing(plan, run, listener.note)
            session = Session(
                plan, run, record, self.codebases, cache_folder(), listener, self.strict, more_launches=more
            )
            code = session.execute()
            here.disturbed = _disturbed(run)
            if here.disturbed > MOST_DISTURBED:
                listener.note(f"{cell.name}: others disturbed {here.disturbed:.0%} of the blocks")
        run.write_record(record)
        return run, code, here.disturbed


def _disturbed(run: Run) -> float:
    """Share of the measured blocks in which others were busy."""
    blocks = [block for block in run.journal() if block.round >= 0 and block.taken_cores is not None]
    bad = sum((block.taken_cores or 0) > block.allowed_cores for block in blocks)
    return bad / len(blocks) if blocks else 0.0


def attempt_of(environment: Mapping[str, str]) -> int:
    """Which attempt at its cell this process is, from 1, as its scheduler tells."""
    if "BENCH_ATTEMPT" in environment:
        return int(environment["BENCH_ATTEMPT"])
    return int(environment.get("SLURM_RESTART_COUNT", 0)) + 1


def scheduler_of(environment: Mapping[str, str]) -> str:
    """Scheduler and number of the job; empty: none."""
    if job := environment.get("BENCH_SCHEDULER"):
        return job
    if job := environment.get("SLURM_ARRAY_JOB_ID"):
        return f"slurm {job}_{environment.get('SLURM_ARRAY_TASK_ID', '')}"
    return ""


def node_of(environment: Mapping[str, str]) -> str:
    """Digits that stand for this machine, and do not tell its name."""
    name = environment.get("BENCH_NODE") or environment.get("SLURMD_NODENAME") or platform.node()
    return hashlib.sha256(f"bench {name}".encode()).hexdigest()[:8]
