"""Everything is prepared once, before anything is timed; one arm is the baseline everywhere."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.inputs import dataset
from bench.measure import prepare
from bench.measure.progress import Quiet
from bench.measure.session import Session, new_run
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from bench.record.run import Run
from bench.report.build import run_report
from tests.conftest import FAKE, Cli


def test_each_input_is_opened_once(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        original = getattr(module, name)

        def call(*arguments: Any, **options: Any) -> Any:
            opened[name] += 1
            return original(*arguments, **options)

        monkeypatch.setattr(module, name, call)

    counted(dataset, "_open")
    counted(prepare, "prepare_batches")
    counted(prepare, "prepare_schedule")
    counted(prepare, "environment_of")
    workload = {
        "task": "train_eval",
        "model": "faster_rcnn_r50_fpn",
        "weights": "random",
        "steps": 4,
        "eval_every": 2,
        "eval_images": 2,
        "input": {"images": 2, "size": [64, 64]},
    }
    arms = [{"codebase": "fake", "label": "a"}, {"codebase": "fake", "label": "b"}]
    path = cli.recipe(workload=workload, arms=arms, baseline="a", factors={"ema": [False, True]})
    loaded, codebases = load_recipe(path), find_codebases([FAKE])
    plan = make_plan(loaded, codebases)
    run, record = new_run(loaded, plan, tmp_path / "results", ["bench", "run"])
    assert Session(plan, run, record, codebases, tmp_path / "cache", Quiet()).execute() == 0
    assert opened == {"_open": 2, "prepare_batches": 2, "prepare_schedule": 1, "environment_of": 1}
    assert len(plan.arms) == 4


def test_strict_keeps_the_baseline_and_refuses_the_other(cli: Cli) -> None:
    arms = [{"codebase": "fake", "label": "tuned", "options": {"threads": 7}}, {"codebase": "fake"}]
    done = cli.run(cli.recipe(arms=arms, baseline="fake"), "--strict")
    assert done.code == 4, done.err
    assert cli.arm("tuned")["failure"]["reason"] == "audit"
    assert cli.arm("fake")["failure"] is None
    assert cli.arm("tuned")["baseline"] == cli.arm("fake")["baseline"] == "fake"


def test_rounds_go_through_the_batches_in_turn(cli: Cli) -> None:
    workload = {"model": "faster_rcnn_r50_fpn", "weights": "random", "input": {"images": 4, "size": [64, 64]}}
    done = cli.run(cli.recipe(workload={"task": "train", "batch_size": 1, **workload}))
    assert done.code == 0, done.err
    samples = Run(cli.runs()[-1]).samples("fast")
    timed = samples[samples["round"] >= 0]["batch"]
    assert list(timed) == [0, 1, 2, 3] * 3  # 2 launches, 3 rounds, 2 steps


def test_record_says_which_weights_were_loaded(cli: Cli) -> None:
    file = cli.folder / "mine.npz"
    np.savez(file, weight=1.0, steps=0)
    arms = [{"codebase": "fake", "label": "a", "weights": str(file)}, {"codebase": "fake", "label": "b"}]
    assert cli.run(cli.recipe(arms=arms, baseline="a")).code == 0
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert cli.arm("b")["weights"] == {"source": "own", "path": "", "sha256": ""}
    found = cli.arm("a")["weights"]
    assert (found["source"], found["sha256"]) == ("file", sha256)
    assert found["path"].endswith("/mine.npz")
    assert not found["path"].startswith("/")
    setting = {row.label: row.setting for row in run_report(Run(cli.runs()[-1])).rows}
    assert setting["a"].weights == found["path"]
    assert setting["b"].weights == "its own, random"
