"""A run folder from another place: `tests/data/run`, two arms of the fake codebase with detections."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from bench.gate.metrics import metric
from bench.gate.values import badness
from bench.judge.accuracy import evaluate_file
from bench.record.models import Block
from bench.record.run import Run
from bench.record.samples import block_times, samples_columns
from bench.report.build import run_report

COPIED = Run(Path(__file__).resolve().parents[2] / "data" / "run")


def test_every_record_is_read() -> None:
    assert COPIED.record().arms == [arm.id for arm in COPIED.arms()] == ["slow", "fast"]
    assert all(isinstance(block, Block) for block in COPIED.journal())


def test_times_are_those_of_the_journal() -> None:
    for arm in COPIED.arms():
        blocks = [block for block in COPIED.journal() if block.arm == arm.id]
        pd.testing.assert_frame_equal(COPIED.samples(arm.id), pd.DataFrame(samples_columns(blocks)))
        assert arm.blocks == sum(block.round >= 0 for block in blocks)
        assert (block_times(COPIED.samples(arm.id))["s_per_step"] > 0).all()


def test_accuracy_is_evaluated_again_from_the_folder(tmp_path: Path) -> None:
    for arm in COPIED.arms():
        assert arm.evaluated is not None
        assert arm.predictions is not None
        truth, results = COPIED.folder / arm.evaluated.ground_truth, COPIED.folder / arm.predictions.path
        found = evaluate_file(truth, results, masks=True)
        kinds = arm.evaluations[-1].kinds()
        assert {kind: one.metrics for kind, one in found.items()} == {
            k: one.metrics for k, one in kinds.items()
        }
        (worse,) = badness(COPIED, arm, metric("AP"), tmp_path / "cache")
        assert abs(worse) == found["bbox"].metrics["AP"]
    assert not (tmp_path / "cache").exists()


def test_report_needs_nothing_but_the_folder() -> None:
    report = run_report(COPIED)
    (group,) = report.groups
    fast = next(row for row in group.rows if row.arm == "fast")
    assert fast.ratio is not None
    assert fast.ratio.value > 1
    assert len(report.accuracy) == 1
