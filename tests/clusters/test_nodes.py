"""Two nodes with one rank each, at two loopback addresses: the ranks meet, and have the gradients of one rank."""

from __future__ import annotations

import contextlib
import os

import psutil
import pytest

from bench.environments import python_of
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from bench.record.run import Run
from tests.conftest import Cli
from tests.helpers.runs import wait_for_blocks

pytestmark = pytest.mark.nightly

NODES = {"BENCH_NODES": "127.0.0.1 127.0.0.2", "BENCH_NODE_COMMAND": "env", "OMP_NUM_THREADS": "1"}

# Models without sampling. PaddleDetection divides a loss by the objects of a rank, not of all: only where both ranks
# have the same image are its gradients those of one rank.
CASES = [
    ("native", "retinanet_r50_fpn", 2, True),
    ("mmdet", "fcos_r50_fpn", 2, True),
    ("paddledet", "fcos_r50_fpn", 2, False),
    ("paddledet", "fcos_r50_fpn", 1, True),
]


@pytest.mark.parametrize(("codebase", "model", "images", "as_one"), CASES)
def test_two_nodes_have_gradients_of_one(
    codebase: str, model: str, images: int, as_one: bool, cli: Cli
) -> None:
    try:
        python_of(find_codebases()[codebase])
    except BenchError as error:
        pytest.skip(f"{codebase} has no environment here: {error.message}")
    devices = [{"nodes": nodes, "per_node": 1, "global_batch": 2} for nodes in (1, 2)]
    measure = {"quiet": "off", "warmup": 1, "steps": 1, "rounds": 1, "launches": 1, "memory_steps": 0}
    recipe = cli.recipe(
        workload={"task": "train", "model": model, "input": {"images": images, "size": [128, 128]}},
        arms=[codebase],
        factors={"devices": devices},
        baseline={},
        measure={**measure, "phase_steps": 0, "deadline_s": 400},
        environment={"threads": 1},
    )
    done = cli.run(recipe, "-q", env={**os.environ, **NODES})
    assert done.code == 0, done.err
    one, two = Run(cli.runs()[0]).arms()
    assert (one.workload.ranks, one.workload.batch_size) == (1, 2)
    assert (two.workload.ranks, two.workload.nodes, two.workload.batch_size) == (2, 2, 1)
    (alone,), (first, second) = one.audit["ranks"], two.audit["ranks"]
    wanted = alone["steps"][0]["gradient"]
    assert len(wanted) > 5
    assert (first["steps"][0]["images"] == second["steps"][0]["images"]) is (images == 1)
    gradients = [rank["steps"][0]["gradient"] for rank in (first, second)]
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-6)
    if as_one:
        assert gradients[0] == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_too_few_nodes_fail_the_arm(cli: Cli) -> None:
    workload = {"task": "train", "model": "retinanet_r50_fpn", "devices": {"nodes": 2, "per_node": 1}}
    size = {"images": 2, "size": [64, 64]}
    recipe = cli.recipe(
        workload={**workload, "weights": "random", "input": size}, arms=["native"], baseline={}
    )
    done = cli.run(recipe, "-q", env={**os.environ, "BENCH_NODES": "127.0.0.1"})
    assert done.code == 4
    (arm,) = Run(cli.runs()[0]).arms()
    assert arm.failure is not None
    assert "the arm needs 2 nodes, and 1 are given" in arm.failure.message
    by_cell = cli.run(recipe, "--skip-done", "-q", env={**os.environ, "BENCH_NODES": "127.0.0.1"})
    assert (by_cell.code, "the arm needs 2 nodes" in by_cell.err) == (2, True)
    assert not list(cli.results.glob("*/*.cell.zip"))


def test_lost_rank_of_other_node_fails_the_arm(cli: Cli) -> None:
    workload = {"task": "train", "model": "retinanet_r50_fpn", "devices": {"nodes": 2, "per_node": 1}}
    recipe = cli.recipe(
        workload={**workload, "weights": "random", "input": {"images": 2, "size": [64, 64]}},
        arms=["native"],
        baseline={},
        measure={"quiet": "off", "warmup": 1, "steps": 500, "rounds": 1, "launches": 1, "deadline_s": 300},
        environment={"threads": 1},
    )
    process = cli.start("run", recipe, "-q", "--results", cli.results, env={**os.environ, **NODES})
    wait_for_blocks(cli, 1, deadline_s=300)  # the warm-up
    workers = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if child.cmdline()[-2:] == ["-m", "bench.worker"] and child.environ().get("RANK"):
                workers.append(child)
    assert sorted(worker.environ()["RANK"] for worker in workers) == ["0", "1"]
    next(worker for worker in workers if worker.environ()["RANK"] == "1").kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4, err
    (arm,) = Run(cli.runs()[0]).arms()
    assert arm.failure is not None
    assert arm.failure.stage == "run_block"
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
