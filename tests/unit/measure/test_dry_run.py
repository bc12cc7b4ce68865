"""What a dry run finds: everything that is wrong and needs no model to be seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bench.errors import BenchError
from bench.measure.preflight import check_plan
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import make_plan, notes_of
from bench.record import machine
from tests.helpers import broken

CODEBASES = find_codebases()


def problems(root: Path, asked: broken.Json) -> list[str]:
    """All that a user is told."""
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(asked))
    try:
        loaded = load_recipe(file)
        plan = make_plan(loaded, CODEBASES)
    except BenchError as error:
        return [str(error)]
    return check_plan(plan, CODEBASES, root / "cache", loaded.recipe.environment.affinity)


@pytest.mark.parametrize("name", broken.CASES)
def test_fault_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(machine, "gpu_facts", dict)
    asked = broken.recipe(tmp_path)
    breaking, expected = broken.CASES[name]
    breaking(tmp_path, asked)
    found = [one for one in problems(tmp_path, asked) if "has not been created" not in one]
    assert len(found) == 1, found
    assert expected in found[0]


def test_sound_data_set_has_no_problem(tmp_path: Path) -> None:
    broken.coco(tmp_path)
    assert problems(tmp_path, broken.recipe(tmp_path)) == []


def test_image_twice_in_a_batch_is_noted(tmp_path: Path) -> None:
    asked = broken.recipe(tmp_path)
    asked["workload"]["batch_size"] = 3
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asked))
    (note,) = notes_of(make_plan(load_recipe(tmp_path / "recipe.yaml"), CODEBASES), CODEBASES)
    assert note == "native: 3 images a step, 2 in the input: each step has images more than once"
