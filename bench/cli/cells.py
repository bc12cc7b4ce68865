"""`bench run` cell by cell: with `--cell`, `--shard`, `--skip-done`, `--store` or `--executor`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cli.estimate import estimates_of
from bench.cli.options import print_json, say
from bench.environments import cache_folder
from bench.errors import BenchError, ExitCode, did_you_mean
from bench.measure.cells import Cell, Cells, cells_of, pick
from bench.measure.executors import Executor, Task, Watch
from bench.measure.executors.ray import Ray
from bench.measure.executors.slurm import Slurm
from bench.measure.progress import listener
from bench.recipe.codebases import find_codebases
from bench.recipe.load import LoadedRecipe
from bench.recipe.plan import Plan
from bench.record.collect import collect
from bench.record.run import Run, resolve_run
from bench.record.store import Store, is_store, open_store

EXECUTORS = ("slurm", "ray")


@dataclass(frozen=True)
class Asked:
    """The options of `bench run` that make its cells runs of their own."""

    cell: str | None = None
    shard: str | None = None
    skip_done: bool = False
    store: str | None = None
    executor: str | None = None
    address: str | None = None
    constraint: str | None = None
    sbatch: tuple[str, ...] = ()
    poll_s: float = 5.0

    def __post_init__(self) -> None:
        if self.executor is not None and self.executor not in EXECUTORS:
            hint = did_you_mean(self.executor, EXECUTORS)
            raise BenchError(f"unknown executor '{self.executor}'", hint=hint)
        if self.executor and self.cell:
            raise BenchError("--executor starts the cells itself: leave --cell out")

    @property
    def by_cell(self) -> bool:
        """Whether cells are runs of their own."""
        return bool(self.cell or self.shard or self.skip_done or self.store or self.executor)


@dataclass(frozen=True)
class Sweep:
    """A recipe whose cells are measured one by one, here or elsewhere."""

    loaded: LoadedRecipe
    plan: Plan
    asked: Asked
    results: Path
    adapters: Sequence[Path]
    passed: tuple[str, ...]
    """Options of this command that the command of one cell needs as well."""
    quiet: bool
    strict: bool
    as_json: bool = False

    @property
    def url(self) -> str:
        url = self.asked.store or str(self.results)
        return url if "://" in url else str(Path(url).absolute())

    def store(self) -> Store:
        return open_store(self.url)

    def run(self) -> int:
        """Measure what is not finished. Returns the exit code."""
        codebases = find_codebases(self.adapters)
        planned = cells_of(self.plan, codebases)
        wanted = pick(planned, self.asked.cell, self.asked.shard)
        store = self.store()
        if self.asked.executor:
            return self._elsewhere(wanted, store)
        command = ["bench", *sys.argv[1:]]

        def shown(plan: Plan) -> Any:
            return listener(plan, quiet=self.quiet)

        cells = Cells(self.loaded, self.plan, len(planned), codebases, store, command, shown, self.strict)
        codes: dict[str, int | None] = {}
        """Key → exit code of what was measured now; None: finished before."""
        for cell in wanted:
            if cell.key in store.keys(self.plan.name):
                say(f"{cell.key} {cell.name}: finished before", error=True)
                codes[cell.key] = None
                continue
            codes[cell.key] = cells.measure(cell)
            if codes[cell.key] == ExitCode.INTERRUPTED:
                break
            say(f"{cell.key} {cell.name}", error=True)
        code = max((code or 0 for code in codes.values()), default=ExitCode.SUCCESS)
        if self.as_json:
            print_json({"store": self.url, "cells": codes, "exit_code": code})
        elif not self.asked.cell and not self.quiet:
            say(f"next: bench report {self.url}", error=True)
        return code

    def _elsewhere(self, cells: Sequence[Cell], store: Store) -> int:
        """Have an executor measure the cells; then make one run of them."""
        name, keys = self.plan.name, [cell.key for cell in cells]
        finished = store.keys(name)
        tasks = [task for task in self.tasks(cells) if task.key not in finished]
        logs = self.results / name / "logs"
        watch = Watch(
            lambda: store.keys(name),
            lambda text: None if self.quiet else say(text, error=True),
            self.asked.poll_s,
        )
        if tasks:
            slurm = Slurm(self.asked.constraint, self.asked.sbatch)
            executor: Executor = Ray(self.asked.address) if self.asked.executor == "ray" else slurm
            executor.run(tasks, watch, logs)
        runs = collect(store, name, self.results, keys)
        for run in runs if not self.as_json else ():
            say(run.folder)
        missing = len(set(keys) - store.keys(name))
        if missing:
            say(f"{missing} cells are not finished; the same command goes on with them", error=True)
        failed = any(arm.failure for run in runs for arm in run.arms())
        code = ExitCode.ARM_FAILED if missing or failed else ExitCode.SUCCESS
        if self.as_json:
            folders = [str(run.folder) for run in runs]
            print_json({"store": self.url, "runs": folders, "missing": missing, "exit_code": code})
        return code

    def tasks(self, cells: Sequence[Cell], estimates_s: Mapping[str, float] | None = None) -> list[Task]:
        """What an executor is to start."""
        known = estimates_of(self.plan, self.results) if estimates_s is None else estimates_s
        path = Path(self.loaded.path)
        recipe = str(path.absolute()) if path.exists() else str(path)
        start = [sys.executable, "-m", "bench", "run", recipe, "--quiet", "--store", self.url, "--cell"]
        return [
            Task(
                key=cell.key,
                name=cell.name,
                nodes=max(arm.workload.nodes for arm in cell.arms),
                estimate_s=sum(known[arm.id] for arm in cell.arms),
                command=(*start, cell.key, *self.passed),
            )
            for cell in cells
        ]

    def dry_run(self, document: dict[str, Any], *, as_json: bool) -> int:
        """Print every cell with its key; with Slurm the scripts that would be submitted."""
        cells = pick(cells_of(self.plan, find_codebases(self.adapters)), self.asked.cell, self.asked.shard)
        finished = self.store().keys(self.plan.name)
        estimates = {arm["id"]: arm["estimate_s"] for arm in document["arms"]}
        if self.asked.executor == "slurm" and not as_json:
            missing = [task for task in self.tasks(cells, estimates) if task.key not in finished]
            slurm = Slurm(self.asked.constraint, self.asked.sbatch)
            logs = (self.results / self.plan.name / "logs").absolute()
            for text, _ in slurm.scripts(missing, logs) if missing else []:
                sys.stdout.write(text)
            return ExitCode.SUCCESS
        described = [
            {
                "key": cell.key,
                "cell": cell.name,
                "arms": [arm.id for arm in cell.arms],
                "finished": cell.key in finished,
                "estimate_s": round(sum(estimates[arm.id] for arm in cell.arms), 1),
            }
            for cell in cells
        ]
        if as_json:
            print_json({**document, "cells": described, "store": self.url})
        for one in [] if as_json else described:
            state = "finished" if one["finished"] else f"about {one['estimate_s']:.0f} s"
            say(f"{one['key']}  {one['cell']}: {len(one['arms'])} arms, {state}")
        return ExitCode.SUCCESS


def runs_of(name: str, results: Path) -> list[Run]:
    """The run that a text names, or those of a store: joined in the cache."""
    if not is_store(name):
        return [Run(resolve_run(name, results))]
    store, place = open_store(name), cache_folder() / "stores"
    runs = [run for recipe in store.recipes() for run in collect(store, recipe, place)]
    if not runs:
        raise BenchError("the store has no finished cell", where=name)
    return runs
