"""The runs and the report that are kept in the repository: readable, and of no machine in particular."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bench.record.models import SCHEMA_VERSION
from bench.record.run import Run

ROOT = Path(__file__).resolve().parents[3]
#: Without what a user interrupted here.
KEPT = sorted(
    path.parent
    for path in ROOT.glob("results/*/*/run.json")
    if json.loads(path.read_text())["status"] == "complete"
)
_OF_A_MACHINE = re.compile(r"(?<![\w.-])/(root|home|work|tmp|Users|mnt|scratch)/[^\s\"]+")


def test_some_runs_are_kept() -> None:
    assert len(KEPT) >= 5


@pytest.mark.parametrize("folder", KEPT, ids=lambda folder: folder.parent.name)
def test_kept_run_is_complete(folder: Path) -> None:
    run = Run(folder)
    record, arms = run.record(), run.arms()
    assert record.schema_version == SCHEMA_VERSION
    assert [arm.id for arm in arms] == record.arms
    for arm in arms:
        assert not run.samples(arm.id).empty


def test_kept_files_name_no_path_of_a_machine() -> None:
    kept = [path for top in ("results", "reports") for path in (ROOT / top).rglob("*")]
    texts = [
        path for path in kept if path.suffix in (".json", ".md", ".csv", ".yaml", ".txt", ".html", ".svg")
    ]
    found = {path.name: match[0] for path in texts if (match := _OF_A_MACHINE.search(path.read_text()))}
    assert found == {}
    assert not list(ROOT.glob("results/**/*.png"))
