"""What rounding explains: constants that tensors show, and values that differ by as little."""

from __future__ import annotations

from typing import Any

import pytest

from bench.judge.audit import audit, doubtful
from bench.judge.observations import summary
from tests.audit.test_judge import LAYER, STEP, arm


@pytest.mark.parametrize(("blur", "expected"), [(1e-7, "unequal"), (1e-4, "equal")])
def test_decay_of_biases_counts_where_rounding_allows(blur: float, expected: str) -> None:
    first, second = (
        arm(label, {"steps/1/rule": {**STEP["rule"], "vectors": {"weight_decay": one, "blur": blur}}})
        for label, one in (("reference", 1e-4), ("other", 0.0))
    )
    assert audit(second, first).verdict == expected


@pytest.mark.parametrize(("moved", "expected"), [(1e-3, "unequal"), (1e-6, "equal")])
def test_average_counts_where_rounding_allows(moved: float, expected: str) -> None:
    def averaged(share: float) -> dict[str, Any]:
        products = {"neck.p7": [share * moved**2, moved**2, 1.0]}
        return summary({"steps": [{"layers": {}, "average": products}], "weights": {}}, {})["steps"][0]

    first, second = (
        arm(label, {"steps/1/average": averaged(share)["average"]})
        for label, share in (("reference", 0.82), ("other", 0.88))
    )
    assert audit(second, first).verdict == expected


@pytest.mark.parametrize(
    ("differs", "rounding", "also", "expected"),
    [
        (1.02, None, {}, "unequal"),  # nobody looked what rounding does
        (1.02, 1.008, {}, "not shown"),
        (1.02, 1.0001, {}, "unequal"),
        (1.15, 1.1, {}, "unequal"),  # however an arm rounds
        (1.02, 1.008, {"steps/1/rounded": {"bfloat16": 10}}, "unequal"),
        (1.02, 1.008, {"steps/1/losses": {"cls": 1.01, "box": 0.5, "loss": 1.51}}, "unequal"),
    ],
)
def test_only_as_much_as_rounding_does_is_not_shown(
    differs: float, rounding: float | None, also: dict[str, Any], expected: str
) -> None:
    def norm(value: float) -> dict[str, Any]:
        return {"steps/0/gradient": {"head.classes": 2.0, "backbone.stages.1": value}}

    reference, other = arm("reference"), arm("other", {**norm(differs), **also})
    for one, own, more in ((reference, 1.0, {}), (other, differs, also)):
        if rounding is not None:
            one.audit["shaken"] = arm("shaken", {**norm(own * rounding), **more}).audit["ranks"]
    assert doubtful(other, reference) == (differs < 1.1 and "steps/1/rounded" not in also)
    found = audit(other, reference)
    assert found.verdict == expected
    told = "norm of the gradient of backbone.stages.1 in step 1 (differs by less than rounding does)"
    assert (told in found.unknown) == (expected == "not shown")


@pytest.mark.parametrize(
    ("precision", "factor", "expected"),
    [
        ("float32", 1.01, "unequal"),
        ("float32", 1.0005, "equal"),
        ("float64", 1.0005, "unequal"),
        ("bfloat16", 1.01, "equal"),
    ],
)
def test_longer_numbers_may_differ_by_less(precision: str, factor: float, expected: str) -> None:
    workload = {"model": "retinanet_r50_fpn", "precision": precision}
    terms = {"steps/1/losses": {"cls": factor, "box": factor / 2, "loss": 1.5 * factor}}
    pair = arm("other", terms, workload=workload), arm("reference", workload=workload)
    assert audit(*pair).verdict == expected
    assert doubtful(*pair) == (precision == "float32" and expected == "unequal")


@pytest.mark.parametrize(("largest", "expected"), [(0.0, "unequal"), (1.0, "equal")])
def test_another_region_by_rounding_is_no_other_work(largest: float, expected: str) -> None:
    rows = {**LAYER, "projection": [0.0, 0.0], "norm": 10.03, "largest": largest}
    pair = arm("other", {"steps/2/layers/head.classes.weight": rows}), arm("reference")
    assert audit(*pair).verdict == expected
