"""Several ranks and several machines in a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.record.models import ArmRecord, Block, CellRecord, RankTimes, RunRecord
from bench.record.run import Run
from bench.record.samples import samples_columns
from bench.report.build import run_report
from bench.report.render import markdown
from bench.report.scaling import scaling_blocks

STEP_NS = {1: [20_000_000], 2: [11_000_000, 14_000_000]}


PHASES = {"forward": [0.004], "backward": [0.012], "optimizer": [0.004]}


def stored(folder: Path, batches: tuple[int, int], kinds: tuple[str, str] = ("a", "a")) -> Run:
    """A run with one rank and with two, which take 20 ms and, at their slowest, 14 ms for a step."""
    run = Run(folder)
    arms = []
    for ranks, batch, kind in zip((1, 2), batches, kinds, strict=True):
        workload = {"model": "faster_rcnn_r50_fpn", "ranks": ranks, "batch_size": batch}
        levels = {"ranks": ranks}
        arm = ArmRecord.model_validate(
            {"id": f"a-{ranks}", "codebase": "a", "label": "a", "levels": levels, "cell": f"ranks-{ranks}",
             "workload": workload, "status": "ok", "phases": PHASES,
             "averaging": [0.002] if ranks > 1 else [],
             "description": {"trainable_parameters": 2**20}}
        )  # fmt: skip
        blocks = [
            Block(arm=arm.id, launch=launch, round=round_, position=0, ranks=[
                RankTimes(start_ns=[0, step], end_ns=2 * step + launch + round_) for step in STEP_NS[ranks]
            ])
            for launch in range(3) for round_ in range(5)
        ]  # fmt: skip
        run.write_arm(arm, samples_columns(blocks))
        arms.append((arm, kind))
    cells = {arm.cell: CellRecord(digest=arm.cell, fingerprint=kind) for arm, kind in arms}
    record = RunRecord(
        id="r", recipe={"name": "r"}, started_utc="2026-01-01T00:00:00+00:00", bench_version="0", status="complete",
        arms=[arm.id for arm, _ in arms], cells=cells,
    )  # fmt: skip
    run.write_record(record)
    return run


def test_efficiency_is_per_rank(tmp_path: Path) -> None:
    (weak,) = run_report(stored(tmp_path / "weak", (2, 2))).scaling
    assert (weak.kind, weak.reference_ranks, weak.ranks) == ("weak", 1, 2)
    assert weak.efficiency.value == pytest.approx(20 / 14, rel=1e-3)
    (strong,) = run_report(stored(tmp_path / "strong", (2, 1))).scaling
    assert strong.kind == "strong"
    assert strong.efficiency.value == pytest.approx(20 / 14 / 2, rel=1e-3)


def test_unlike_machines_give_no_ratio(tmp_path: Path) -> None:
    report = run_report(stored(tmp_path, (2, 2), ("a", "b")))
    assert report.scaling == ()
    assert report.effects == ()


def test_slowest_rank_is_named(tmp_path: Path) -> None:
    report = run_report(stored(tmp_path, (2, 2)))
    (one,) = report.stragglers
    assert (one.ranks, one.slowest, one.share) == (2, 1, 1.0)
    assert one.slowest_s / one.fastest_s == pytest.approx(14 / 11, rel=1e-3)
    text = markdown.render(list(scaling_blocks(report)), 100_000)
    assert "| 2 | 0.0110 | 0.0140 | 1.27 | 1 | 100 | 10.0 | 4.00 |" in text
