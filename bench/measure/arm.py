"""One arm and its process: start it, run a block or a pass in it, end it."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from bench.errors import BenchError
from bench.inputs.dataset import Dataset
from bench.judge import accuracy
from bench.judge.observations import summary, work_of
from bench.measure.preflight import refuse_other_source
from bench.measure.process import (
    ADAPTERS,
    UNTIMED,
    LaunchSpec,
    WorkerFailure,
    WorkerGroup,
    refusing_nonsense,
    tail,
)
from bench.measure.quiet import LONGEST_WAIT_S, allowed_cores, read_clock, taken_cores, wait_until_quiet
from bench.recipe.codebases import Codebase
from bench.recipe.plan import Arm, Plan
from bench.record import machine
from bench.record.models import (
    Accuracy,
    ArmRecord,
    Block,
    Environment,
    Evaluation,
    Failure,
    Losses,
    Memory,
    Prediction,
    RankTimes,
    Revision,
    RunRecord,
    Truth,
)
from bench.record.run import Run, write_atomic
from bench.record.samples import block_times, samples_frame
from bench.record.software import speed_variables

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
    strict: bool
    deadline: float | None
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
                f"{cell}: other processes disturbed {bad} rounds; {bad} were measured in their place, "
                f"{again} of them disturbed again"
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


@dataclass
class MeasuredArm:
    """An arm, its record so far, and the process that serves it now."""

    arm: Arm
    record: ArmRecord
    site: Site
    prepared: Prepared | None = None
    group: WorkerGroup | None = None
    described: bool = False
    """True once `describe` has been sent to the current worker."""

    @property
    def alive(self) -> bool:
        return self.record.failure is None

    @contextlib.contextmanager
    def failing(self, launch: int) -> Iterator[None]:
        """A failure inside makes a failed arm with its reason and log tail; the other arms go on."""
        try:
            with refusing_nonsense():
                yield
        except WorkerFailure as failure:
            log = self.site.log(self.arm, launch)
            if self.group is not None:
                self.group.kill()  # first, so that the log is complete
                self.group = None
            self.record.failure = Failure(
                reason=failure.reason,
                message=failure.message,
                stage=failure.stage,
                launch=launch,
                log=str(log.relative_to(self.site.run.folder)),
                log_tail=tail(log),
            )
            self.site.listener.failed(self.arm, self.record.failure)

    def request(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        """One message to every rank, and their replies. Raises WorkerFailure."""
        assert self.group is not None
        return self.group.request(kind, self.site.deadline_s, **fields)

    def begin(self, launch: int, stack: contextlib.ExitStack) -> None:
        """Start the workers and tell them what to prepare."""
        arm, site, prepared = self.arm, self.site, self.prepared
        assert prepared is not None
        site.listener.stage(arm, launch, "prepare")
        timed = bool(site.plan.measure.rounds)
        spec = site.launch_spec(arm, prepared.python, site.log(arm, launch), timed=timed)
        self.group = stack.enter_context(WorkerGroup(spec, site.server(arm, spec)))
        self.described = False
        self.group.start(site.deadline_s)
        by_rank = [{"job": site.job(arm, prepared, rank)} for rank in range(arm.workload.ranks)]
        self.group.send("prepare", adapter_file=str(site.codebase(arm).adapter_file), by_rank=by_rank)

    def ready(self, launch: int, stack: contextlib.ExitStack) -> None:
        """Wait until the workers have prepared. The first ones of an arm say what they are, and are watched."""
        assert self.group is not None
        assert self.prepared is not None
        reply = self.group.receive("prepare", self.site.deadline_s)[0]
        if self.arm.checkout:
            found = reply["source"] or self.arm.checkout.codebase.folder
            refuse_other_source(self.arm.checkout.tree, Path(found), "the revision under check")
        elif self.arm.source and reply["source"]:
            refuse_other_source(self.arm.source, Path(reply["source"]), f"the source {self.arm.source}")
        if self.record.description:
            return
        self.described = True
        described = self.request("describe")[0]["description"]
        self.record.description = {**described, "codebase_version": reply["codebase_version"]}
        spec, source = self.group.spec, reply["source"]
        self.record.environment = Environment(
            **self.prepared.environment,
            git=self.site.run.note_revision(Path(source), self.arm.id) if source else Revision(),
            variables={**speed_variables({**os.environ, **spec.variables}), **spec.variables},
            preloaded=list(self.group.server.spec.preload) if self.group.server else [],
        )
        self._observe(launch, stack)

    def _observe(self, launch: int, stack: contextlib.ExitStack) -> None:
        """Have an arm watched in a few steps of its work. Those change its weights, so what is timed starts anew."""
        assert self.prepared is not None
        self.site.listener.stage(self.arm, launch, "audit")
        seen = [reply["audit"] for reply in self.request("audit")]
        self.record.audit = {"ranks": [summary(facts, self.prepared.names) for facts in seen]}
        self.record.description.update(work_of(seen[0]))
        if any(seen) and self.site.plan.measure.rounds:
            self.stop()
            self.begin(launch, stack)
            assert self.group is not None
            self.group.receive("prepare", self.site.deadline_s)

    def stop(self) -> None:
        if self.group is not None:
            self.group.stop()
            self.group = None

    def block(self, launch: int, round_: int, position: int, steps: int) -> bool:
        """Time consecutive steps; the block is in the journal when this returns. Returns whether it was disturbed.

        The rounds of a run go through the shared batches in turn, so that each is timed equally often.
        """
        measure = self.site.plan.measure
        first = None if round_ < 0 else (launch * measure.rounds + round_) * measure.steps
        before = read_clock()
        hold = measure.hold_weights and self.arm.workload.task == "train"
        replies = self.request("run_block", steps=steps, settle=measure.settle, first=first, hold=hold)
        taken = None if measure.quiet == "off" else taken_cores(before, read_clock())
        self.keep_block(launch, round_, position, replies, taken_cores=taken, batches=replies[0]["batches"])
        self.record.losses.append(Losses(launch=launch, round=round_, losses=replies[0]["losses"]))
        if round_ >= 0:
            self._note_processors(replies)
        self.show_block(launch, round_, replies, steps)
        return taken is not None and taken > allowed_cores()

    def _note_processors(self, replies: list[dict[str, Any]]) -> None:
        """One reply of each rank."""
        record, busy = self.record, [one["busy_processors"] for one in replies]
        record.threads = sorted({*record.threads, *(one["threads"] for one in replies if one["threads"])})
        record.busy_processors = max(record.busy_processors or 0.0, *busy)

    def look(self) -> None:
        """Have an arm that the audit observed watched in one step more, after the timed ones; once."""
        if any(self.record.audit.get("ranks", ())) and "closing" not in self.record.audit:
            names = self.prepared.names if self.prepared else None
            self.record.audit["closing"] = [summary(one["look"], names) for one in self.request("look")]

    def keep_block(
        self,
        launch: int,
        round_: int,
        position: int,
        replies: list[dict[str, Any]],
        **known: Any,
    ) -> None:
        """Add a block to the journal; ``replies``: one of each rank; ``known``: other fields of `Block`."""
        ranks = [RankTimes(start_ns=reply["start_ns"], end_ns=reply["end_ns"]) for reply in replies]
        self.site.run.append_block(
            Block(
                arm=self.arm.id,
                launch=launch,
                round=round_,
                position=position,
                ranks=ranks,
                allowed_cores=allowed_cores(),
                **known,
            )
        )

    def show_block(self, launch: int, round_: int, replies: list[dict[str, Any]], steps: int) -> None:
        slowest_ns = max(reply["end_ns"] - reply["start_ns"][0] for reply in replies)
        self.site.listener.block(self.arm, launch, round_, slowest_ns / 1e9 / steps)

    def note_memory(self, launch: int, replies: list[dict[str, Any]]) -> None:
        """One reply of each rank."""
        self.record.memory += [
            Memory(rank=rank, launch=launch, described=self.described, **reply["memory"])
            for rank, reply in enumerate(replies)
        ]

    def passes(self, launch: int) -> None:
        """Memory and phases of this launch; predictions once."""
        measure, record, workload = self.site.plan.measure, self.record, self.arm.workload
        self.site.listener.stage(self.arm, launch, "memory, phases")
        if measure.memory_steps:
            self.note_memory(launch, self.request("memory_pass", steps=measure.memory_steps))
        if measure.phase_steps:
            self._phases(measure.phase_steps)
        if workload.task == "eval" and not record.evaluations:
            self.evaluate(launch, None)
        elif measure.predict and workload.task == "infer" and record.predictions is None:
            assert self.prepared is not None
            record.predictions = self._predict(launch, self.arm.id)
            record.evaluated = self._truth(self.prepared.dataset)  # so that the folder can be judged anywhere

    def _phases(self, steps: int) -> None:
        for name, seconds in self.request("phase_pass", steps=steps)[0]["phases"].items():
            self.record.phases.setdefault(name, []).extend(seconds)
        for name, value in self.request("operator_pass")[0]["seconds"].items():
            self.record.operators.setdefault(name, []).append(value)
        if "peak_flops_per_s" not in self.record.description:
            by_rank = [reply["flops_per_s"] for reply in self.request("peak")]
            peaks = {name: sum(rank[name] for rank in by_rank) for name in by_rank[0]}
            self.record.description["peak_flops_per_s"] = peaks

    def _predict(self, launch: int, name: str) -> Prediction:
        """Have the first rank write its detections."""
        folder = self.site.run.folder
        path = folder / "predictions" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        self.site.listener.stage(self.arm, launch, "predict")
        reply = self.request("predict", path=str(path.resolve()))[0]
        return Prediction(**reply["predictions"], path=str(path.relative_to(folder)))

    def evaluate(self, launch: int, step: int | None) -> None:
        """Predictions of the arm as it is now, and their AP by our own evaluator; ``step``: None of task eval."""
        assert self.prepared is not None
        dataset = self.prepared.evaluated
        assert dataset is not None
        predictions = self._predict(launch, self.arm.id if step is None else f"{self.arm.id}-{step}")
        if predictions.images != len(dataset.image_ids):
            problem = f"predicted {predictions.images} of {len(dataset.image_ids)} images"
            raise WorkerFailure("protocol", problem, "predict")
        folder, truth = self.site.run.folder, self._truth(dataset)
        masks = dataset.masks and (None if self.arm.workload.own_model else self.arm.workload.has_masks)
        try:
            found = accuracy.evaluate_file(
                folder / truth.ground_truth, folder / predictions.path, masks=masks
            )
        except BenchError as error:
            raise WorkerFailure("exception", str(error), "evaluate") from None
        self.record.predictions = predictions
        self.record.evaluated = truth
        kinds = {str(kind): _accuracy(one) for kind, one in found.items()}
        train_s = None if step is None else self._trained_s()
        self.record.evaluations.append(
            Evaluation(step=step, train_s=train_s, predictions=predictions, **kinds)
        )
        for kind, one in found.items():
            value = "undefined" if one.metrics["AP"] is None else f"{100 * one.metrics['AP']:.2f}"
            where = "" if step is None else f" after step {step}"
            self.site.listener.note(f"{self.arm.id}{where}: {kind} AP {value}")

    def _truth(self, dataset: Dataset) -> Truth:
        """What the detections of a data set are evaluated against, with its annotations in the run folder."""
        folder = self.site.run.folder
        path = folder / "ground_truth" / f"{dataset.split}-{dataset.checksum[:12]}.json"
        if not path.exists():
            write_atomic(path, dataset.annotations.read_bytes())
        return Truth(
            split=dataset.split,
            checksum=dataset.checksum,
            ground_truth=str(path.relative_to(folder)),
            image_ids=list(dataset.image_ids),
        )

    def _trained_s(self) -> float:
        """Seconds of all steps so far."""
        blocks = [block for block in self.site.run.journal() if block.arm == self.arm.id]
        times = block_times(samples_frame(blocks))
        return float((times["s_per_step"] * times["steps"]).sum())


def threads_of(arm: Arm) -> int:
    """Threads of one worker: as the recipe says, else the usable processors shared among the ranks of a machine."""
    return arm.threads or max(1, len(machine.affinity()) * arm.workload.nodes // arm.workload.ranks)


def _accuracy(found: accuracy.Evaluation) -> Accuracy:
    """An evaluation as the record holds it; the image ids are in its `Truth`."""
    values = found.as_json()
    del values["image_ids"]
    return Accuracy.model_validate(values)
