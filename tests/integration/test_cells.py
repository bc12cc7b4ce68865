"""Cells as runs of their own: shards, kills, a store, and one report of all."""

from __future__ import annotations

import time
from pathlib import Path

from bench.measure.cells import cells_of
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from bench.record.collect import collect
from bench.record.run import Run
from bench.record.store import FolderStore, members
from tests.conftest import FAKE, Cli

MEASURE = {
    "quiet": "off", "warmup": 1, "steps": 2, "rounds": 2, "launches": 1, "deadline_s": 20, "memory_steps": 0,
    "phase_steps": 0,
}  # fmt: skip


def keys(recipe: Path, *settings: str) -> list[str]:
    """Keys of the cells in plan order."""
    codebases = find_codebases([FAKE])
    plan = make_plan(load_recipe(recipe, settings), codebases)
    return [cell.key for cell in cells_of(plan, codebases)]


def test_shards_and_kill_make_one_run(cli: Cli) -> None:
    recipe = cli.recipe(factors={"ema": [False, True], "seed": [0, 1]}, measure=MEASURE)
    store = FolderStore(cli.results)
    planned = keys(recipe)
    shown = cli.run(recipe, "--skip-done", "--dry-run", "--json").json()["cells"]
    assert [cell["key"] for cell in shown] == planned
    done = cli.run(recipe, "--shard", "1/2", "--json")
    assert done.code == 0, done.err
    assert done.json()["cells"] == dict.fromkeys(planned[::2], 0)
    assert store.keys("fake") == set(planned[::2])

    process = cli.start("run", recipe, "--adapters", FAKE, "--results", cli.results, "--cell", planned[1])
    time.sleep(1.5)
    process.kill()
    process.communicate()
    before = {key: store.read("fake", key) for key in store.keys("fake")}
    done = cli.run(recipe, "--skip-done", "-q")
    assert done.code == 0, done.err
    assert done.err.count("finished before") == len(before)
    assert store.keys("fake") == set(planned)
    assert all(store.read("fake", key) == archive for key, archive in before.items())

    (run,) = collect(store, "fake", cli.folder / "collected")
    record = run.record()
    assert list(record.cells) == ["ema-off-seed-0", "ema-off-seed-1", "ema-on-seed-0", "ema-on-seed-1"]
    assert len(record.arms) == 8
    assert {arm.status for arm in run.arms()} == {"ok"}
    assert {arm.blocks for arm in run.arms()} == {2}
    assert len(run.journal()) == 8 * 3

    done = cli("report", cli.results, "--output", cli.folder / "report")
    assert done.code == 0, done.err
    assert (cli.folder / "report" / "report.md").read_text().count("fast / slow") == 4


def test_failed_arm_is_a_result(cli: Cli) -> None:
    arms = [
        {"codebase": "fake", "label": "slow"},
        {"codebase": "fake", "label": "bad", "options": {"raise_at": 2}},
    ]
    recipe = cli.recipe(arms=arms, measure=MEASURE)
    assert cli.run(recipe, "--skip-done", "-q").code == 4
    again = cli.run(recipe, "--skip-done", "-q")
    assert (again.code, "finished before" in again.err) == (0, True)


def test_what_is_measured_makes_the_key(cli: Cli) -> None:
    recipe = cli.recipe(measure=MEASURE)
    (one,) = keys(recipe)
    assert keys(recipe) == [one]
    assert keys(recipe, "measure.rounds=3") != [one]
    assert keys(recipe, "workload.seed=3") != [one]


def test_record_tells_attempt_and_job(cli: Cli, monkeypatch) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    monkeypatch.setenv("SLURMD_NODENAME", "my-secret-node")
    recipe = cli.recipe(measure=MEASURE)
    (key,) = keys(recipe)
    assert cli.run(recipe, "--cell", key, "-q").code == 0
    store = FolderStore(cli.results)
    (run,) = collect(store, "fake", cli.folder / "collected")
    cell = run.record().cells["all"]
    assert (cell.digest, cell.attempt, cell.scheduler) == (key, 3, "slurm 17_3")
    assert len(cell.node) == 8
    assert b"my-secret-node" not in b"".join(members(store.read("fake", key), key).values())


def test_cell_errors_say_what_to_do(cli: Cli) -> None:
    recipe = cli.recipe(measure=MEASURE)
    wrong = cli.run(recipe, "--cell", "0123")
    assert (wrong.code, "no cell of this plan has the key 0123" in wrong.err) == (2, True)
    wrong = cli.run(recipe, "--shard", "3/2")
    assert (wrong.code, "--shard 3/2: expected i/n" in wrong.err) == (2, True)
    wrong = cli.run(recipe, "--executor", "slrum")
    assert (wrong.code, "did you mean slurm?" in wrong.err) == (2, True)
    assert Run(cli.results).folder.exists() is False
