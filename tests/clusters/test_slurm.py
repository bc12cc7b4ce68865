"""Cells on a Slurm of two nodes, whose daemons run here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.record.store import FolderStore
from tests.conftest import FAKE, Cli
from tests.helpers.clusters import (
    MEASURE,
    assert_once_each,
    assert_one_gradient,
    finished,
    recipe_of_two_nodes,
    until,
)
from tests.helpers.slurm import Cluster

pytestmark = pytest.mark.nightly


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path / "slurm", nodes=2) as started:
        yield started


def recipe_of(cli: Cli, cells: int) -> Path:
    return cli.recipe(factors={"ema": [False, True], "seed": list(range(cells // 2))}, measure=MEASURE)


def arguments(cli: Cli, recipe: Path) -> list[str | Path]:
    return ["run", recipe, "--adapters", FAKE, "--results", cli.results, "--executor", "slurm"]


def test_lost_node_gives_its_cell_to_another(cli: Cli, cluster: Cluster) -> None:
    recipe = recipe_of(cli, 8)
    process = cli.start(*arguments(cli, recipe), env=cluster.environment)
    until(lambda: len(finished(cli)) >= 2, 120)
    keys = json.loads((cli.results / "fake" / "logs" / "1.json").read_text())

    def in_the_middle() -> bool:
        running = cluster.command("squeue", "-h", "-t", "R", "--nodelist=n2", "-o", "%K").split()
        return bool(running) and keys[int(running[0])] not in finished(cli)

    until(in_the_middle, 60)
    cluster.kill("n2")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    found = assert_once_each(cli, recipe, 8)
    assert len({cell.node for cell in found}) == 2
    assert max(cell.attempt for cell in found) == 2
    assert all(cell.scheduler.startswith("slurm ") for cell in found)
    assert "8 of 8 cells finished" in err
    assert str(cli.runs()[0]) == out.strip()


def test_lost_session_finds_its_jobs_again(cli: Cli, cluster: Cluster) -> None:
    recipe = recipe_of(cli, 4)
    process = cli.start(*arguments(cli, recipe), env=cluster.environment)
    until(lambda: len(finished(cli)) >= 1, 120)
    process.kill()
    process.communicate()
    again = cli(*arguments(cli, recipe), env=cluster.environment)
    assert again.code == 0, again.err
    assert "submitted" not in again.err
    assert_once_each(cli, recipe, 4)


def test_failed_arm_is_no_reason_to_try_again(cli: Cli, cluster: Cluster) -> None:
    arms = [
        {"codebase": "fake", "label": "slow"},
        {"codebase": "fake", "label": "bad", "options": {"raise_at": 2}},
    ]
    recipe = cli.recipe(arms=arms, measure=MEASURE)
    done = cli(*arguments(cli, recipe), env=cluster.environment)
    assert done.code == 4, done.err
    store = FolderStore(cli.results)
    assert len(store.keys("fake")) == 1
    assert cluster.command("squeue", "-h").strip() == ""


def test_arm_on_two_nodes(cli: Cli, cluster: Cluster) -> None:
    recipe = recipe_of_two_nodes(cli)
    done = cli(*arguments(cli, recipe), env=cluster.environment)
    assert done.code == 0, done.err
    assert_one_gradient(cli)
