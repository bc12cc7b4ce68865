"""Cells as tasks of Ray: each holds its node's resource `timing`, so that no two are measured on one machine at once.

A task only starts `bench run --cell KEY`. A node that dies takes its task with it; the cell starts again elsewhere.
An exit code of the command is a result, whatever it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.measure.executors import Task, Watch
from bench.worker.channel import PR_SET_PDEATHSIG

#: A cell that was lost so often is given up.
MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class Ray:
    """A cluster whose nodes were started with `--resources '{"timing": 1}'`."""

    address: str | None = None

    def run(self, tasks: Sequence[Task], watch: Watch, logs: Path) -> None:
        """Run all cells; those of a lost node run again on another one."""
        if many := next((task for task in tasks if task.nodes > 1), None):
            raise BenchError(
                f"{many.name} needs {many.nodes} nodes, and Ray is asked for one at a time",
                hint="use --executor slurm, or name the nodes by BENCH_NODES and measure without an executor",
            )
        ray = _ray()
        try:
            ray.init(address=self.address or "auto", log_to_driver=False, logging_level="warning")
        except Exception as error:
            hint = "start it with: ray start --head --resources='{\"timing\": 1}'"
            raise BenchError(f"no Ray cluster: {error}", where=self.address or "auto", hint=hint) from None
        try:
            if not ray.cluster_resources().get("timing"):
                raise BenchError(
                    "no node of the Ray cluster has the resource 'timing'",
                    hint="ray start --resources='{\"timing\": 1}' on every node that may measure",
                )
            with contextlib.redirect_stdout(sys.stderr):  # what Ray says of its nodes is no result
                _wait(ray, tasks, watch, logs.resolve())
        finally:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise BenchError("Ray is not installed", hint="pip install 'detection-bench[ray]'") from None
    return ray


def _wait(ray: Any, tasks: Sequence[Task], watch: Watch, logs: Path) -> None:
    remote = ray.remote(num_cpus=0, resources={"timing": 1}, max_retries=0)(measure)
    folder = os.getcwd()

    def submit(task: Task, attempt: int) -> Any:
        return remote.remote(list(task.command), str(logs / f"{task.key}.log"), folder, attempt)

    running = {submit(task, 1): (task, 1) for task in tasks}
    while running:
        ready, _ = ray.wait(list(running), num_returns=1, timeout=watch.poll_s)
        for reference in ready:
            task, attempt = running.pop(reference)
            try:
                code = ray.get(reference)
            except ray.exceptions.RayError as error:
                lost = f"{task.name} was lost with its node ({type(error).__name__})"
                if attempt < MOST_ATTEMPTS:
                    watch.say(f"{lost}; it starts again")
                    running[submit(task, attempt + 1)] = (task, attempt + 1)
                else:
                    watch.say(f"{lost} {attempt} times; given up")
                continue
            ended = f"{task.name} ended with exit code {code}" if code else f"{task.name} finished"
            watch.say(f"{ended}; {len(running)} cells left")


def measure(command: list[str], log: str, folder: str, attempt: int) -> int:
    """Run the command of a cell on this node. It ends when the process of Ray that started it ends."""
    import ray

    context = ray.get_runtime_context()
    environment = {
        **os.environ,
        "BENCH_ATTEMPT": str(attempt),
        "BENCH_SCHEDULER": f"ray {context.get_task_id()}",
        "BENCH_NODE": context.get_node_id(),
    }
    for name in ("OMP_NUM_THREADS", "RAY_JOB_ID"):  # Ray's own wishes for its tasks
        environment.pop(name, None)

    def end_with_ray() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            preexec_fn=end_with_ray,
            check=False,
        )
    return done.returncode
