"""What all arms of a session share: how their workers are started, and what these are told."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from bench.inputs.dataset import Dataset
from bench.measure.process import ADAPTERS, UNTIMED, LaunchSpec, WorkerGroup
from bench.measure.quiet import LONGEST_WAIT_S, wait_until_quiet
from bench.recipe.codebases import Codebase
from bench.recipe.plan import Arm, Plan
from bench.record import machine
from bench.record.models import Failure, RunRecord
from bench.record.run import Run

THREAD_COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Listener(Protocol):
    """Told what happens, for progress display."""

    def stage(self, arm: Arm, launch: int, stage: str) -> None: ...
    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None: ...
    def failed(self, arm: Arm, failure: Failure) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass(frozen=True)
class Prepared:
    """What an arm needs before its process starts. Made once, before anything is timed."""

    dataset: Dataset
    batches: Path
    evaluated: Dataset | None = None
    evaluation_batches: Path | None = None
    schedule: dict[str, str] | None = None
    python: Path = Path()
    """The interpreter of the codebase."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Python and packages of that interpreter."""
    weights: Path | None = None
    """In the codebase's own names. None: its own seeded initialisation."""
    names: Mapping[str, str] | None = None
    """The codebase's names of parameters → canonical ones. None: not known."""


@dataclass
class Site:
    """What all arms of a session share."""

    plan: Plan
    run: Run
    record: RunRecord
    codebases: Mapping[str, Codebase]
    cache: Path
    scratch: Path
    listener: Listener
    strict: bool = False
    deadline: float | None = None
    """On the monotonic clock; None: no time budget."""
    servers: dict[str, WorkerGroup] = field(default_factory=dict)
    disturbed: defaultdict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """Cell → of each launch the disturbed rounds, and those among the rounds that were measured in their place."""
    waited_s: float = 0.0
    """Seconds spent waiting for a quiet machine."""

    @property
    def deadline_s(self) -> float:
        """Seconds that a worker may take for one answer."""
        return self.plan.measure.deadline_s

    def warn(self, text: str) -> None:
        self.record.warnings.append(text)
        self.listener.note(text)

    def wait_until_quiet(self) -> None:
        """Wait for other processes to end, at most `LONGEST_WAIT_S` in a session, where the recipe says so."""
        if self.plan.measure.quiet == "wait":
            self.waited_s += wait_until_quiet(LONGEST_WAIT_S - self.waited_s, self.listener.note)

    def warn_of_disturbance(self) -> None:
        """Say how many rounds others disturbed."""
        for cell, launches in self.disturbed.items():
            bad, again = (sum(numbers) for numbers in zip(*launches, strict=True))
            self.warn(
                f"{cell}: other processes disturbed {bad} round{'s' * (bad != 1)}; as many were measured "
                f"in their place, {again} of them disturbed again"
            )

    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def codebase(self, arm: Arm) -> Codebase:
        return arm.checkout.codebase if arm.checkout else self.codebases[arm.codebase]

    def log(self, arm: Arm, launch: int) -> Path:
        return self.run.folder / "logs" / f"{arm.id}-{launch}.log"

    def launch_spec(self, arm: Arm, python: Path, log: Path, *, timed: bool = True) -> LaunchSpec:
        """How the workers of an arm are started."""
        codebase = self.codebase(arm)
        variables = {
            **dict.fromkeys(THREAD_COUNTS, str(threads_of(arm))),
            **({} if timed else UNTIMED),
            **codebase.variables,
            **arm.variables,
        }
        if affinity := self.record.recipe["environment"]["affinity"]:
            variables["BENCH_WORKER_AFFINITY"] = ",".join(map(str, affinity))
        source, adapters = arm.source.resolve() if arm.source else codebase.source_folder, ADAPTERS
        if arm.checkout:
            source, adapters = arm.checkout.source, arm.checkout.adapters or ADAPTERS
        return LaunchSpec(
            python, codebase.launcher, arm.workload.ranks, variables, log, source, adapters,
            nodes=arm.workload.nodes, shared=self.scratch)  # fmt: skip

    def job(self, arm: Arm, prepared: Prepared, rank: int) -> dict[str, Any]:
        """What one worker is told to prepare (`bench.worker.api.Job`)."""
        dataset, offer = prepared.dataset, self.codebase(arm).models.get(arm.workload.model)
        return {
            "workload": arm.workload.model_dump(mode="json"),
            "options": {**(offer.options if offer else {}), **arm.options},
            "model": offer.model_dump() if offer else {"name": arm.own_name},
            "classes": list(dataset.classes),
            "category_ids": list(dataset.category_ids),
            "dataset": {
                "images": str(dataset.images.resolve()),
                "annotations": str(dataset.annotations.resolve()),
                "image_ids": list(dataset.image_ids),
            },
            "weights": str(prepared.weights) if prepared.weights else None,
            "batches": str(prepared.batches),
            "evaluation": str(prepared.evaluation_batches) if prepared.evaluation_batches else None,
            "schedule": prepared.schedule,
            "threads": threads_of(arm),
            "rank": rank,
            "world_size": arm.workload.ranks,
            "scratch": str(self.scratch),
        }

    def server(self, arm: Arm, spec: LaunchSpec) -> WorkerGroup | None:
        """A process to fork this arm from, when the arms it is compared with are of the same codebase.

        What all of them are built on is then imported once a session, not once a launch (six of twelve seconds, with
        torch), and lies at the same addresses in all of them: under equal work the arms stay exchangeable, so that the
        rates of `bench.gate` hold. Arms of unlike codebases never share a process.
        """
        modules = self.codebases[arm.codebase].preload
        if not modules or spec.ranks > 1 or not (self.plan.aa or arm.checkout):
            return None
        key = repr((spec.python, sorted(spec.variables.items())))
        if key not in self.servers:
            log = self.run.folder / "logs" / f"preload-{len(self.servers)}.log"
            with contextlib.ExitStack() as unless_started:
                server = WorkerGroup(replace(spec, preload=tuple(modules), source=None, log=log))
                unless_started.enter_context(server).start(self.deadline_s)
                unless_started.pop_all()
            self.servers[key] = server
        return self.servers[key]

    def write_once(self, kind: str, arm: Arm, prepared: Prepared, path: Path) -> None:
        """Have a worker of its own write one file: `save` its weights, or `export` its model.

        Raises:
            WorkerFailure: It did not.
        """
        spec = self.launch_spec(arm, prepared.python, self.log(arm, 0), timed=False)
        with WorkerGroup(spec) as group:
            group.start(self.deadline_s)
            adapter, job = str(self.codebase(arm).adapter_file), self.job(arm, prepared, 0)
            group.request("prepare", self.deadline_s, adapter_file=adapter, job=job)
            group.request(kind, self.deadline_s, path=str(path))
            group.stop()


def threads_of(arm: Arm) -> int:
    """Threads of one worker: as the recipe says, else the usable processors shared among the ranks of a machine."""
    return arm.threads or max(1, len(machine.affinity()) * arm.workload.nodes // arm.workload.ranks)
