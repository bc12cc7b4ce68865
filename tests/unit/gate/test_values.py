"""Values of launches, from the samples of a run."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from bench.errors import BenchError
from bench.gate.metrics import read_settings
from bench.gate.values import growth_of_phase, interleaved
from bench.record.models import ArmRecord, Block, RunRecord
from bench.record.run import Run
from bench.record.samples import samples_columns

WORKLOAD = {"model": "faster_rcnn_r50_fpn", "task": "train", "batch_size": 2, "ranks": 1, "device": "cpu"}


def written(folder: Path, steps: int) -> Run:
    """Two launches of base and head, where every fifth step of the head takes half as long again."""
    run = Run(folder)
    arms = ["arm-base", "arm-head"]
    run.write_record(
        RunRecord(
            id="x", recipe={"name": "x"}, started_utc="2026-01-01T00:00:00Z", bench_version="0", arms=arms
        )
    )
    for arm in arms:
        blocks = []
        for launch in range(2):
            seconds = np.full(steps, 10_000_000)
            if arm == "arm-head":
                seconds[::5] = 15_000_000
            edges = [0, *np.cumsum(seconds).tolist()]
            ranks = [{"start_ns": edges[:-1], "end_ns": edges[-1]}]
            blocks.append(Block(arm=arm, launch=launch, round=0, position=0, ranks=ranks))
        record = ArmRecord(id=arm, codebase="x", label=arm, cell="all", workload=WORKLOAD, status="ok")
        run.write_arm(record, samples_columns(blocks))
    return run


def test_quantile_of_steps_sees_what_trimmed_mean_does_not(tmp_path: Path) -> None:
    settings = read_settings(["s/iter p90=10%"], 60)
    found = interleaved(written(tmp_path, 40), ["arm"], settings, tmp_path)
    values = {name: launches.values for (_, name), (_, launches) in found.items()}
    assert values["s/iter p90"] == pytest.approx([math.log(1.5)] * 2)
    assert values["s/iter mean"] == pytest.approx([math.log(1.1)] * 2)


def test_a_quantile_of_too_few_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="needs 300 steps in every launch, arm-base has 40"):
        interleaved(written(tmp_path, 40), ["arm"], read_settings(["s/iter p99=10%"], 60), tmp_path)


def test_the_plain_mean_has_the_tolerance_of_the_trimmed_one() -> None:
    first, second = read_settings(["s/iter=7%"], 60).metrics_of("train")
    assert (first.name, second.name) == ("s/iter", "s/iter mean")
    assert (first.tolerance, second.tolerance) == (0.07, 0.07)
    assert read_settings(["s/iter=7%", "s/iter mean=9%"], 60).metrics_of("train")[1].tolerance == 0.09


@pytest.mark.parametrize(
    ("head", "grown"),
    [
        ({"forward": 1.1, "backward": 2.0}, 0.1 / 3),
        ({"forward": 1.1, "backward": 1.9}, 0.0),  # moved
        ({"forward": 1.1, "backward": 1.95}, 0.05 / 3),
        ({"forward": 0.9, "backward": 2.0}, -0.1 / 3),
        ({"forward": 1.0, "backward": 2.5}, 0.0),
    ],
)
def test_phase_grows_no_more_than_its_step(tmp_path: Path, head: dict[str, float], grown: float) -> None:
    run = written(tmp_path, 10)
    for arm, seconds in zip(run.arms(), ({"forward": 1.0, "backward": 2.0}, head), strict=True):
        phases = {name: [value] * 6 for name, value in seconds.items()}
        run.write_arm(arm.model_copy(update={"phases": phases, "launches": 2}), run.samples(arm.id))
    found = interleaved(run, ["arm"], read_settings(["phase forward=1%"], 60), tmp_path)
    assert found["arm", "phase forward"][1].values == pytest.approx([grown] * 2)


def test_operator_grows_no_more_than_its_step(tmp_path: Path) -> None:
    name = "deformable convolution"
    run = written(tmp_path, 10)
    for arm, seconds in zip(run.arms(), ((1.0, 4.0), (1.2, 4.1)), strict=True):
        operators = {name: [seconds[0]] * 2, "step": [seconds[1]] * 2}
        run.write_arm(arm.model_copy(update={"operators": operators, "launches": 2}), run.samples(arm.id))
    found = interleaved(run, ["arm"], read_settings([f"operator {name}=1%"], 60), tmp_path)
    assert found["arm", f"operator {name}"][1].values == pytest.approx([0.1 / 4] * 2)


def test_noise_does_not_choose_between_phase_and_step() -> None:
    """Both grew alike, so that the smaller one of each launch would be too small."""
    noise = np.random.default_rng(0).normal(0, 0.01, (2, 200, 3, 2))
    base, head = 1 + noise
    assert growth_of_phase(base, head + 0.05).values.mean() == pytest.approx(0.05, abs=0.0015)


def test_phase_that_was_not_measured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="no times of 'forward'"):
        interleaved(written(tmp_path, 10), ["arm"], read_settings(["phase forward=1%"], 60), tmp_path)
