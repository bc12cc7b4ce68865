"""Which arm is compared with which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.errors import BenchError
from bench.judge.pairs import baseline_of, counterpart_of
from bench.recipe.codebases import find_codebases
from bench.recipe.load import load_recipe
from bench.recipe.plan import Plan, make_plan
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord

FAKE = Path(__file__).parents[2] / "fake"
WORK = Workload(task="train", model="faster_rcnn_r50_fpn")
TWO = [{"codebase": "fake", "label": "tuned"}, {"codebase": "fake"}]


def plan(folder: Path, **changes: Any) -> Plan:
    content = {
        "name": "pairs",
        "workload": {"task": "train", "model": "faster_rcnn_r50_fpn", "input": {"images": 2}},
        "arms": TWO,
        **changes,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return make_plan(load_recipe(folder / "recipe.yaml"), find_codebases([FAKE]))


def baselines(planned: Plan) -> dict[str, str | None]:
    return {arm.id: arm.baseline for arm in planned.arms}


def record(id: str, label: str, levels: dict[str, Any], **known: Any) -> ArmRecord:
    return ArmRecord(
        id=id, codebase="fake", label=label, levels=levels, cell="all", workload=WORK, status="ok", **known
    )


def test_label_goes_before_codebase(tmp_path: Path) -> None:
    assert baselines(plan(tmp_path, baseline="fake")) == {"tuned": "fake", "fake": "fake"}


def test_ambiguous_baseline_is_an_error_with_its_line(tmp_path: Path) -> None:
    arms = [{"codebase": "fake", "label": "a"}, {"codebase": "fake", "label": "b"}]
    with pytest.raises(BenchError, match="several arms fit the baseline: a, b") as error:
        plan(tmp_path, arms=arms, baseline="fake")
    assert "recipe.yaml:" in str(error.value)


def test_levels_of_the_baseline_choose_its_arm(tmp_path: Path) -> None:
    planned = plan(tmp_path, factors={"ema": [False, True]}, baseline={"codebase": "tuned", "ema": False})
    assert set(baselines(planned).values()) == {"tuned-ema-off"}


def test_without_a_baseline_nothing_is_compared(tmp_path: Path) -> None:
    assert set(baselines(plan(tmp_path)).values()) == {None}


def test_stored_id_goes_before_the_pattern() -> None:
    arms = [record("a", "a", {}, baseline="b"), record("b", "b", {}, baseline="b")]
    assert baseline_of(arms[0], arms, {"codebase": "a"}) is arms[1]


def test_records_without_an_id_follow_the_pattern() -> None:
    arms = [record("tuned", "tuned", {}), record("fake", "fake", {})]
    assert baseline_of(arms[0], arms, {"codebase": "fake"}) is arms[1]


def test_counterpart_has_the_levels_of_the_arm() -> None:
    arms = [record(f"{label}-{ema}", label, {"ema": ema}) for label in "xy" for ema in (False, True)]
    pattern = {"codebase": "x", "ema": False}
    assert baseline_of(arms[3], arms, pattern) is arms[0]
    assert counterpart_of(arms[3], arms, pattern) is arms[1]
