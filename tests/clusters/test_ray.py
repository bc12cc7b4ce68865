"""Cells on a Ray of a head and three nodes, all of which run here."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import FAKE, Cli
from tests.helpers.clusters import (
    MEASURE,
    assert_once_each,
    assert_one_gradient,
    finished,
    recipe_of_two_nodes,
    until,
)
from tests.helpers.slurm import free_ports

ray = pytest.importorskip("ray", reason="Ray is not installed")
pytestmark = pytest.mark.nightly


class Nodes:
    """`ray start` of a head, which measures nothing, and of some nodes. Use as a context manager."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        (port,) = free_ports(1)
        self.address = f"127.0.0.1:{port}"
        self.environment = {
            **os.environ, "RAY_TMPDIR": str(folder),
            "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
            "RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3",
            "RAY_raylet_start_wait_time_s": "120",
        }  # fmt: skip
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Nodes:
        head = ["--head", f"--port={self.address.rpartition(':')[2]}", "--include-dashboard=false"]
        self._start("head", *head, "--resources={}")
        for number in range(self.count):  # one after the other: each takes seconds of the processors
            place = f"--node-ip-address=127.0.0.{2 + number}"
            self._start(f"node{number}", f"--address={self.address}", place, '--resources={"timing": 1}')
        return self

    def _start(self, name: str, *more: str) -> None:
        common = ["--num-cpus=1", "--block", "--object-store-memory=80000000", "--disable-usage-stats"]
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *more, *common]
        log = (self.folder / f"{name}.log").open("wb")
        self.processes.append(
            subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, start_new_session=True)
        )
        until(lambda: "will now block" in (self.folder / f"{name}.log").read_text(), 120)

    def in_the_middle(self, number: int, done: set[str]) -> bool:
        """Whether a node measures a cell that is not finished: its workers have started."""
        for process in psutil.Process(self.processes[1 + number].pid).children(recursive=True):
            with contextlib.suppress(psutil.Error, IndexError, ValueError):
                words = process.cmdline()
                if words[words.index("--cell") + 1] not in done:
                    return bool(process.children())
        return False

    def kill(self, number: int) -> None:
        """End a node without a word, with all that it started."""
        node = psutil.Process(self.processes[1 + number].pid)
        for process in [node, *node.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def __exit__(self, *_: object) -> None:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("RAY_TMPDIR") == str(self.folder) and process.pid != os.getpid():
                    process.kill()
        for started in self.processes:
            started.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    folder = Path("/tmp") / f"ray-{os.getpid()}"  # Ray's sockets have long paths
    folder.mkdir()
    with Nodes(folder, 3) as started:
        yield started


#: What of a recipe of the fake is another one where a model of `detectors` is trained.
NATIVE: dict[str, Any] = {
    "workload": {
        "model": "rpn_r50_fpn",
        "weights": "random",
        "input": {"images": 2, "size": [64, 64]},
        "batch_size": 1,
    },
    "arms": ["native"],
    "baseline": {},
    "measure": {**MEASURE, "steps": 1, "rounds": 1, "deadline_s": 300},
    "environment": {"threads": 1},
}


@pytest.mark.parametrize("changes", [{"measure": MEASURE}, NATIVE], ids=["fake", "native"])
def test_lost_node_gives_its_cell_to_another(cli: Cli, nodes: Nodes, changes: dict[str, Any]) -> None:
    recipe = cli.recipe(factors={"ema": [False, True], "seed": list(range(10))}, **changes)
    command = ["run", recipe, "--adapters", FAKE, "--results", cli.results, "--executor", "ray"]
    process = cli.start(*command, "--address", nodes.address, env=nodes.environment)
    until(lambda: len(finished(cli)) >= 5 or process.poll() is not None, 240)
    assert process.poll() is None, process.communicate()
    until(lambda: nodes.in_the_middle(1, finished(cli)), 60)
    nodes.kill(1)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0, err
    found = assert_once_each(cli, recipe, 20)
    assert len({cell.node for cell in found}) == 3
    assert max(cell.attempt for cell in found) == 2, err
    assert "it starts again" in err
    assert str(cli.runs()[0]) == out.strip()


def test_arm_on_two_nodes(cli: Cli, nodes: Nodes) -> None:
    """Ranks on two of three nodes have one gradient, of different images."""
    recipe = recipe_of_two_nodes(cli)
    command = ["run", recipe, "--results", cli.results, "--executor", "ray", "--address", nodes.address]
    done = cli(*command, env=nodes.environment)
    assert done.code == 0, done.err
    assert_one_gradient(cli)


def test_too_few_nodes_are_an_error(cli: Cli, nodes: Nodes) -> None:
    workload = {"model": "retinanet_r50_fpn", "weights": "random", "devices": {"nodes": 4, "per_node": 1}}
    recipe = cli.recipe(workload=workload, arms=["native"], baseline={})
    command = ["run", recipe, "--results", cli.results, "--executor", "ray", "--address", nodes.address]
    done = cli(*command, env=nodes.environment)
    assert (done.code, "3 nodes of the Ray cluster" in done.err) == (2, True), done.err
