"""What is refused before anything is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.errors import BenchError
from bench.measure.preflight import (
    brings,
    check_plan,
    refuse_other_packages,
    refuse_other_place,
    refuse_other_revision,
)
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord, RunRecord
from tests.conftest import FAKE


def problems(folder: Path, **workload: Any) -> list[str]:
    content = {
        "name": "preflight",
        "workload": {"model": "faster_rcnn_r50_fpn", "input": {"images": 2}, **workload},
        "arms": ["fake"],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content))
    codebases = find_codebases([FAKE])
    return check_plan(make_plan(load_recipe(folder / "recipe.yaml"), codebases), codebases, folder / "cache")


def test_plan_that_can_be_measured_has_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path) == []


def test_missing_weights_are_named(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, weights=str(tmp_path / "nothing.npz"))
    assert "nothing.npz" in problem


def test_missing_split_is_named(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, input={"images": 2, "split": "tain"})
    assert "no split 'tain'" in problem


def test_missing_data_set_is_named(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, input={"images": 2, "dataset": str(tmp_path / "coco")})
    assert "data set folder not found" in problem


def run(cpu: str) -> RunRecord:
    machine = {"cpu": {"model": cpu}}
    return RunRecord(id="a", recipe={"name": "r"}, started_utc="", bench_version="0", machine=machine)


def arm(blocks: int) -> ArmRecord:
    work = Workload(task="train", model="faster_rcnn_r50_fpn")
    return ArmRecord(
        id="a", codebase="fake", label="a", cell="all", workload=work, status="ok", blocks=blocks
    )


def test_resume_on_another_kind_of_machine_is_refused() -> None:
    with pytest.raises(BenchError, match="a machine of another kind"):
        refuse_other_place(run("A"), [arm(3)], {"cpu": {"model": "B"}})
    refuse_other_place(run("A"), [arm(3)], {"cpu": {"model": "A"}})
    refuse_other_place(run("A"), [arm(0)], {"cpu": {"model": "B"}})


def test_resume_with_another_revision_is_refused() -> None:
    with pytest.raises(BenchError, match="began with bench aaaa"):
        refuse_other_revision("aaaa", "bbbb", "bench")
    refuse_other_revision(None, "bbbb", "bench")


def test_resume_with_other_packages_is_refused() -> None:
    with pytest.raises(BenchError, match=r"torch 2\.1 → 2\.2"):
        refuse_other_packages({"torch": "2.1"}, {"torch": "2.2"}, "native")
    refuse_other_packages({"torch": "2.1"}, {"torch": "2.1"}, "native")


def test_folder_that_brings_a_package_is_known(tmp_path: Path) -> None:
    for folder in ("mmdet", "src/other", "venv/lib/python/deep"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "__init__.py").touch()
    assert [brings(tmp_path, name) for name in ("mmdet", "other", "deep")] == [True, True, False]
