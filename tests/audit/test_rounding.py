"""Constants that tensors show, as far as rounding lets them."""

from __future__ import annotations

from typing import Any

import pytest

from bench.judge.audit import audit
from bench.judge.observations import summary
from tests.audit.test_judge import STEP, arm


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
