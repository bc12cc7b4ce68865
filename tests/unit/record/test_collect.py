"""Cells of a store as run folders; what strangers wrote into one."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.record.collect import collect
from bench.record.models import CellRecord, RunRecord
from bench.record.store import FolderStore, packed


def put(store: FolderStore, folder: Path, name: str, **changes: object) -> None:
    """A cell without arms."""
    key = f"key-{name}-{len(changes)}"
    cell = CellRecord(
        digest=key, index=int(name[1:]), planned=3, fingerprint=str(changes.get("fingerprint", "a"))
    )
    values = {
        "id": key,
        "recipe": {"name": "r"},
        "started_utc": "2026-01-01T00:00:00+00:00",
        "bench_version": "0",
    }
    values |= {"status": "complete", "cells": {name: cell}, **changes}
    (folder / key).mkdir(parents=True)
    (folder / key / "run.json").write_text(RunRecord.model_validate(values).model_dump_json())
    store.put("r", key, packed(folder / key))


def test_cells_of_one_plan_are_one_run(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    put(store, tmp_path, "c1")
    put(store, tmp_path, "c0", fingerprint="b")
    (run,) = collect(store, "r", tmp_path / "runs")
    record = run.record()
    assert list(record.cells) == ["c0", "c1"]
    assert "1 of 3 cells are not in the store" in record.warnings
    assert any("2 kinds of machines" in text for text in record.warnings)
    assert [one.folder for one in collect(store, "r", tmp_path / "runs")] == [run.folder]
    put(store, tmp_path, "c1", bench_version="1")
    assert len(collect(store, "r", tmp_path / "runs")) == 2


def test_texts_of_strangers_lead_nowhere(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    put(store, tmp_path, "c0", started_utc="../../../../../../x")
    for recipe in ("r", ".."):
        with pytest.raises(BenchError, match="the store holds what is no cell: not a name"):
            collect(store, recipe, tmp_path / "runs")
    assert not list(tmp_path.glob("runs/*/*"))
