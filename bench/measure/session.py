"""Runs a plan: prepares all inputs, then measures cell after cell, and keeps everything measured.

A finished block is in the journal before the next one starts.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from bench import __version__
from bench.environments import cache_folder
from bench.errors import BenchError, ExitCode, StorageError, telling
from bench.measure import interrupts
from bench.measure.arm import MeasuredArm
from bench.measure.cell import run_cell
from bench.measure.family import adopting_orphans
from bench.measure.locks import exclusive
from bench.measure.preflight import refuse_other_place, refuse_other_revision
from bench.measure.prepare import prepare_all
from bench.measure.scratch import own_folder, socket_places
from bench.measure.site import Listener, Site
from bench.measure.training import run_training
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe, check_names
from bench.recipe.plan import Arm, Plan, make_plan
from bench.recipe.schema import Recipe
from bench.record import machine
from bench.record.models import ArmRecord, RunRecord
from bench.record.run import Run
from bench.record.software import git_revision
from bench.worker.batches import file_sha256


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

    def execute(self, *, retry_failed: bool = False) -> int:
        """Measure all that is not yet measured. Returns the exit code; the record says what happened."""
        budget_s = self.plan.measure.time_budget_s
        deadline = None if budget_s is None else time.monotonic() + budget_s
        status, code = "complete", ExitCode.SUCCESS
        with (
            locked(self.run.folder),
            alone(self.cache) as others,
            interrupts.handled(),
            interrupts.held(),
            adopting_orphans(),
            own_folder([self.cache / "scratch", *socket_places()]) as scratch,
        ):
            site = Site(
                self.plan, self.run, self.record, self.codebases, self.cache, scratch, self.listener,
                self.strict, deadline,
            )  # fmt: skip
            _note_disturbance(site, others)
            try:
                if not self._measure(site, retry_failed):
                    status, code = "failed", ExitCode.ARM_FAILED
            except KeyboardInterrupt:
                status, code = "interrupted", ExitCode.INTERRUPTED
            except BaseException:
                status = "failed"
                raise
            finally:
                for server in site.servers.values():
                    server.kill()
                if others.came_later():
                    site.warn(OTHERS)
                self.record.status = status  # type: ignore[assignment]
                self.record.ended_utc = machine.utc_now()
                self.record.load_after = machine.load_average()
                with contextlib.suppress(StorageError):
                    self.run.write_record(self.record)
        return code

    def _measure(self, site: Site, retry_failed: bool) -> bool:
        """Prepare, then measure until nothing is asked for. Returns whether no arm failed."""
        self.run.write_record(self.record)
        cells = [[self._arm(site, arm, retry_failed) for arm in cell] for cell in self.plan.cells]
        with interrupts.allowed():  # bad input ends the run here, before anything is measured
            try:
                prepare_all(site, [one for cell in cells for one in cell])
            except StorageError as error:  # nothing was measured that could be completed
                raise BenchError(
                    error.message, hint="make room; BENCH_CACHE and TMPDIR name the folders"
                ) from None
        self.run.write_record(self.record)
        while True:
            for cell in cells:
                trained = cell[0].arm.workload.task == "train_eval" and site.plan.measure.rounds
                (run_training if trained else run_cell)(site, cell)
            if not (more := self.more_launches()):
                site.warn_of_disturbance()
                return all(one.alive for cell in cells for one in cell)
            launches = site.plan.measure.launches + more
            site.plan = replace(
                site.plan, measure=site.plan.measure.model_copy(update={"launches": launches})
            )

    def _arm(self, site: Site, arm: Arm, retry_failed: bool) -> MeasuredArm:
        """A fresh arm, or what an interrupted run left of it."""
        if (self.run.folder / "arms" / f"{arm.id}.json").exists():
            record = next(old for old in self.run.arms() if old.id == arm.id)
            if retry_failed:
                record.failure = None
            self._note_lost(record)
            return MeasuredArm(arm, record, site)
        one = fresh_arm(site, arm)
        self._note_lost(one.record)
        return one

    def _note_lost(self, record: ArmRecord) -> None:
        """Say what a kill took with it: the journal has the times of a launch, and no more."""
        launches = {block.launch for block in self.run.journal() if block.arm == record.id}
        kept = {
            "losses": {one.launch for one in record.losses},
            "memory": {one.launch for one in record.memory},
        }
        for launch in sorted(launches):
            lost = [name for name, found in kept.items() if launch not in found]
            text = f"launch {launch + 1} was cut short: its {' and '.join(lost)} are missing"
            if lost and text not in record.warnings:
                record.warnings.append(text)


Kind = Literal["run", "check", "calibration"]


def fresh_arm(site: Site, arm: Arm) -> MeasuredArm:
    """An arm of which nothing is known yet."""
    files = {"model_sha256": arm.model, "weights_sha256": arm.weights}
    record = ArmRecord(
        id=arm.id,
        codebase=arm.codebase,
        label=arm.label,
        levels=dict(arm.levels),
        cell=arm.cell,
        baseline=arm.baseline,
        workload=arm.workload,
        options=dict(arm.options),
        status="partial",
        **{name: file_sha256(path) for name, path in files.items() if path and os.path.isfile(path)},
    )
    return MeasuredArm(arm, record, site)


OTHERS = "another bench session was measuring on this machine at the same time"


def _note_disturbance(site: Site, others: Others) -> None:
    if others.here_first:
        site.warn(OTHERS)
    for other in machine.foreign_load():
        pid, name, cores = other["pid"], other["name"], other["cores"]
        site.warn(f"process {pid} ({name}) kept {cores} processors busy at the start")
    site.record.load_before = machine.load_average()


def new_run(
    loaded: LoadedRecipe, plan: Plan, results: Path, command: list[str], kind: Kind = "run"
) -> tuple[Run, RunRecord]:
    """A folder and record for a run that starts now."""
    started = machine.utc_now()
    identity = f"{started.replace('-', '').replace(':', '')[:15]}Z-{secrets.token_hex(3)}"
    run = Run(results / plan.name / identity, cache_folder())
    with telling("cannot be written", run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(
        id=identity,
        recipe=loaded.recipe.model_dump(mode="json"),
        recipe_path=str(loaded.path),
        command=command,
        kind=kind,
        started_utc=started,
        bench_version=__version__,
        git=run.note_revision(Path(__file__).parent, "bench"),
        machine=machine.describe_machine(),
        arms=[arm.id for arm in plan.arms],
        baseline=dict(plan.baseline),
        aa=plan.aa,
    )
    return run, record


def plan_of_run(run: Run, codebases: Mapping[str, Codebase]) -> tuple[Plan, RunRecord]:
    """The plan and record of a stored run, as they were resolved when it started."""
    record = run.record()
    loaded = LoadedRecipe(Recipe.model_validate(run.places.local(record.recipe)), run.folder / "run.json", {})
    check_names(loaded)
    plan = make_plan(loaded, codebases, aa=record.aa)
    if [arm.id for arm in plan.arms] != record.arms:
        raise BenchError("this version of bench plans other arms for this recipe", where=str(run.folder))
    return plan, record


def resumed(run: Run, codebases: Mapping[str, Codebase]) -> tuple[Plan, RunRecord]:
    """Plan and record of an interrupted run that goes on here, on the same kind of machine and revision."""
    record = run.record()
    refuse_other_place(record, run.arms(), machine.describe_machine())
    refuse_other_revision(record.git.revision, git_revision(Path(__file__).parent).get("revision"), "bench")
    return plan_of_run(run, codebases)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one session may write a run folder. Raises BenchError when it cannot be written."""
    with telling("cannot be written", folder):
        folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock") as held:
        if not held:
            raise BenchError("another bench session is measuring this run", where=str(folder))
        yield


@dataclass
class Others:
    """Sessions that measure on this machine at the same time."""

    lock: Path
    here_first: bool
    """One was there when this one began."""
    touched_ns: int

    def came_later(self) -> bool:
        """Whether one has begun since."""
        return not self.here_first and _touched_ns(self.lock) != self.touched_ns


def _touched_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@contextlib.contextmanager
def alone(cache: Path) -> Iterator[Others]:
    """Sessions that measure here now; those that start later find this one, and mark its lock."""
    lock = cache / "measuring.lock"
    with contextlib.ExitStack() as stack:
        with telling("cannot be written", cache, "set BENCH_CACHE to a folder of yours"):
            cache.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(exclusive(lock, then_shared=True))
        if not held:
            with contextlib.suppress(OSError):
                os.utime(lock)
        yield Others(lock, not held, _touched_ns(lock))
