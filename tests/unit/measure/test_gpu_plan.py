"""`benchmarks.gpu`: what fits into the time, and what the interpreter lacks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from bench.measure.preflight import check_plan
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from bench.report.app.page import own_script
from benchmarks.gpu.adopt import SPARE, complete, missing, requirements, wheels_of
from benchmarks.gpu.stages import TABLE, Budget, recipes


def test_cells_are_expected_to_last_as_earlier_ones(tmp_path: Path) -> None:
    budget = Budget(45, tmp_path / "seconds.json")
    assert budget.expected_s("train", arms=2) == 90
    budget.note("equal", arms=2, seconds=40)
    assert budget.expected_s("train", arms=3) == 60
    budget.note("train", arms=2, seconds=200)
    assert budget.expected_s("infer", arms=2) == 200
    again = Budget(45, tmp_path / "seconds.json")
    assert (again.expected_s("train", arms=1), again.expected_s("equal", arms=1)) == (100, 20)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recipes_can_be_planned(device: str, tmp_path: Path) -> None:
    names = []
    for recipe in recipes(device, ["torchvision", "mmdet"]):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        plan = make_plan(load_recipe(path), find_codebases())
        assert {arm.workload.device for arm in plan.arms} == {device}
        assert {arm.workload.tf32 for arm in plan.arms} == ({None} if device == "cpu" else {False})
        names.append(plan.name)
    assert names[:2] == ["gpu-equal-work", "gpu-equal-work-mmdet"]
    assert len(names) == len(set(names))


def test_reference_settings_are_those_of_the_document() -> None:
    train = next(one for one in recipes("cuda", ["torchvision"]) if one["name"] == "gpu-train")
    assert train["workload"]["input"]["size"] == {"short": 800, "long": 1333}
    assert train["factors"]["model"] == list(TABLE[:2])
    solov2 = next(one for one in recipes("cuda", ["torchvision"]) if one["name"] == "gpu-solov2-light")
    assert (solov2["workload"]["batch_size"], solov2["factors"]) == (12, {"ema": [False, True]})


def test_what_is_lacking_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"pydantic", "ruptures", "hotcoco", "pycocotools", *SPARE} <= set(requirements())
    assert missing(["PyYAML", "nothing-like-this"]) == ["nothing-like-this"]
    monkeypatch.setattr("benchmarks.gpu.adopt.requirements", lambda: ["nothing-like-this"])
    with pytest.raises(SystemExit, match="missing: nothing-like-this; give a folder of wheels"):
        complete(tmp_path, None)
    (tmp_path / "other_one-2.0.1-py3-none-any.whl").touch()
    assert wheels_of(tmp_path) == ["other-one"]
    with pytest.raises(SystemExit, match="missing: nothing-like-this; no wheel of these"):
        complete(tmp_path, tmp_path)


def test_spare_packages_are_not_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.adopt.missing", lambda names: [one for one in names if one in SPARE])
    assert complete(tmp_path, None) == sys.executable


def test_page_needs_no_minifier(monkeypatch: pytest.MonkeyPatch) -> None:
    small = own_script()
    monkeypatch.setitem(sys.modules, "minify", None)
    assert len(own_script()) > len(small) > 10_000


def test_nobody_doubts_a_gpu_without_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipes("cuda", ["torchvision"])[0]))
    plan = make_plan(load_recipe(path), find_codebases())
    monkeypatch.setattr("bench.measure.preflight.machine.gpu_facts", dict)
    assert "this machine shows no NVIDIA GPU" in str(check_plan(plan, find_codebases(), tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert check_plan(plan, find_codebases(), tmp_path) == []
