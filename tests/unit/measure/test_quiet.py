"""Disturbed blocks: noticed, marked, left out."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from bench.measure import quiet
from bench.measure.quiet import Clock, taken_cores
from bench.record.models import Block, RankTimes
from bench.record.samples import block_times, read_columns, samples_columns


def block(launch: int, round_: int, taken: float | None = None) -> Block:
    ranks = [RankTimes(start_ns=[0, 10], end_ns=20)]
    return Block(
        arm="a", launch=launch, round=round_, position=0, ranks=ranks, taken_cores=taken, batches=[2, 3]
    )


def rounds(blocks: list[Block]) -> list[int]:
    return list(block_times(pd.DataFrame(samples_columns(blocks)))["round"])


def test_own_work_is_no_disturbance() -> None:
    assert taken_cores(Clock(0, 0, 0), Clock(1, 2.01, 2.0)) == 0.0


def test_work_of_others_is_counted_in_cores() -> None:
    assert taken_cores(Clock(0, 5, 3), Clock(2, 9, 6)) == 0.5


def test_disturbed_blocks_are_left_out() -> None:
    assert rounds([block(0, 0), block(0, 1, taken=0.5), block(0, 2, taken=0.01)]) == [0, 2]


def test_launch_without_enough_quiet_blocks_keeps_all() -> None:
    blocks = [block(0, 0), block(0, 1, taken=0.5), block(1, 0), block(1, 1), block(1, 2, taken=0.5)]
    assert rounds(blocks) == [0, 1, 0, 1]


def test_samples_name_the_batch_of_each_step() -> None:
    assert list(samples_columns([block(0, 0)])["batch"]) == [2, 3]


def test_waiting_ends_when_others_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([[{"pid": 1, "name": "hog", "cores": 1.0}], []])
    monkeypatch.setattr(quiet.machine, "foreign_load", lambda interval_s: next(seen))
    monkeypatch.setattr(quiet.time, "sleep", lambda _: None)
    notes: list[str] = []
    quiet.wait_until_quiet(5.0, notes.append)
    assert notes == ["waiting for a quiet machine: process 1 (hog) is busy"]


def test_waiting_ends_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    hog = [{"pid": 1, "name": "hog", "cores": 1.0}]
    monkeypatch.setattr(quiet.machine, "foreign_load", lambda interval_s: hog)
    assert quiet.wait_until_quiet(0.05, lambda _: None) < 2


def test_a_table_without_the_new_columns_is_read(tmp_path: Path) -> None:
    pd.DataFrame(samples_columns([block(0, 0)])).drop(columns=["batch", "disturbed"]).to_parquet(
        tmp_path / "old.parquet"
    )
    assert set(read_columns(tmp_path / "old.parquet")["batch"]) == {-1}
