"""The setting of a report comes from what arms did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.inputs.npz import sha256_of
from bench.judge.observations import work_of
from bench.record.models import Prediction, Weights
from bench.report.build import run_report
from bench.report.setting import setting_of
from tests.helpers.report_runs import arm, markdown_of, rows_of, samples, write_run

STEP: dict[str, Any] = {
    "flops": {"forward": {"bfloat16 × bfloat16": 80, "float32": 10}, "backward": {"float32": 20}},
    "losses": {"cls": 1.0, "box": 2.0, "loss": 3.0},
}
AUDIT = {"ranks": [{"steps": [STEP], "after": {"threads": 2}}]}


def test_setting_is_what_was_observed() -> None:
    found = setting_of(arm("native", audit=AUDIT, weights=Weights(source="transplanted", sha256="ab" * 32)))
    assert (found.weights, found.types, found.threads) == ("transplanted", "bfloat16 × bfloat16, float32", 2)
    assert setting_of(arm("native")).types == ""


def test_report_shows_weights_and_images(tmp_path: Path) -> None:
    predictions = Prediction(path="predictions/native.json", images=8, detections=5)
    weights = Weights(source="file", path="{home}/mine.npz", sha256="cd" * 32)
    native = arm("native", audit=AUDIT, weights=weights, predictions=predictions)
    run = write_run(tmp_path / "run", [(arm("torchvision"), samples(1.0)), (native, samples(0.9))])
    (row,) = rows_of(markdown_of(run), "Setting: weights, types of numbers, threads, images")
    assert row["weights"] == "{home}/mine.npz"
    assert row["SHA-256"] == "cdcdcdcdcdcd"
    assert row["images evaluated"] == "8"


def test_setting_is_left_out_where_nothing_was_observed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [(arm("torchvision"), samples(1.0)), (arm("native"), samples(0.9))])
    assert "Setting:" not in markdown_of(run)


@pytest.mark.parametrize(
    ("chosen", "shown"), [("measure.rounds=6", True), ("factors.size=[[64, 64]]", False)]
)
def test_description_of_a_changed_recipe_is_left_out(tmp_path: Path, chosen: str, shown: bool) -> None:
    recipe = {"name": "quickstart", "description": "Two codebases on large images."}
    command = ["bench", "run", "quickstart", "--set", chosen]
    run = write_run(tmp_path / "run", [(arm("native"), samples(1.0))], recipe=recipe, command=command)
    assert run_report(run).description == (recipe["description"] if shown else "")


def test_flops_of_a_step_come_from_the_audit() -> None:
    assert work_of({"steps": [STEP]}) == {
        "forward_flops": 90, "training_flops": 110, "loss_terms": ["cls", "box"],
    }  # fmt: skip
    assert work_of({"steps": [{"flops": {"forward": {"float32": 7}, "backward": {}}}]}) == {
        "forward_flops": 7
    }
    assert work_of({}) == {}


def test_checksum_of_weights_is_of_names_types_and_values() -> None:
    one = {"a": np.zeros(2, np.float32), "b": np.ones((1, 2), np.float32)}
    assert sha256_of(one) == sha256_of(dict(reversed(one.items())))
    others = [
        {**one, "b": np.ones((2, 1), np.float32)},
        {**one, "a": np.zeros(2)},
        {**one, "a": np.ones(2, np.float32)},
    ]
    assert len({sha256_of(other) for other in [one, *others]}) == 4
