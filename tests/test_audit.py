"""Two rows stand in one table only when the work was equal, or the table says in what it was not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from bench.judge.audit import audit, audit_run
from bench.record.models import ArmRecord
from tests.conftest import Cli

DESCRIPTION: dict[str, Any] = {
    "parameters": 41_755_286,
    "trainable_parameters": 41_480_000,
    "forward_flops": 160_000_000_000,
    "input_shape": [2, 3, 256, 256],
    "input_dtype": "float32",
    "input_mean": -0.12,
    "input_std": 1.02,
    "objects": 11,
    "precision": "float32",
    "optimizer": {"lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4, "state_values": 41_480_000},
    "postprocess": {
        "score_threshold": 0.05,
        "nms_iou_threshold": 0.5,
        "max_detections": 100,
        "proposals": 1000,
    },
    "loss_terms": ["a", "b"],
    "threads": 2,
    "extra": {"ema": False, "frozen_affine_values": 53_120},
}


def arm(codebase: str, *, model: str = "retinanet_r50_fpn", loss: float = 1.5, **changes: Any) -> ArmRecord:
    description = copy.deepcopy(DESCRIPTION)
    for path, value in changes.items():
        target = description
        *outer, last = path.split("__")
        for part in outer:
            target = target[part]
        target[last] = value
    return ArmRecord(
        id=codebase,
        codebase=codebase,
        label=codebase,
        cell="all",
        workload={"model": model},
        status="ok",
        description=description,
        losses=[{"launch": 0, "round": -1, "losses": {"cls": loss - 0.5, "box": 0.5}}],
    )


@pytest.mark.parametrize(
    ("mistake", "changes", "fact"),
    [
        ("another image size", {"input_shape": [2, 3, 320, 320]}, "input shape"),
        ("unfrozen batch norm", {"trainable_parameters": 41_533_120}, "trainable parameters"),
        ("another number of proposals", {"postprocess__proposals": 2000}, "proposals"),
        ("half the batch", {"input_shape": [1, 3, 256, 256]}, "input shape"),
        ("another score threshold", {"postprocess__score_threshold": 0.001}, "score threshold"),
        ("fewer pyramid levels", {"forward_flops": 151_000_000_000}, "forward FLOPs"),
        ("wrong normalisation", {"input_mean": 1.4}, "input mean"),
        ("float16", {"precision": "float16", "input_dtype": "float16"}, "precision"),
        ("no weight decay", {"optimizer__weight_decay": 0.0}, "weight decay"),
        ("objects left out", {"objects": 9}, "ground-truth objects"),
        ("one thread", {"threads": 1}, "threads"),
        ("another loss", {"loss": 1.6}, "loss after warm-up"),
    ],
)
def test_unequal_work_is_found_and_named(mistake: str, changes: dict[str, Any], fact: str) -> None:
    verdict = audit(arm("other", **changes), arm("reference"))
    assert not verdict.equal, mistake
    assert fact in {difference.fact for difference in verdict.differences}


def test_the_same_work_is_equal_whether_frozen_norms_are_counted_as_parameters_or_buffers() -> None:
    other = arm("other", parameters=41_755_286 + 53_120, extra__frozen_affine_values=0)
    assert audit(other, arm("reference")).equal


def test_a_difference_that_is_the_point_of_the_comparison_is_not_unequal_work() -> None:
    with_ema, without = arm("a", extra__ema=True), arm("b")
    assert not audit(with_ema, without).equal
    with_ema.levels, without.levels = {"ema": True}, {"ema": False}
    assert audit(with_ema, without).equal


def test_random_sampling_of_two_stage_models_is_not_unequal_work_but_a_missing_loss_is() -> None:
    reference = arm("reference", model="faster_rcnn_r50_fpn")
    assert audit(arm("other", model="faster_rcnn_r50_fpn", loss=1.6), reference).equal
    assert not audit(arm("other", model="faster_rcnn_r50_fpn", loss=0.9), reference).equal


def test_what_a_codebase_does_not_report_is_said_to_be_unknown_and_not_taken_for_equal() -> None:
    verdict = audit(arm("other", forward_flops=None), arm("reference"))
    assert verdict.equal
    assert verdict.unknown == ("forward FLOPs",)


def test_only_arms_of_one_cell_are_compared() -> None:
    other = arm("other", threads=1)
    other.cell = "elsewhere"
    assert audit_run([arm("reference"), other], {"codebase": "reference"}) == {}


def test_bench_audit_says_what_differs_and_keeps_nothing(cli: Cli) -> None:
    recipe = cli.recipe(
        arms=[
            {"codebase": "fake", "label": "slow"},
            {"codebase": "fake", "label": "two", "options": {"threads": 2}},
        ]
    )
    done = cli("audit", recipe, "--adapters", "tests/fake", "--json")
    assert done.code == 0, done.err
    (verdict,) = done.json()
    assert not verdict["equal"]
    assert verdict["differences"] == [{"fact": "threads", "baseline": 1, "arm": 2, "tolerance": 0.0}]
    assert not cli.results.exists()


def test_strict_refuses_to_time_unequal_work_and_says_why(cli: Cli) -> None:
    recipe = cli.recipe(
        arms=[
            {"codebase": "fake", "label": "slow"},
            {"codebase": "fake", "label": "two", "options": {"threads": 2}},
        ]
    )
    done = cli.run(recipe, "--strict")
    assert done.code == 4
    failed = cli.arm("two")
    assert failed["failure"]["reason"] == "audit"
    assert "threads: 2, the baseline has 1" in failed["failure"]["message"]
    assert failed["blocks"] == 0
    assert cli.arm("slow")["blocks"] == 6
