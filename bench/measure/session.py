"""Runs a plan: prepares all inputs, then measures cell after cell, and keeps everything measured.

A finished block is in the journal before the next one starts.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from bench import __version__
from bench.environments import cache_folder
from bench.errors import BenchError, ExitCode, StorageError
from bench.measure import interrupts
from bench.measure.arm import Listener, MeasuredArm, Site
from bench.measure.cell import run_cell
from bench.measure.preflight import refuse_other_place, refuse_other_revision
from bench.measure.prepare import prepare_all
from bench.measure.training import run_training
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe, check_names
from bench.recipe.plan import Arm, Plan, make_plan
from bench.recipe.schema import Recipe
from bench.record import machine
from bench.record.models import ArmRecord, RunRecord
from bench.record.run import Run
from bench.record.software import git_revision


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
            alone(self.cache) as undisturbed,
            interrupts.handled(),
            interrupts.held(),
        ):
            scratch = Path(tempfile.mkdtemp(prefix="bench-scratch-"))
            site = Site(
                self.plan, self.run, self.record, self.codebases, self.cache, scratch, self.listener,
                self.strict, deadline,
            )  # fmt: skip
            _note_disturbance(site, undisturbed)
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
                shutil.rmtree(scratch, ignore_errors=True)
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
            prepare_all(site, [one for cell in cells for one in cell])
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
            return MeasuredArm(arm, record, site)
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
        )
        return MeasuredArm(arm, record, site)


def _note_disturbance(site: Site, undisturbed: bool) -> None:
    if not undisturbed:
        site.warn("another bench session was measuring on this machine at the same time")
    for other in machine.foreign_load():
        pid, name, cores = other["pid"], other["name"], other["cores"]
        site.warn(f"process {pid} ({name}) kept {cores} processors busy at the start")
    site.record.load_before = machine.load_average()


def new_run(loaded: LoadedRecipe, plan: Plan, results: Path, command: list[str]) -> tuple[Run, RunRecord]:
    """A folder and record for a run that starts now."""
    started = machine.utc_now()
    identity = f"{started.replace('-', '').replace(':', '')[:15]}Z-{secrets.token_hex(3)}"
    run = Run(results / plan.name / identity, cache_folder())
    record = RunRecord(
        id=identity,
        recipe=loaded.recipe.model_dump(mode="json"),
        recipe_path=str(loaded.path),
        command=command,
        started_utc=started,
        bench_version=__version__,
        git=run.note_revision(Path(__file__).parent, "bench"),
        machine=machine.describe_machine(),
        arms=[arm.id for arm in plan.arms],
        baseline=dict(plan.baseline),
        aa=plan.aa,
    )
    return run, record


def resumed(run: Run, codebases: Mapping[str, Codebase]) -> tuple[Plan, RunRecord]:
    """The plan and record of a run that was interrupted, as they were resolved when it started."""
    record = run.record()
    loaded = LoadedRecipe(Recipe.model_validate(run.places.local(record.recipe)), run.folder / "run.json", {})
    check_names(loaded)
    refuse_other_place(record, run.arms(), machine.describe_machine())
    refuse_other_revision(record.git.revision, git_revision(Path(__file__).parent).get("revision"), "bench")
    plan = make_plan(loaded, codebases, aa=record.aa)
    if [arm.id for arm in plan.arms] != record.arms:
        raise BenchError("this version of bench plans other arms for this recipe", where=str(run.folder))
    return plan, record


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one session may write a run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise BenchError("another bench session is measuring this run", where=str(folder)) from None


@contextlib.contextmanager
def alone(cache: Path) -> Iterator[bool]:
    """Whether no other session measures on this machine now; sessions that start later will find this one."""
    cache.mkdir(parents=True, exist_ok=True)
    lock = FileLock(cache / "measuring.lock", timeout=0)
    with contextlib.suppress(Timeout):
        lock.acquire()
    try:
        yield lock.is_locked
    finally:
        lock.release()
