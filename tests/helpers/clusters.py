"""What every cluster must show: each cell once, one at a time on a node, and the plan of a local run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from bench.record.models import CellRecord
from bench.record.run import Run
from bench.record.store import FolderStore, members
from tests.conftest import Cli

MEASURE = {
    "quiet": "off", "warmup": 1, "steps": 4, "rounds": 4, "launches": 1, "deadline_s": 120, "memory_steps": 0,
    "phase_steps": 0,
}  # fmt: skip


def until(ready: Callable[[], bool], deadline_s: float) -> None:
    end = time.monotonic() + deadline_s
    while not ready():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.1)


def finished(cli: Cli, recipe: str = "fake") -> set[str]:
    return FolderStore(cli.results).keys(recipe)


def assert_once_each(cli: Cli, recipe: Path, cells: int) -> list[CellRecord]:
    """One result of each planned cell, none at the same time as another on its node; nothing else is left."""
    store = FolderStore(cli.results)
    assert len(store.keys("fake")) == cells
    spans: dict[str, list[tuple[datetime, datetime]]] = {}
    found = []
    for key in store.keys("fake"):
        folder = cli.folder / "unpacked" / key
        for name, content in members(store.read("fake", key), key).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        record = Run(folder).record()
        (cell,) = record.cells.values()
        assert (cell.digest, record.status) == (key, "complete")
        assert record.ended_utc is not None
        span = (datetime.fromisoformat(record.started_utc), datetime.fromisoformat(record.ended_utc))
        spans.setdefault(cell.node, []).append(span)
        found.append(cell)
    for times in spans.values():
        times.sort()
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
    (run,) = cli.runs()
    planned = cli.run(recipe, "--dry-run", "--json").json()
    assert [arm.id for arm in Run(run).arms()] == [arm["id"] for arm in planned["arms"]]
    assert {arm.status for arm in Run(run).arms()} == {"ok"}
    left = [path for path in cli.results.rglob("*") if path.name.startswith(".")]
    assert left == []
    return found


def recipe_of_two_nodes(cli: Cli) -> Path:
    """One arm with a rank on each of two nodes, which train on different images."""
    devices = {"nodes": 2, "per_node": 1}
    workload = {"task": "train", "model": "retinanet_r50_fpn", "weights": "random", "devices": devices}
    return cli.recipe(
        workload={**workload, "input": {"images": 2, "size": [64, 64]}, "batch_size": 1},
        arms=["native"],
        baseline={},
        measure={**MEASURE, "steps": 1, "rounds": 1, "deadline_s": 300},
        environment={"threads": 1},
    )


def assert_one_gradient(cli: Cli) -> None:
    """The ranks of the run's arm saw different images and have one gradient."""
    (arm,) = Run(cli.runs()[0]).arms()
    first, second = (rank["steps"][0] for rank in arm.audit["ranks"])
    assert first["images"] != second["images"]
    assert first["gradient"] == pytest.approx(second["gradient"], rel=1e-6)
