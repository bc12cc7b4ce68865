"""Numbers of a training in other tools' forms."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detectors.meter import Records


def test_a_training_goes_on_with_its_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: dict[str, dict[int, Any]] = {}

    def init(*, id: str, **_: Any) -> SimpleNamespace:
        numbers = runs.setdefault(id, {})
        return SimpleNamespace(log=lambda values, step: numbers.update({step: values}))

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    Records(tmp_path, ["wandb"], {"batch": 2}).add(1, {"loss": 3.0})
    Records(tmp_path, ["wandb"], {"batch": 2}).add(2, {"loss": 2.5})
    assert list(runs.values()) == [{1: {"loss": 3.0}, 2: {"loss": 2.5}}]
