"""Runs in progress."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.record.run import Run
from tests.conftest import FAKE, Cli, Finished


def wait_for_blocks(cli: Cli, count: int, deadline_s: float = 60.0) -> Path:
    """Until the journal of the newest run has so many lines."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        for folder in cli.runs():
            if len(Run(folder).journal()) >= count:
                return folder
        time.sleep(0.02)
    raise AssertionError("no blocks were measured")


def resume(cli: Cli, folder: Path) -> Finished:
    return cli("run", "--resume", folder, "--adapters", FAKE, "--results", cli.results)


def curves(folder: Path) -> dict[str, Any]:
    """All that training and evaluating gave, without times."""
    run = Run(folder)
    return {
        arm.id: (
            run.loss_curve(arm.id),
            [one.model_dump(exclude={"train_s", "predictions"}) for one in arm.evaluations],
        )
        for arm in run.arms()
    }


def predictions_of(folder: Path) -> dict[str, list[Any]]:
    return {
        path.stem: json.loads(path.read_text()) for path in sorted((folder / "predictions").glob("*.json"))
    }


def killed_and_resumed_alike(cli: Cli, arms: list[str], **work: Any) -> None:
    """Train with momentum, EMA, trained batch norm and random sampling; once at a stretch, once with a kill -9."""
    workload = {
        "task": "train_eval", "model": "faster_rcnn_r50_fpn", "input": {"images": 3, "size": [64, 64]},
        "batch_size": 1, "steps": 4, "eval_every": 2, "eval_images": 2, "ema": True, "ema_decay": 0.5,
        "frozen_bn": False, "frozen_stages": 0, "optimizer": {"lr": 0.002, "warmup": 2}, "score_threshold": 0,
    }  # fmt: skip
    measure = {"keep_checkpoints": False, "deadline_s": 500}
    recipe = cli.recipe(
        workload={**workload, **work}, arms=arms, baseline={}, measure=measure, environment={"threads": 1}
    )
    done = cli.run(recipe)
    assert done.code == 0, done.err
    (whole,) = cli.runs()
    cli.results = cli.folder / "killed"
    process = cli.start("run", recipe, "--adapters", FAKE, "--results", cli.results)
    folder = wait_for_blocks(cli, len(arms), deadline_s=500)
    process.kill()
    process.communicate()
    done = resume(cli, folder)
    assert done.code == 0, done.err
    assert curves(folder) == curves(whole)
    found = predictions_of(whole)
    assert all(found.values())
    assert predictions_of(folder) == found
    for arm in Run(whole).arms():
        assert found[f"{arm.id}-2"] != found[f"{arm.id}-4"]  # it learned something in between
