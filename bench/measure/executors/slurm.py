"""Cells as array jobs of Slurm: each task of an array runs `bench run --cell KEY` on a node of its own.

The script holds the keys, so that nothing but the store and this text passes between the machines. A session that is
started again finds its jobs by their name, and submits only what is neither finished nor queued.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shlex
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import BenchError
from bench.measure.executors import Task, Watch
from bench.record.run import write_atomic

#: Tasks of one array: the limit that Slurm has where no one changed `MaxArraySize`.
MOST_TASKS = 1000

#: A cell gets so many times what it is expected to take, and so long for its start.
SLACK, START_S = 3.0, 600.0


@dataclass(frozen=True)
class Slurm:
    """Options of the jobs."""

    constraint: str | None = None
    options: tuple[str, ...] = ()
    """More options of sbatch, as they stand on its command line."""
    folder: Path = field(default_factory=Path.cwd)
    """Where the jobs start."""

    def script(self, tasks: Sequence[Task], name: str, logs: Path) -> str:
        """The batch script of tasks that need the same number of nodes."""
        limit_min = math.ceil((SLACK * max(task.estimate_s for task in tasks) + START_S) / 60)
        options = [
            f"--job-name={name}",
            f"--array=0-{len(tasks) - 1}",
            f"--nodes={tasks[0].nodes}",
            "--ntasks-per-node=1",
            "--exclusive",
            "--requeue",
            f"--time={limit_min}",
            f"--chdir={self.folder}",
            f"--output={logs}/%A_%a.log",
            "--open-mode=append",
            *([f"--constraint={self.constraint}"] if self.constraint else []),
            *self.options,
        ]
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "CELLS=("]
        lines += [f"  {task.key}  # {task.name}" for task in tasks]
        command, place = tasks[0].command, tasks[0].command.index(tasks[0].key)
        before, after = shlex.join(command[:place]), shlex.join(command[place + 1 :])
        return "\n".join([*lines, ")", f'exec {before} "${{CELLS[$SLURM_ARRAY_TASK_ID]}}" {after}', ""])

    def scripts(self, tasks: Sequence[Task], logs: Path) -> list[tuple[str, list[Task]]]:
        """Every script, with its tasks in the order of the array."""
        found = []
        by_nodes = sorted(tasks, key=lambda task: task.nodes)
        for _, group in itertools.groupby(by_nodes, key=lambda task: task.nodes):
            alike = list(group)
            for start in range(0, len(alike), MOST_TASKS):
                part = alike[start : start + MOST_TASKS]
                found.append((self.script(part, _name(tasks), logs), part))
        return found

    def run(self, tasks: Sequence[Task], watch: Watch, logs: Path) -> None:
        """Submit what is not queued, and wait until all is finished or lost."""
        logs = logs.resolve()
        logs.mkdir(parents=True, exist_ok=True)
        # Jobs that earlier sessions submitted: id → keys.
        jobs = {path.stem: list(json.loads(path.read_text())) for path in sorted(logs.glob("*.json"))}
        waiting = _active(jobs, watch)
        missing = [task for task in tasks if task.key not in waiting]
        for text, part in self.scripts(missing, logs) if missing else []:
            job = _run("sbatch", "--parsable", stdin=text).strip().partition(";")[0]
            jobs[job] = [task.key for task in part]
            write_atomic(logs / f"{job}.json", json.dumps(jobs[job]))
            watch.say(f"submitted {len(part)} cells as job {job}")
        self._wait({task.key: task for task in tasks}, jobs, watch, logs)

    def _wait(self, tasks: dict[str, Task], jobs: dict[str, list[str]], watch: Watch, logs: Path) -> None:
        shown = ""
        while True:
            states = _active(jobs, watch)  # before the store is asked: what ends in between is seen there
            left = set(tasks) - watch.done()
            counts = Counter(state for key, state in states.items() if key in left)
            counted = ", ".join(f"{number} {state.lower()}" for state, number in sorted(counts.items()))
            text = f"{len(tasks) - len(left)} of {len(tasks)} cells finished{counted and f', {counted}'}"
            if text != shown:
                watch.say(shown := text)
            if not left & set(states):
                break
            time.sleep(watch.poll_s)
        for key in sorted(left):
            watch.say(f"lost: {tasks[key].name} ({key}); the logs are in {logs}")


def _name(tasks: Sequence[Task]) -> str:
    return "bench-" + hashlib.sha256(" ".join(sorted(task.key for task in tasks)).encode()).hexdigest()[:8]


def _active(jobs: dict[str, list[str]], watch: Watch) -> dict[str, str]:
    """Key → state, of the tasks that Slurm has queued or runs."""
    if not jobs:
        return {}
    for attempt in range(10):
        try:
            text = _run("squeue", "--me", "--noheader", "--array", "--format=%F %K %T")
            break
        except BenchError as error:  # its controller may be busy, or restarted
            if attempt == 9:
                raise
            watch.say(f"Slurm does not answer: {error.message}")
            time.sleep(watch.poll_s)
    found = {}
    for job, index, state in (line.split() for line in text.splitlines() if len(line.split()) == 3):
        if job in jobs and index.isdecimal() and state != "COMPLETING":
            found[jobs[job][int(index)]] = state
    return found


def _run(*command: str, stdin: str | None = None) -> str:
    """Standard output of a command of Slurm. Raises BenchError with what it said."""
    try:
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, check=False)
    except FileNotFoundError:
        raise BenchError(f"{command[0]} not found", hint="start bench where Slurm's commands are") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{command[0]} did not answer within two minutes") from None
    if done.returncode:
        raise BenchError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
