"""Runs a plan: launches workers, interleaves the arms of each cell, and keeps everything measured.

Cells run one after the other. In a cell, every launch starts one fresh worker per arm; they take turns, round by
round, and sleep in the kernel while others run. A finished block is in the journal before the next one starts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import secrets
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bench import __version__
from bench.environments import python_of
from bench.errors import BenchError, ExitCode, StorageError
from bench.inputs import weights
from bench.inputs.batches import prepare_batches, prepare_schedule
from bench.inputs.dataset import Dataset, open_dataset, open_evaluation
from bench.judge.accuracy import evaluate_file
from bench.judge.audit import audit_run
from bench.measure import interrupts
from bench.measure.process import ADAPTERS, LaunchSpec, WorkerFailure, WorkerGroup
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe
from bench.recipe.plan import Arm, Checkout, Plan, make_plan, round_orders
from bench.recipe.schema import Recipe
from bench.recipe.workload import Workload
from bench.record import machine
from bench.record.models import ArmRecord, Failure, Memory, RunRecord
from bench.record.run import Run
from bench.record.samples import block_times, samples_frame

LOG_TAIL_LINES = 30

#: The codebase whose seeded initialisation is transplanted into all others; canonical names are its names.
WEIGHTS_SOURCE = "native"


class Listener(Protocol):
    """Told what happens, for progress display."""

    def stage(self, arm: Arm, launch: int, stage: str) -> None: ...
    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None: ...
    def failed(self, arm: Arm, failure: Failure) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class ArmState:
    """What is known of an arm so far."""

    arm: Arm
    record: ArmRecord
    group: WorkerGroup | None = None
    described: bool = False
    """Whether the process that it has now was asked what its work is."""

    @property
    def alive(self) -> bool:
        return self.record.failure is None


@dataclass
class Prepared:
    """Input and weights of one workload, ready for the workers."""

    dataset: Dataset
    batches: Path
    evaluated: Dataset | None = None
    evaluation_batches: Path | None = None
    schedule: dict[str, str] | None = None


@dataclass
class Session:
    """One process measuring one run folder."""

    plan: Plan
    run: Run
    record: RunRecord
    codebases: Mapping[str, Codebase]
    cache: Path
    listener: Listener
    strict: bool = False
    """An arm that does not do the baseline's work fails before it is timed."""
    more_launches: Callable[[], int] = lambda: 0
    """Asked when everything planned is measured: how many launches to add to every cell (`bench check`)."""
    scratch: Path = field(init=False)
    _deadline: float | None = field(init=False, default=None)
    _environments: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    _weights: dict[str, Path] = field(init=False, default_factory=dict)
    _servers: dict[str, WorkerGroup] = field(init=False, default_factory=dict)

    def execute(self, *, retry_failed: bool = False) -> int:
        """Measure all that is not yet measured. Returns the exit code; the record says what happened."""
        budget_s = self.plan.measure.time_budget_s
        self._deadline = None if budget_s is None else time.monotonic() + budget_s
        status, code = "complete", ExitCode.SUCCESS
        with (
            locked(self.run.folder),
            alone(self.cache) as undisturbed,
            interrupts.handled(),
            interrupts.held(),
        ):
            if not undisturbed:
                self._warn("another bench session was measuring on this machine at the same time")
            for other in machine.foreign_load():
                self._warn(
                    f"process {other['pid']} ({other['name']}) kept {other['cores']} processors busy at the start"
                )
            self.scratch = Path(tempfile.mkdtemp(prefix="bench-scratch-"))
            self.record.load_before = machine.load_average()
            try:
                self.run.write_record(self.record)
                with interrupts.allowed():  # bad input ends the run here, before anything is measured
                    for arm in self.plan.arms:
                        self._input(arm.workload)
                self.run.write_record(self.record)
                states = [[self._state(arm, retry_failed) for arm in cell] for cell in self.plan.cells]
                while True:
                    for cell in states:
                        self._run_cell(cell)
                    if not (more := self.more_launches()):
                        break
                    measure = self.plan.measure
                    measure = measure.model_copy(update={"launches": measure.launches + more})
                    self.plan = replace(self.plan, measure=measure)
                if any(not state.alive for cell in states for state in cell):
                    status, code = "failed", ExitCode.ARM_FAILED
            except KeyboardInterrupt:
                status, code = "interrupted", ExitCode.INTERRUPTED
            except BaseException:
                status = "failed"
                raise
            finally:
                for server in self._servers.values():
                    server.kill()
                shutil.rmtree(self.scratch, ignore_errors=True)
                self.record.status = status  # type: ignore[assignment]
                self.record.ended_utc = machine.utc_now()
                self.record.load_after = machine.load_average()
                with contextlib.suppress(StorageError):
                    self.run.write_record(self.record)
        return code

    # -- one cell ------------------------------------------------------------------------------------------------

    def _state(self, arm: Arm, retry_failed: bool) -> ArmState:
        """A fresh arm, or what an interrupted run left of it."""
        record = ArmRecord(
            id=arm.id,
            codebase=arm.codebase,
            label=arm.label,
            levels=dict(arm.levels),
            cell=arm.cell,
            workload=arm.workload.model_dump(),
            options=dict(arm.options),
            status="partial",
        )
        if (self.run.folder / "arms" / f"{arm.id}.json").exists():
            record = next(old for old in self.run.arms() if old.id == arm.id)
            if retry_failed:
                record.failure = None
        return ArmState(arm, record)

    def _rounds_done(self, states: list[ArmState]) -> tuple[int, int]:
        """Rounds in which every living arm has a block, and the first launch number that is free."""
        wanted = {state.arm.id for state in states if state.alive}
        seen: dict[tuple[int, int], set[str]] = {}
        last = -1
        for block in self.run.journal():
            if block["arm"] in {state.arm.id for state in states}:
                last = max(last, block["launch"])
                if block["round"] >= 0:
                    seen.setdefault((block["launch"], block["round"]), set()).add(block["arm"])
        return sum(wanted <= arms for arms in seen.values()), last + 1

    def _run_cell(self, states: list[ArmState]) -> None:
        if states[0].arm.workload.task == "train_eval":
            self._run_training(states)
            return
        measure = self.plan.measure
        done, launch = self._rounds_done(states)
        missing = measure.launches * measure.rounds - done
        try:
            # A session that was killed may have left all rounds but no facts about the arms: one launch more.
            while (missing > 0 and not self._out_of_time() and any(state.alive for state in states)) or any(
                state.alive and not state.record.description for state in states
            ):
                rounds = max(0, min(measure.rounds, missing))
                self._run_launch(states, launch, rounds)
                launch, missing = launch + 1, missing - rounds
                self._write_arms(states, complete=missing <= 0)
        finally:
            with contextlib.suppress(StorageError):
                self._write_arms(states, complete=missing <= 0 or self._out_of_time())
        if missing > 0 and self._out_of_time():
            planned = measure.launches * measure.rounds
            self._warn(f"{states[0].arm.cell}: time budget reached, {missing} of {planned} rounds missing")

    def _warn(self, text: str) -> None:
        self.record.warnings.append(text)
        self.listener.note(text)

    def _out_of_time(self) -> bool:
        return self._deadline is not None and time.monotonic() > self._deadline

    def _run_launch(self, states: list[ArmState], launch: int, rounds: int) -> None:
        """Fresh workers for all arms of a cell, their rounds, and the passes of their own."""
        measure = self.plan.measure
        with contextlib.ExitStack() as stack:
            self._start_all([state for state in states if state.alive], launch, stack)
            for state in states:
                if state.alive:
                    with self._failing(state, launch):
                        self._block(state, launch, round_=-1, position=0, steps=measure.warmup)
            if self.strict:
                self._refuse_unequal(states, launch)
            seed = zlib.crc32(f"{states[0].arm.cell}/{launch}/{states[0].arm.workload.seed}".encode())
            for round_, position, index in self._turns(len(states), rounds, seed):
                if position == 0 and self._out_of_time():
                    break
                if states[index].alive:
                    with self._failing(states[index], launch):
                        self._block(states[index], launch, round_, position, measure.steps)
            for state in states:
                if state.alive:
                    with self._failing(state, launch):
                        self._passes(state, launch)
                if state.group is not None:
                    state.group.stop()
                    state.group = None

    # -- training to a number of steps ---------------------------------------------------------------------------

    def _run_training(self, states: list[ArmState]) -> None:
        """Train all arms of a cell from where they are, in turns, evaluating on the way."""
        _, launch = self._rounds_done(states)
        # The same order whatever interrupted an earlier launch.
        seed = zlib.crc32(f"{states[0].arm.cell}/{states[0].arm.workload.seed}".encode())
        turns = max(len(state.arm.workload.turns()) for state in states)
        try:
            with contextlib.ExitStack() as stack:
                if self.strict:
                    for state in states:
                        self._start_training(state, launch, stack)
                    self._refuse_unequal(states, launch)
                for round_, position, index in self._turns(len(states), turns, seed):
                    if position == 0 and self._out_of_time():
                        self._warn(
                            f"{states[0].arm.cell}: time budget reached after {round_} of {turns} turns"
                        )
                        break
                    # Not before its turn: arms that are not interleaved need not all fit into memory.
                    self._start_training(states[index], launch, stack)
                    if states[index].alive and states[index].group is not None:
                        with self._failing(states[index], launch):
                            self._train_turn(states[index], launch, round_, position)
        finally:
            with contextlib.suppress(StorageError):
                for state in states:
                    self._write_arms([state], complete=self._trained(state))

    def _start_training(self, state: ArmState, launch: int, stack: contextlib.ExitStack) -> None:
        """A worker for an arm that has none and needs one, where its training was interrupted if it was."""
        if state.alive and state.group is None and not self._trained(state):
            with self._failing(state, launch):
                self._begin(state, launch, stack)
                self._ready(state)
                self._continue(state, launch)

    def _steps_done(self, arm: Arm) -> int:
        """Steps of a train_eval arm that are in the journal."""
        blocks = (block for block in self.run.journal() if block["arm"] == arm.id)
        return sum(len(block["ranks"][0]["start_ns"]) for block in blocks)

    def _trained(self, state: ArmState) -> bool:
        """Nothing is left to do: the last step is evaluated, and its weights are kept where they are to be."""
        steps = state.arm.workload.steps
        kept = not self.plan.measure.keep_checkpoints or self._checkpoint(state.arm).exists()
        return kept and any(evaluation["step"] == steps for evaluation in state.record.evaluations)

    def _checkpoint(self, arm: Arm) -> Path:
        return self.run.folder / "checkpoints" / f"{arm.id}.npz"

    def _state_file(self, arm: Arm, step: int, rank: int) -> Path:
        return self.run.folder / "state" / f"{arm.id}-{step}-{rank}"

    def _continue(self, state: ArmState, launch: int) -> None:
        """Load what the arm was after the last step of the journal, and evaluate it if a kill came between."""
        arm, step = state.arm, self._steps_done(state.arm)
        (self.run.folder / "state").mkdir(exist_ok=True)
        assert state.group is not None
        if not step:
            if arm.workload.evaluated_after(0):
                self._evaluate_step(state, launch, 0)
            return
        paths = [self._state_file(arm, step, rank).resolve() for rank in range(arm.workload.ranks)]
        if lost := [path for path in paths if not path.exists()]:
            raise WorkerFailure("environment", f"cannot go on after step {step}: {lost[0]} is gone", "load")
        by_rank = [{"state": str(path)} for path in paths]
        state.group.request("load", self.plan.measure.deadline_s, by_rank=by_rank, step=step)
        if arm.workload.evaluated_after(step):
            self._evaluate_step(state, launch, step)

    def _train_turn(self, state: ArmState, launch: int, round_: int, position: int) -> None:
        """The steps of one turn of an arm, unless an earlier session took them, and the evaluation after them."""
        assert state.group is not None
        arm, workload = state.arm, state.arm.workload
        edges = [0, *workload.turns()]
        if round_ + 1 >= len(edges) or edges[round_] != self._steps_done(arm):
            return
        begin, end = edges[round_ : round_ + 2]
        paths = [self._state_file(arm, end, rank).resolve() for rank in range(workload.ranks)]
        by_rank = [{"state": str(path)} for path in paths]
        replies = state.group.request(
            "train", self.plan.measure.deadline_s, by_rank=by_rank, steps=end - begin
        )
        block = {
            "arm": arm.id,
            "launch": launch,
            "round": round_,
            "position": position,
            "ranks": [{"start_ns": reply["start_ns"], "end_ns": reply["end_ns"]} for reply in replies],
            "losses": replies[0]["losses"],
        }
        self.run.append_block(block)
        for rank in range(workload.ranks if begin else 0):
            self._state_file(arm, begin, rank).unlink(missing_ok=True)
        # The first step's as well: it is that of the same weights and images, whatever training makes of them.
        for step in dict.fromkeys((end - begin - 1,) if begin else (0, end - 1)):
            losses = {name: values[step] for name, values in replies[0]["losses"].items()}
            entry = {"launch": launch, "round": round_, "step": begin + step, "losses": losses}
            state.record.losses.append(entry)
        self._note_memory(state, launch, replies)
        slowest_ns = max(reply["end_ns"] - reply["start_ns"][0] for reply in replies)
        self.listener.block(arm, launch, round_, slowest_ns / 1e9 / (end - begin))
        if workload.evaluated_after(end):
            self._evaluate_step(state, launch, end)

    def _evaluate_step(self, state: ArmState, launch: int, step: int) -> None:
        """Evaluate what a kill has not left evaluated; after the last step keep the weights, and no more."""
        if not any(evaluation["step"] == step for evaluation in state.record.evaluations):
            self._evaluate(state, launch, step)
            self._write_arms([state], complete=False)
        if step < state.arm.workload.steps:
            return
        assert state.group is not None
        ranks = range(state.arm.workload.ranks)
        if self.plan.measure.keep_checkpoints:
            path = self._checkpoint(state.arm)
            path.parent.mkdir(exist_ok=True)
            temporary = path.with_name(f".{path.name}").resolve()
            # Every rank answers; the first one's weights are those of all.
            by_rank = [{"path": str(self.scratch / f"{rank}.npz" if rank else temporary)} for rank in ranks]
            state.group.request("save", self.plan.measure.deadline_s, by_rank=by_rank)
            os.replace(temporary, path)
        state.group.stop()
        state.group = None
        for rank in ranks:
            self._state_file(state.arm, step, rank).unlink(missing_ok=True)

    def _predict(self, state: ArmState, launch: int, name: str) -> dict[str, Any]:
        """Have the first rank write its detections."""
        assert state.group is not None
        path = self.run.folder / "predictions" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        self.listener.stage(state.arm, launch, "predict")
        reply = state.group.request("predict", self.plan.measure.deadline_s, path=str(path.resolve()))[0]
        return {**reply["predictions"], "path": str(path.relative_to(self.run.folder))}

    def _evaluate(self, state: ArmState, launch: int, step: int | None) -> None:
        """Predictions of the arm as it is now, and their AP by our own evaluator; ``step``: None of task eval."""
        arm, record = state.arm, state.record
        dataset = self._input(arm.workload).evaluated
        assert dataset is not None
        predictions = self._predict(state, launch, arm.id if step is None else f"{arm.id}-{step}")
        if predictions["images"] != len(dataset.image_ids):
            problem = f"predicted {predictions['images']} of {len(dataset.image_ids)} images"
            raise WorkerFailure("protocol", problem, "predict")
        truth = self.run.folder / "ground_truth" / f"{dataset.split}-{dataset.checksum[:12]}.json"
        if not truth.exists():
            truth.parent.mkdir(exist_ok=True)
            shutil.copyfile(dataset.annotations, truth)
        try:
            found = evaluate_file(
                truth, self.run.folder / predictions["path"], masks=arm.workload.has_masks and dataset.masks
            )
        except BenchError as error:
            raise WorkerFailure("exception", str(error), "evaluate") from None
        record.predictions = predictions
        record.evaluated = {
            "split": dataset.split,
            "checksum": dataset.checksum,
            "ground_truth": str(truth.relative_to(self.run.folder)),
            "image_ids": list(dataset.image_ids),
        }
        blocks = samples_frame([block for block in self.run.journal() if block["arm"] == arm.id])
        times = block_times(blocks)
        record.evaluations.append(
            {
                "step": step,
                "train_s": None if step is None else float((times["s_per_step"] * times["steps"]).sum()),
                "predictions": predictions,
                **{kind: one.as_json() for kind, one in found.items()},
            }
        )
        for kind, one in found.items():
            del record.evaluations[-1][kind]["image_ids"]  # they are in `evaluated`
            value = "undefined" if one.metrics["AP"] is None else f"{100 * one.metrics['AP']:.2f}"
            where = "" if step is None else f" after step {step}"
            self.listener.note(f"{arm.id}{where}: {kind} AP {value}")

    def _refuse_unequal(self, states: list[ArmState], launch: int) -> None:
        verdicts = audit_run([state.record for state in states if state.alive], self.plan.baseline)
        for state in states:
            verdict = verdicts.get(state.arm.id)
            if state.alive and verdict is not None and not verdict.equal:
                with self._failing(state, launch):
                    raise WorkerFailure(
                        "audit", "unequal work: " + "; ".join(map(str, verdict.differences)), "audit"
                    )

    def _turns(self, arms: int, rounds: int, seed: int) -> Iterator[tuple[int, int, int]]:
        """(round, position in the round, arm index) in the order of measuring."""
        orders = round_orders(arms, rounds, seed)
        if self.plan.measure.interleave:
            for round_, order in enumerate(orders):
                for position, index in enumerate(order):
                    yield round_, position, index
        else:
            for position, index in enumerate(orders[0]):
                for round_ in range(rounds):
                    yield round_, position, index

    # -- one worker ----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _failing(self, state: ArmState, launch: int) -> Iterator[None]:
        """A failure inside makes a failed arm with its reason and log tail; the other arms go on."""
        try:
            yield
        except WorkerFailure as failure:
            log = self._log(state.arm, launch)
            if state.group is not None:
                state.group.kill()  # first, so that the log is complete
                state.group = None
            state.record.failure = Failure(
                reason=failure.reason,
                message=failure.message,
                stage=failure.stage,
                launch=launch,
                log=str(log.relative_to(self.run.folder)),
                log_tail=tail(log),
            )
            self.listener.failed(state.arm, state.record.failure)

    def _log(self, arm: Arm, launch: int) -> Path:
        return self.run.folder / "logs" / f"{arm.id}-{launch}.log"

    def _start_all(self, states: list[ArmState], launch: int, stack: contextlib.ExitStack) -> None:
        """Workers for these arms, ready for their first step. While one imports its codebase and builds its model, on
        one processor for the most part, the next does so too; nothing is timed before all are ready."""
        for begun, state in itertools.pairwise([None, *states, None]):
            if state is not None:
                with self._failing(state, launch):
                    self._begin(state, launch, stack)
            if begun is not None and begun.alive:
                with self._failing(begun, launch):
                    self._ready(begun)

    def _begin(self, state: ArmState, launch: int, stack: contextlib.ExitStack) -> None:
        """Start the workers of an arm and tell them what to prepare."""
        arm, deadline_s = state.arm, self.plan.measure.deadline_s
        self.listener.stage(arm, launch, "prepare")
        spec = self._launch_spec(arm, self._log(arm, launch))
        prepared = self._input(arm.workload)
        weights = self._weights_of(arm, prepared, state.record)
        state.group = stack.enter_context(WorkerGroup(spec, self._server(arm, spec)))
        state.described = False
        state.group.start(deadline_s)
        codebase = self._codebase(arm)
        jobs = [self._job(arm, codebase, prepared, weights, rank) for rank in range(arm.workload.ranks)]
        if prepared.schedule:
            workload = arm.workload
            shared = {
                "schedule_sha256": prepared.schedule["sha256"],
                "seed": workload.seed,
                "flip": workload.flip,
            }
            own = {"order": "of the codebase's own loader", "augmentation": "of the codebase's own loader"}
            state.record.input = shared if workload.input.mode == "shared" else own
        by_rank = [{"job": job} for job in jobs]
        state.group.send("prepare", adapter_file=str(codebase.adapter_file), by_rank=by_rank)

    def _ready(self, state: ArmState) -> None:
        """Wait until the workers of an arm have prepared, and note what they are."""
        arm, deadline_s = state.arm, self.plan.measure.deadline_s
        assert state.group is not None
        reply = state.group.receive("prepare", deadline_s)[0]
        if arm.checkout:
            _refuse_other_source(arm.checkout, reply["source"])
        if not state.record.description:
            state.described = True
            described = state.group.request("describe", deadline_s)[0]["description"]
            state.record.description = {**described, "codebase_version": reply["codebase_version"]}
            state.record.environment = self._environment(state.group.spec, reply["source"])
            if state.group.server is not None:
                state.record.environment["preloaded"] = list(state.group.server.spec.preload)

    def _server(self, arm: Arm, spec: LaunchSpec) -> WorkerGroup | None:
        """A process to fork this arm from, when the arms it is compared with are of the same codebase.

        What all of them are built on is then imported once a session, not once a launch (six of twelve seconds, with
        torch), and lies at the same addresses in all of them: under equal work the arms stay exchangeable, so that the
        rates of `bench.gate` hold. Arms of unlike codebases never share a process.
        """
        modules = self.codebases[arm.codebase].preload
        if not modules or spec.ranks > 1 or not (self.plan.aa or arm.checkout):
            return None
        key = repr((spec.python, sorted(spec.variables.items())))
        if key not in self._servers:
            log = self.run.folder / "logs" / f"preload-{len(self._servers)}.log"
            with contextlib.ExitStack() as unless_started:
                server = WorkerGroup(replace(spec, preload=tuple(modules), source=None, log=log))
                unless_started.enter_context(server).start(self.plan.measure.deadline_s)
                unless_started.pop_all()
            self._servers[key] = server
        return self._servers[key]

    def _codebase(self, arm: Arm) -> Codebase:
        return arm.checkout.codebase if arm.checkout else self.codebases[arm.codebase]

    def _launch_spec(self, arm: Arm, log: Path) -> LaunchSpec:
        codebase = self._codebase(arm)
        try:
            python = python_of(codebase)
        except BenchError as error:
            raise WorkerFailure("environment", f"{error.message}; {error.hint}", "hello") from None
        threads = str(threads_of(arm))
        counts = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
        variables = {**dict.fromkeys(counts, threads), **codebase.variables, **arm.variables}
        affinity = self.record.recipe["environment"]["affinity"]
        if affinity:
            variables["BENCH_WORKER_AFFINITY"] = ",".join(map(str, affinity))
        source, adapters = (arm.checkout.source, arm.checkout.adapters) if arm.checkout else (None, None)
        return LaunchSpec(
            python, codebase.launcher, arm.workload.ranks, variables, log, source, adapters or ADAPTERS
        )

    def _job(
        self, arm: Arm, codebase: Codebase, prepared: Prepared, weights: Path | None, rank: int
    ) -> dict[str, Any]:
        dataset = prepared.dataset
        offer = codebase.models.get(arm.workload.model)
        return {
            "workload": arm.workload.model_dump(mode="json"),
            "options": {**(offer.options if offer else {}), **arm.options},
            "model": offer.model_dump() if offer else {"name": arm.workload.model.partition("://")[2]},
            "classes": list(dataset.classes),
            "category_ids": list(dataset.category_ids),
            "dataset": {
                "images": str(dataset.images.resolve()),
                "annotations": str(dataset.annotations.resolve()),
                "image_ids": list(dataset.image_ids),
            },
            "weights": str(weights) if weights else None,
            "batches": str(prepared.batches),
            "evaluation": str(prepared.evaluation_batches) if prepared.evaluation_batches else None,
            "schedule": prepared.schedule,
            "threads": threads_of(arm),
            "rank": rank,
            "world_size": arm.workload.ranks,
            "scratch": str(self.scratch),
        }

    def _block(self, state: ArmState, launch: int, round_: int, position: int, steps: int) -> None:
        assert state.group is not None
        measure = self.plan.measure
        replies = state.group.request("run_block", measure.deadline_s, steps=steps, settle=measure.settle)
        block = {
            "arm": state.arm.id,
            "launch": launch,
            "round": round_,
            "position": position,
            "ranks": [{"start_ns": reply["start_ns"], "end_ns": reply["end_ns"]} for reply in replies],
        }
        self.run.append_block(block)
        state.record.losses.append({"launch": launch, "round": round_, "losses": replies[0]["losses"]})
        slowest_ns = max(reply["end_ns"] - reply["start_ns"][0] for reply in replies)
        self.listener.block(state.arm, launch, round_, slowest_ns / 1e9 / steps)

    def _note_memory(self, state: ArmState, launch: int, replies: list[dict[str, Any]]) -> None:
        """One reply of each rank."""
        state.record.memory += [
            Memory(rank=rank, launch=launch, described=state.described, **reply["memory"])
            for rank, reply in enumerate(replies)
        ]

    def _passes(self, state: ArmState, launch: int) -> None:
        """Memory and phases of this launch; predictions once."""
        measure, deadline_s = self.plan.measure, self.plan.measure.deadline_s
        assert state.group is not None
        self.listener.stage(state.arm, launch, "memory, phases")
        if measure.memory_steps:
            replies = state.group.request("memory_pass", deadline_s, steps=measure.memory_steps)
            self._note_memory(state, launch, replies)
        if measure.phase_steps:
            reply = state.group.request("phase_pass", deadline_s, steps=measure.phase_steps)[0]
            for name, seconds in reply["phases"].items():
                state.record.phases.setdefault(name, []).extend(seconds)
            reply = state.group.request("operator_pass", deadline_s)[0]
            for name, value in reply["seconds"].items():
                state.record.operators.setdefault(name, []).append(value)
            if "peak_flops_per_s" not in state.record.description:
                by_rank = [reply["flops_per_s"] for reply in state.group.request("peak", deadline_s)]
                peaks = {name: sum(rank[name] for rank in by_rank) for name in by_rank[0]}
                state.record.description["peak_flops_per_s"] = peaks
        workload = state.arm.workload
        if workload.task == "eval" and not state.record.evaluations:
            self._evaluate(state, launch, None)
        elif measure.predict and workload.task == "infer" and state.record.predictions is None:
            state.record.predictions = self._predict(state, launch, state.arm.id)

    def _write_arms(self, states: list[ArmState], *, complete: bool) -> None:
        journal = self.run.journal()
        for state in states:
            blocks = [block for block in journal if block["arm"] == state.arm.id]
            measured = [block for block in blocks if block["round"] >= 0]
            state.record.launches = len({block["launch"] for block in measured})
            state.record.blocks = len(measured)
            state.record.steps = sum(len(block["ranks"][0]["start_ns"]) for block in measured)
            if not state.alive:
                state.record.status = "failed"
            else:
                state.record.status = "ok" if complete and measured else "partial"
            self.run.write_arm(state.record, samples_frame(blocks))

    # -- input, weights, environment -----------------------------------------------------------------------------

    def _input(self, workload: Workload) -> Prepared:
        if workload.task == "eval":  # timed on the images that it evaluates
            dataset = open_evaluation(workload, self.cache)
        else:
            dataset = open_dataset(workload.input, workload.task, self.cache)
        self._note_dataset(dataset)
        prepared = Prepared(dataset, prepare_batches(dataset, workload, self.cache))
        if workload.evaluates:
            prepared.evaluated = open_evaluation(workload, self.cache)
            self._note_dataset(prepared.evaluated)
            if prepared.evaluated.category_ids != dataset.category_ids:
                raise BenchError(
                    "the split to evaluate has other categories than the one to train on",
                    where=str(prepared.evaluated.annotations),
                )
            single = workload.model_copy(update={"batch_size": 1, "ranks": 1})
            prepared.evaluation_batches = prepare_batches(prepared.evaluated, single, self.cache)
        if workload.task == "train_eval":
            path, sha256 = prepare_schedule(dataset, workload, self.cache)
            prepared.schedule = {"path": str(path), "sha256": sha256}
        return prepared

    def _note_dataset(self, dataset: Dataset) -> None:
        self.record.dataset[f"{dataset.name}/{dataset.split}"] = {
            "annotations": str(dataset.annotations),
            "images": len(dataset.image_ids),
            "checksum": dataset.checksum,
        }

    def _weights_of(self, arm: Arm, prepared: Prepared, record: ArmRecord) -> Path | None:
        """The weights an arm starts from, in its codebase's own names; None: its own seeded initialisation."""
        workload = arm.workload
        if arm.weights is not None:
            return _weights_file(arm.weights, workload)
        if workload.weights == "random" or "://" in workload.model:
            return None
        if workload.weights == "transplant":
            source = self.codebases.get(WEIGHTS_SOURCE)
            if source is None or workload.model not in source.models:
                self._no_transplant(record, f"{WEIGHTS_SOURCE} offers no {workload.model}")
                return None
            options = weights.source_options(arm.codebase, workload.model, arm.options)
            canonical = self._canonical_weights(arm, source, prepared, options)
        else:
            canonical = _weights_file(workload.weights, workload)
        if not weights.supports(arm.codebase, workload.model):
            self._no_transplant(record, f"no mapping of {workload.model} to {arm.codebase}")
            return None
        target = self.scratch / f"{canonical.stem}-{workload.model}-{arm.codebase}.npz"
        if not target.exists():
            with np.load(canonical, allow_pickle=False) as state:
                mapped = weights.to_codebase(arm.codebase, workload.model, dict(state))
            np.savez(target, **mapped)  # type: ignore[arg-type]
        return target

    def _no_transplant(self, record: ArmRecord, reason: str) -> None:
        warning = f"own random weights, not the transplanted ones: {reason}"
        if warning not in record.warnings:
            record.warnings.append(warning)

    def _canonical_weights(
        self, arm: Arm, source: Codebase, prepared: Prepared, options: dict[str, Any]
    ) -> Path:
        """Seeded weights of the canonical model, made once a session by the source codebase with these options."""
        workload = arm.workload.model_copy(
            update={"ema": False, "precision": "float32", "device": "cpu", "ranks": 1, "weights": "random"}
        )
        identity = (
            f"{workload.model}-{options}-{workload.seed}-{workload.frozen_bn}-{prepared.dataset.checksum}"
        )
        key = hashlib.sha256(identity.encode()).hexdigest()[:16]
        if key not in self._weights:
            path = self.scratch / f"canonical-{key}.npz"
            deadline_s = self.plan.measure.deadline_s
            source_arm = Arm(
                f"weights-{workload.model}",
                source.name,
                source.name,
                {},
                "",
                workload,
                options,
                {},
                arm.threads,
            )
            self.listener.stage(source_arm, 0, "weights")
            with WorkerGroup(self._launch_spec(source_arm, self._log(source_arm, 0))) as group:
                group.start(deadline_s)
                job = self._job(source_arm, source, prepared, None, 0)
                group.request("prepare", deadline_s, adapter_file=str(source.adapter_file), job=job)
                group.request("save", deadline_s, path=str(path))
                group.stop()
            self._weights[key] = path
        return self._weights[key]

    def _environment(self, spec: LaunchSpec, source: str | None) -> dict[str, Any]:
        python = str(spec.python)
        if python not in self._environments:
            self._environments[python] = machine.environment_of(spec.python)
        revision = machine.git_revision(Path(source)) if source else {}
        variables = machine.speed_variables({**os.environ, **spec.variables})
        return {**self._environments[python], "git": revision, "variables": {**variables, **spec.variables}}


def new_run(loaded: LoadedRecipe, plan: Plan, results: Path, command: list[str]) -> tuple[Run, RunRecord]:
    """A folder and record for a run that starts now."""
    started = machine.utc_now()
    identity = f"{started.replace('-', '').replace(':', '')[:15]}Z-{secrets.token_hex(3)}"
    record = RunRecord(
        id=identity,
        recipe=loaded.recipe.model_dump(mode="json"),
        recipe_path=str(loaded.path),
        command=command,
        started_utc=started,
        bench_version=__version__,
        git=machine.git_revision(Path(__file__).parent),
        machine=machine.describe_machine(),
        arms=[arm.id for arm in plan.arms],
        baseline=dict(plan.baseline),
        aa=plan.aa,
    )
    return Run(results / plan.name / identity), record


def resumed(run: Run, codebases: Mapping[str, Codebase]) -> tuple[Plan, RunRecord]:
    """The plan and record of a run that was interrupted, as they were resolved when it started."""
    record = run.record()
    loaded = LoadedRecipe(Recipe.model_validate(record.recipe), run.folder / "run.json", {})
    plan = make_plan(loaded, codebases, aa=record.aa)
    if [arm.id for arm in plan.arms] != record.arms:
        raise BenchError("this version of bench plans other arms for this recipe", where=str(run.folder))
    return plan, record


def _weights_file(path: str, workload: Workload) -> Path:
    """A file of weights, whose name may hold the model's, or the newest that a run in a folder left of the model, in
    canonical names. Raises WorkerFailure."""
    file = Path(path.replace("{model}", workload.model)).expanduser().resolve()
    if file.is_dir():
        runs = [file] if (file / "run.json").exists() else sorted(p.parent for p in file.glob("*/run.json"))
        file = next((found for run in reversed(runs) if (found := _kept(Run(run), workload.model))), file)
    if not file.is_file():
        raise WorkerFailure("environment", f"no weights of {workload.model} at {file}", "prepare")
    return file


def _kept(run: Run, model: str) -> Path | None:
    """The checkpoint of the source codebase's arm of a model."""
    arms = (arm.id for arm in run.arms() if arm.codebase == WEIGHTS_SOURCE and arm.workload["model"] == model)
    paths = (run.folder / "checkpoints" / f"{arm}.npz" for arm in arms)
    return next((path for path in paths if path.is_file()), None)


def _refuse_other_source(checkout: Checkout, imported: str | None) -> None:
    """An arm that is named after a revision must not measure an installed package instead."""
    found = Path(imported) if imported else checkout.codebase.folder
    if not found.resolve().is_relative_to(checkout.tree.resolve()):
        raise WorkerFailure("environment", f"imports {found}, not the revision under check", "prepare")


def threads_of(arm: Arm) -> int:
    """Threads of one worker: as the recipe says, else the usable processors shared among the ranks."""
    return arm.threads or max(1, len(machine.affinity()) // arm.workload.ranks)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one session may write a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BenchError("another bench session is measuring this run", where=str(folder)) from None
        yield


@contextlib.contextmanager
def alone(cache: Path) -> Iterator[bool]:
    """Whether no other session measures on this machine now; sessions that start later will find this one."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "measuring.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            undisturbed = True
        except OSError:
            undisturbed = False
        yield undisturbed


def tail(log: Path, lines: int = LOG_TAIL_LINES) -> list[str]:
    """The last lines of a log, whatever bytes a codebase printed."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:]
    except OSError:
        return []
