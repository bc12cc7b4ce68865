"""`benchmarks.gpu`: what fits into the time, and what the interpreter lacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan
from benchmarks.gpu.adopt import complete, missing, requirements
from benchmarks.gpu.stages import Budget, recipes


def test_only_what_fits_is_begun() -> None:
    budget = Budget(100, 20)
    assert budget.fits(80)
    assert not budget.fits(81)
    budget.spend(30, estimate_s=10)
    assert budget.left_s == 70
    assert budget.expected_s(10) == 30
    assert budget.fits(16)
    assert not budget.fits(17)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recipes_can_be_planned(device: str, tmp_path: Path) -> None:
    names = []
    for recipe in recipes(device, ["native", "torchvision", "mmdet"]):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        plan = make_plan(load_recipe(path), find_codebases())
        assert {arm.workload.device for arm in plan.arms} == {device}
        names.append(plan.name)
    assert names[:2] == ["gpu-equal-work", "gpu-train"]


def test_reference_settings_are_those_of_the_document() -> None:
    train = next(one for one in recipes("cuda", ["native", "torchvision"]) if one["name"] == "gpu-train")
    assert train["workload"]["input"]["size"] == {"short": 800, "long": 1333}
    assert train["workload"]["batch_size"] == 2
    solov2 = next(one for one in recipes("cuda", ["native"]) if one["name"] == "gpu-solov2-light")
    assert (solov2["workload"]["batch_size"], solov2["factors"]) == (12, {"ema": [False, True]})


def test_what_is_lacking_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"pydantic", "ruptures", "hotcoco", "pycocotools"} <= set(requirements())
    assert missing(["PyYAML", "nothing-like-this"]) == ["nothing-like-this"]
    monkeypatch.setattr("benchmarks.gpu.adopt.requirements", lambda: ["nothing-like-this"])
    with pytest.raises(SystemExit, match="missing: nothing-like-this; give a folder of their wheels"):
        complete(tmp_path, None)
