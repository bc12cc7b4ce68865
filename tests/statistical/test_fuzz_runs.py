"""Run folders with a mistake in them: they are read, or one error says what is wrong."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.record.run import Run
from bench.report import accuracy_values
from bench.report.build import run_report

RUN = Path(__file__).resolve().parents[1] / "data" / "run"
VALUES: list[Any] = [
    None, True, -1, 0, 1e308, float("nan"), 2**70, "", "x" * 50, "../x", "\ud800", [], {}, [None], {"a": None}, "5",
]  # fmt: skip
MUTATIONS = 2000


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, of lists the first three."""
    yield path
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    )
    for key, item in items:
        yield from places(item, (*path, key))


def change_value(rng: random.Random, file: Path) -> None:
    content = json.loads(file.read_text())
    path = rng.choice([place for place in places(content) if place])
    target = content
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = rng.choice(VALUES)
    file.write_text(json.dumps(content))


def change_bytes(rng: random.Random, file: Path) -> None:
    data = bytearray(file.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        for _ in range(rng.choice((1, 3, 30))):
            data[rng.randrange(len(data))] = rng.randrange(256)
    file.write_bytes(data)


@pytest.mark.filterwarnings("ignore")
def test_mutated_run_gives_one_error_or_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Intervals of AP take seconds for every report, and read the same files as the sections before.
    monkeypatch.setattr(accuracy_values, "_differences", lambda *arguments: {})
    refused = 0
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        folder = Path(shutil.copytree(RUN, tmp_path / f"{seed}"))
        file = rng.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        (change_value if file.suffix == ".json" and rng.random() < 0.8 else change_bytes)(rng, file)
        with contextlib.suppress(BenchError):
            run_report(Run(folder))
            refused -= 1
        refused += 1
        shutil.rmtree(folder)
    assert refused > MUTATIONS // 20
