"""Cells as tasks of Ray: each holds its node's resource `timing`, so that no two are measured on one machine at once.

A task only starts `bench run --cell KEY`. A node that dies takes its task with it; the cell starts again elsewhere.
An exit code of the command is a result, whatever it is. A cell with arms on several nodes holds that many nodes, by a
placement group; its session starts their workers by `python -m bench.measure.executors.ray HOST COMMAND...`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.measure.executors import Task, Watch
from bench.measure.launchers import COMMAND_VARIABLE, NODES_VARIABLE
from bench.worker.channel import PR_SET_PDEATHSIG

#: A cell that was lost so often is given up.
MOST_ATTEMPTS = 5


@dataclass(frozen=True)
class Ray:
    """A cluster whose nodes were started with `--resources '{"timing": 1}'`."""

    address: str | None = None

    def run(self, tasks: Sequence[Task], watch: Watch, logs: Path) -> None:
        """Run all cells; those of a lost node run again on another one."""
        ray = _ray()
        try:
            ray.init(address=self.address or "auto", log_to_driver=False, logging_level="warning")
        except Exception as error:
            hint = "start it with: ray start --head --resources='{\"timing\": 1}'"
            raise BenchError(f"no Ray cluster: {error}", where=self.address or "auto", hint=hint) from None
        with contextlib.redirect_stdout(sys.stderr):  # what Ray says of its nodes, to the last, is no result
            try:
                _refuse_few_nodes(ray, tasks)
                _wait(ray, tasks, watch, logs.resolve())
            finally:
                ray.shutdown()


def _refuse_few_nodes(ray: Any, tasks: Sequence[Task]) -> None:
    """Raises BenchError where the cell with most nodes could never start."""
    able = sum("timing" in node["Resources"] for node in ray.nodes() if node["Alive"])
    if able < (most := max((task.nodes for task in tasks), default=1)):
        raise BenchError(
            f"{able or 'no'} nodes of the Ray cluster have the resource 'timing', and {most} are needed",
            hint="ray start --resources='{\"timing\": 1}' on every node that may measure",
        )


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise BenchError("Ray is not installed", hint="pip install 'detection-bench[ray]'") from None
    return ray


def _wait(ray: Any, tasks: Sequence[Task], watch: Watch, logs: Path) -> None:
    from ray.util import placement_group, remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    remote = ray.remote(num_cpus=0, resources={"timing": 1}, max_retries=0)(measure)
    folder = os.getcwd()
    running: dict[Any, tuple[Task, int, Any]] = {}

    def submit(task: Task, attempt: int) -> None:
        group = placement_group([{"timing": 1}] * task.nodes, strategy="STRICT_SPREAD")
        on_first = remote.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, 0))
        reference = on_first.remote(list(task.command), str(logs / f"{task.key}.log"), folder, attempt)
        running[reference] = task, attempt, group

    for task in tasks:
        submit(task, 1)
    while running:
        ready, _ = ray.wait(list(running), num_returns=1, timeout=watch.poll_s)
        for reference in ready:
            task, attempt, group = running.pop(reference)
            remove_placement_group(group)
            try:
                code = ray.get(reference)
            except ray.exceptions.RayError as error:
                lost = f"{task.name} was lost with its node ({type(error).__name__})"
                if attempt < MOST_ATTEMPTS:
                    watch.say(f"{lost}; it starts again")
                    submit(task, attempt + 1)
                else:
                    watch.say(f"{lost} {attempt} times; given up")
                continue
            ended = f"{task.name} ended with exit code {code}" if code else f"{task.name} finished"
            watch.say(f"{ended}; {len(running)} cells left")


def measure(command: list[str], log: str, folder: str, attempt: int) -> int:
    """Run the command of a cell on this node. It ends when the process of Ray that started it ends."""
    from ray.util import get_current_placement_group, placement_group_table

    ray = _ray()
    context = ray.get_runtime_context()
    bundles = placement_group_table(get_current_placement_group())["bundles_to_node_id"]
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    environment = {
        **os.environ,
        NODES_VARIABLE: " ".join(addresses[bundles[number]] for number in sorted(bundles)),
        COMMAND_VARIABLE: f"{shlex.quote(sys.executable)} -m {__name__} {{host}}",
        "RAY_ADDRESS": context.gcs_address,
        "BENCH_ATTEMPT": str(attempt),
        "BENCH_SCHEDULER": f"ray {context.get_task_id()}",
        "BENCH_NODE": context.get_node_id(),
    }
    for name in ("OMP_NUM_THREADS", "RAY_JOB_ID"):  # Ray's own wishes for its tasks
        environment.pop(name, None)

    Path(log).parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as output:
        done = _with_ray(command, stdout=output, cwd=folder, env=environment)
    return int(done.returncode)


def _with_ray(command: list[str], **places: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a command that ends when the process of Ray that started it ends."""

    def end_with_ray() -> None:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        preexec_fn=end_with_ray,
        check=False,
        **places,
    )


def started(command: list[str]) -> tuple[int, bytes]:
    """Exit code and output of a command on this node."""
    done = _with_ray(command, stdout=subprocess.PIPE)
    return done.returncode, done.stdout


def main(host: str, *command: str) -> int:
    """Run a command on a node of the cluster, as `ssh` would; it ends when this process ends."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ray = _ray()
    ray.init(log_to_driver=False, logging_level="warning")
    (there, *_) = (node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == host)
    remote = ray.remote(num_cpus=0, max_retries=0)(started).options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(there, soft=False)
    )
    code, output = ray.get(remote.remote(list(command)))
    sys.stdout.buffer.write(output)
    return int(code)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
