"""`bench` on run folders that somebody else made: nothing is written outside, one clear error, exit code 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, Cli

CHANGES: list[tuple[str, list[str], Any]] = [
    ("run.json", ["recipe", "name"], "../../victim"),
    ("run.json", ["id"], "."),
    ("run.json", ["schema_version"], 99),
    ("run.json", ["machine", "memory"], "much"),
    ("arms/fast.json", ["predictions", "path"], "/etc/passwd"),
    ("run.json", ["recipe", "measure"], [1]),
    ("arms/fast.json", ["workload", "task"], 5),
    ("arms/fast.json", ["description", "extra"], [1]),
    ("arms/fast.json", ["description", "parameters"], "many"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(ROOT / "tests" / "data" / "run", tmp_path / "results" / "small" / "x"))


@pytest.mark.parametrize(("name", "keys", "value"), CHANGES)
def test_report_of_a_forged_record_is_refused(
    cli: Cli, folder: Path, name: str, keys: list[str], value: Any
) -> None:
    content = json.loads((folder / name).read_text())
    target = content
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = value
    (folder / name).write_text(json.dumps(content))
    before = sorted(cli.folder.rglob("*"))
    done = cli("report", folder)
    assert done.code == 2, done.err
    assert f"{name}: " in done.err
    assert keys[-1] in done.err or keys[0] in done.err
    assert "Traceback" not in done.err
    assert sorted(cli.folder.rglob("*")) == before


def test_forged_facts_of_an_audit_are_one_error(cli: Cli, folder: Path) -> None:
    for file in (folder / "arms").glob("*.json"):
        forged = {"ranks": [{"steps": [5], "weights": {"w": 1.0}, "named": "own"}]}
        file.write_text(json.dumps({**json.loads(file.read_text()), "audit": forged}))
    done = cli("report", folder)
    assert done.code == 2, done.err
    assert "the facts of its audit cannot be read" in done.err
    assert "Traceback" not in done.err


def test_list_shows_broken_and_killed_runs(cli: Cli, folder: Path) -> None:
    killed = Path(shutil.copytree(folder, folder.with_name("y")))
    content = json.loads((killed / "run.json").read_text())
    (killed / "run.json").write_text(json.dumps({**content, "status": "running"}))
    torn = Path(shutil.copytree(folder, folder.with_name("z")))
    (torn / "run.json").write_bytes((torn / "run.json").read_bytes()[:100])
    done = cli("list", "runs", "--results", cli.results, "--json")
    assert done.code == 0, done.err
    sound, gone, broken = done.json()
    assert [sound["status"], gone["status"]] == ["complete", "killed"]
    assert broken["status"].startswith("not a valid record")
