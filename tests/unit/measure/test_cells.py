"""Which cells a command measures, what a scheduler tells, and the scripts of Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.errors import BenchError
from bench.measure import cells
from bench.measure.cells import Cell, Cells, attempt_of, node_of, pick, scheduler_of
from bench.measure.executors import Task
from bench.measure.executors.slurm import MOST_TASKS, Slurm
from bench.record.models import Block, RankTimes
from bench.record.store import FolderStore, members

CELLS = [Cell(f"key{index}", index, ()) for index in range(7)]


def test_shards_share_all_cells() -> None:
    shards = [pick(CELLS, None, f"{number}/3") for number in (1, 2, 3)]
    assert sorted(cell.index for shard in shards for cell in shard) == list(range(7))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert pick(CELLS, None, None) == CELLS
    assert pick(CELLS, "key3", None) == [CELLS[3]]


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "-1/3", "1/0", ""])
def test_wrong_shard_is_an_error(shard: str) -> None:
    with pytest.raises(BenchError, match="expected i/n"):
        pick(CELLS, None, shard)


def test_scheduler_tells_attempt_and_job() -> None:
    assert attempt_of({}) == 1
    assert attempt_of({"SLURM_RESTART_COUNT": "2"}) == 3
    assert attempt_of({"BENCH_ATTEMPT": "4", "SLURM_RESTART_COUNT": "2"}) == 4
    assert scheduler_of({}) == ""
    assert scheduler_of({"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}) == "slurm 7_0"
    first, second = (node_of({"SLURMD_NODENAME": name}) for name in ("n1", "n2"))
    assert first != second
    assert "n1" not in first


def tasks(count: int, nodes: int = 1) -> list[Task]:
    return [
        Task(f"key{index}", "name", nodes, 60.0, ("python", "run it", f"key{index}", "--x=a b"))
        for index in range(count)
    ]


def test_script_runs_the_cell_of_its_index(tmp_path: Path) -> None:
    ((text, _),) = Slurm("v100", ("--partition=gpu",), tmp_path).scripts(tasks(3), tmp_path / "logs")
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert {
        "--exclusive",
        "--requeue",
        "--constraint=v100",
        "--partition=gpu",
        "--array=0-2",
        "--nodes=1",
    } <= {*options}
    assert "--time=13" in options  # three times a minute, and ten minutes
    shown = text.replace("exec python", "printf '%s|'")
    environment = {"SLURM_ARRAY_TASK_ID": "1"}
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "run it|key1|--x=a b|"


def test_arrays_are_small_and_of_one_size(tmp_path: Path) -> None:
    found = Slurm().scripts([*tasks(MOST_TASKS + 1), *tasks(2, nodes=2)], tmp_path)
    assert [(part[0].nodes, len(part)) for _, part in found] == [(1, MOST_TASKS), (1, 1), (2, 2)]


def test_share_of_disturbed_blocks_is_counted() -> None:
    times = [RankTimes(start_ns=[0], end_ns=1)]
    blocks = [
        Block(arm="a", launch=0, round=round_, position=0, ranks=times, taken_cores=taken)
        for round_, taken in ((-1, 1.0), (0, 1.0), (1, 0.0), (2, 0.01), (3, 0.5))
    ]
    assert cells._disturbed(SimpleNamespace(journal=lambda: blocks)) == 0.5  # type: ignore[arg-type]
    assert cells._disturbed(SimpleNamespace(journal=list)) == 0.0  # type: ignore[arg-type]


def cells_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcomes: list[tuple[int, float]]
) -> tuple[Cells, list[int]]:
    """What measures cells, with attempts that end as told: exit code and share of disturbed blocks."""
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    numbers: list[int] = []

    def attempt(self: Cells, cell: Cell, folder: Path, number: int) -> tuple[object, int, float]:
        numbers.append(number)
        (folder / "run.json").write_text(str(number))
        return SimpleNamespace(folder=folder), *outcomes[len(numbers) - 1]

    monkeypatch.setattr(Cells, "_attempt", attempt)
    plan, store = SimpleNamespace(name="r"), FolderStore(tmp_path / "store")
    return Cells(None, plan, 1, {}, store, [], lambda plan: None), numbers  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("outcomes", "kept"),
    [([(0, 0.1)], 1), ([(4, 0.0)], 1), ([(0, 0.9), (0, 0.1)], 2), ([(0, 0.9), (0, 0.8)], 2)],
)
def test_disturbed_cell_gets_one_more_attempt(
    outcomes: list[tuple[int, float]], kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measuring, numbers = cells_with(tmp_path, monkeypatch, outcomes)
    assert measuring.measure(CELLS[0]) == outcomes[-1][0]
    assert numbers == list(range(1, len(outcomes) + 1))
    assert members(measuring.store.read("r", "key0"), "key0")["run.json"] == str(kept).encode()
    assert list((tmp_path / "cache" / "cells").iterdir()) == []


def test_interrupted_cell_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring, _ = cells_with(tmp_path, monkeypatch, [(130, 0.0)])
    assert measuring.measure(CELLS[0]) == 130
    assert measuring.store.keys("r") == set()
    assert list((tmp_path / "cache" / "cells").iterdir()) == []
