"""One arm and its process: start it, run a block or a pass in it, end it."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.inputs.dataset import Dataset
from bench.judge import accuracy
from bench.judge.observations import summary, work_of
from bench.measure.preflight import brings, refuse_other_source
from bench.measure.process import WorkerFailure, WorkerGroup, refusing_nonsense, tail
from bench.measure.quiet import allowed_cores, read_clock, taken_cores
from bench.measure.site import Prepared, Site
from bench.recipe.plan import Arm
from bench.record.conditions import Conditions
from bench.record.energy import Meter
from bench.record.models import (
    Accuracy,
    ArmRecord,
    Block,
    Environment,
    Evaluation,
    Failure,
    Losses,
    Prediction,
    RankTimes,
    Revision,
    Truth,
)
from bench.record.parts import Memory
from bench.record.run import write_atomic
from bench.record.samples import block_columns, samples_columns
from bench.record.software import speed_variables


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
        reply = self.group.receive("prepare", self.site.deadline_s)[0]
        checkout = self.arm.checkout
        if checkout and not checkout.configs_only:
            found = reply["source"] or checkout.codebase.folder
            refuse_other_source(checkout.tree, Path(found), "the revision under check")
        elif (own := self.arm.source) and reply["source"]:
            found = Path(reply["source"])
            # A folder may hold modules of a configuration, and not the codebase.
            own_config = Path(self.arm.own_name).is_file()
            if not own_config or brings(own, found.name):
                refuse_other_source(own, found, f"the source {own}")
            elif not self.record.description:
                self.site.warn(f"{self.arm.id}: {found.name} is the installed one: source {own} has none")
        if not self.record.description:
            self._describe(reply, launch, stack)
        if self._to_look_at and self.arm.workload.task == "train":
            self.request("keep", state=self._first_state)

    def _describe(self, reply: dict[str, Any], launch: int, stack: contextlib.ExitStack) -> None:
        """Ask an arm what it is, and have it watched. ``reply``: to `prepare`."""
        assert self.group is not None
        assert self.prepared is not None
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

    def shake(self, launch: int) -> None:
        """Have an arm watched once more in a process of its own, to see what rounding does to the facts."""
        assert self.prepared is not None
        try:
            with contextlib.ExitStack() as stack, refusing_nonsense():
                self.begin(launch, stack)
                assert self.group is not None
                self.group.receive("prepare", self.site.deadline_s)
                seen = self.request("audit", shake=True)
                self.record.audit["shaken"] = [summary(one["audit"], self.prepared.names) for one in seen]
        except WorkerFailure as error:
            self.site.warn(f"{self.arm.id}: not watched a second time: {error}")
        finally:
            self.stop()

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
        before, joules = read_clock(), self.meter.read()
        conditions = self.conditions.read(before.workers)
        hold = measure.hold_weights and self.arm.workload.task == "train"
        found = None if round_ else (steps - 1 - launch) % steps  # by launch another one, the last step first
        replies = self.request(
            "run_block", steps=steps, settle=measure.settle, first=first, hold=hold, found=found
        )
        after, all_steps = read_clock(), measure.settle + steps
        taken = None if measure.quiet == "off" else taken_cores(before, after)
        seen = self.conditions.since(conditions, after.workers, all_steps)
        self.keep_block(launch, round_, position, replies, taken_cores=taken, batches=replies[0]["batches"])
        reply = replies[0]
        entry = Losses(
            launch=launch, round=round_, **{name: reply[name] for name in ("losses", "done", "found")}
        )
        self.record.losses.append(entry)
        if round_ >= 0:
            self._note_processors(replies)
            images = self.arm.workload.images_per_step * all_steps
            for name, value in self.meter.since(joules).items():
                self.record.energy.setdefault(name, []).append(value / images)
            for name, value in seen.items():
                self.record.conditions.setdefault(name, []).append(value)
        self.show_block(launch, round_, replies, steps)
        return taken is not None and taken > allowed_cores()

    @functools.cached_property
    def meter(self) -> Meter:
        """What the arm's devices use; the record says which of it cannot be read."""
        workload = self.arm.workload
        found = Meter(workload.device, workload.ranks, workload.nodes)
        self.record.no_energy = found.missing
        return found

    @functools.cached_property
    def conditions(self) -> Conditions:
        """What the arm's machine does."""
        return Conditions(self.arm.workload.device, self.arm.workload.ranks)

    def _note_processors(self, replies: list[dict[str, Any]]) -> None:
        """One reply of each rank."""
        record, busy = self.record, [one["busy_processors"] for one in replies]
        record.threads = sorted({*record.threads, *(one["threads"] for one in replies if one["threads"])})
        record.busy_processors = max(record.busy_processors or 0.0, *busy)

    @property
    def _to_look_at(self) -> bool:
        """Whether the audit observed the arm, and nobody has watched it after timed steps."""
        audit = self.record.audit
        return bool(self.site.plan.measure.rounds and any(audit.get("ranks", ())) and "closing" not in audit)

    @property
    def _first_state(self) -> str:
        return str(self.site.scratch / f"{self.arm.id}-first")

    def look(self) -> None:
        """Have an arm watched in some steps more, after the timed ones; once. What was timed stays if that fails."""
        if not self._to_look_at:
            return
        names = self.prepared.names if self.prepared else None
        try:
            replies = self.request("look", state=self._first_state)
            self.record.audit["closing"] = [summary(one["look"], names) for one in replies]
        except WorkerFailure as error:
            self.site.warn(f"{self.arm.id}: not watched after the timed blocks: {error}")
            self.record.audit["closing"] = [{}]

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
        reply = self.request("phase_pass", steps=steps)[0]
        for name, seconds in reply["phases"].items():
            self.record.phases.setdefault(name, []).extend(seconds)
        self.record.averaging += reply["averaging"]
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
            write_atomic(path, dataset.annotations.read_bytes(), measured=True)
        return Truth(
            split=dataset.split,
            checksum=dataset.checksum,
            ground_truth=str(path.relative_to(folder)),
            image_ids=list(dataset.image_ids),
        )

    def _trained_s(self) -> float:
        """Seconds of all steps so far."""
        blocks = [block for block in self.site.run.journal() if block.arm == self.arm.id]
        times = block_columns(samples_columns(blocks))
        return float((times["s_per_step"] * times["steps"]).sum())


def _accuracy(found: accuracy.Evaluation) -> Accuracy:
    """An evaluation as the record holds it; the image ids are in its `Truth`."""
    values = found.as_json()
    del values["image_ids"]
    return Accuracy.model_validate(values)
