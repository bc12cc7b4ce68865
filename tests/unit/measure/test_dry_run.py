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


def test_a_wrong_name_of_a_model_is_named_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "adapter.yaml").write_text(
        "{name: zoo, title: Zoo, packages: [numpy], models: {}, schemes: [zoo], inputs: [shared]}"
    )
    (tmp_path / "adapter.py").write_text(
        "from bench.worker.api import Adapter as Base\n\n\n"
        "class Adapter(Base):\n    @staticmethod\n    def find_model(name):\n"
        "        print('noise')\n        if name != 'lion':\n"
        "            raise ValueError(f'no {name}; did you mean lion?')\n"
    )
    asked = broken.recipe(tmp_path)
    del asked["workload"]["model"]
    asked["arms"] = [{"codebase": "zoo", "model": name, "label": name} for name in ("lion", "lino", "lnio")]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**asked, "baseline": "lion"}))
    codebases = find_codebases([tmp_path])
    plan = make_plan(load_recipe(tmp_path / "recipe.yaml"), codebases)
    broken.coco(tmp_path)
    assert check_plan(plan, codebases, tmp_path / "cache") == [
        "lino: no lino; did you mean lion?",
        "lnio: no lnio; did you mean lion?",
    ]
