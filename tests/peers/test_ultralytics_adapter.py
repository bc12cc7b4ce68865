"""Ultralytics, a distribution of its own in contrib/: apart from bench, and driven like the others."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest

from bench.environments import python_of
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases, load_codebase
from tests.conftest import ROOT
from tests.peers.peer import Peer
from tests.peers.test_yolox_adapter import LEARN

pytestmark = pytest.mark.peers

FOLDER = ROOT / "contrib" / "ultralytics"


def test_nothing_of_bench_depends_on_it() -> None:
    own = tomllib.loads((FOLDER / "pyproject.toml").read_text())["project"]
    (package,) = own["entry-points"]["bench.adapters"].values()
    codebase = load_codebase(FOLDER / package)
    assert own["license"] == "AGPL-3.0-only"
    assert "AGPL-3.0" in codebase.title  # which reports show
    assert codebase.name not in find_codebases()
    for file in (ROOT / "pyproject.toml", ROOT / "requirements.lock"):
        assert "ultralytics" not in file.read_text()


@pytest.mark.nightly
@pytest.mark.parametrize(("model", "size"), [("ultralytics://yolo11n.yaml", 64), ("rtdetr_r50vd", 160)])
def test_ultralytics_learns_and_detects(tmp_path: Path, model: str, size: int) -> None:
    codebase = load_codebase(FOLDER / "bench_ultralytics")
    try:
        peer = Peer(codebase, python_of(codebase), tmp_path)
    except BenchError as error:
        pytest.skip(f"{error.message}; {error.hint} --adapters {FOLDER.relative_to(ROOT)}")
    job = peer.job(model, input={"size": (size, size)}, score_threshold=0.0, max_detections=7, ema=True,
                   frozen_stages=0, optimizer={"lr": 1e-4})  # fmt: skip
    result, _ = peer.run(LEARN, job)
    losses = [one["loss"] for one in result["losses"]]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
    assert result["frozen_moved"] == []
    assert 0 < len(result["found"][0]["boxes"]) <= 7
