"""Arms that are watched a second time, with images moved by two units in their last place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from torch import nn  # noqa: E402

from bench.judge.audit import doubtful  # noqa: E402
from bench.judge.observations import summary  # noqa: E402
from bench.record.models import ArmRecord  # noqa: E402
from bench.worker.audit import audit  # noqa: E402
from tests.audit import in_details, in_training, sabotages  # noqa: E402
from tests.audit.small import adapter, batches, record, record_of, verdict  # noqa: E402

Patch = Callable[[Any], None]
pytestmark = pytest.mark.usefixtures("one_thread")


def a_term_weighs_more(adapter: Any) -> None:
    plain = adapter.compute_losses

    def losses(data: Any) -> Any:
        found = plain(data)
        name = next(iter(found))
        return {**found, name: 1.03 * found[name]}

    in_training.set_losses(adapter, losses)


@pytest.mark.parametrize("sabotage", [a_term_weighs_more, in_details.other_first_weights])
def test_small_difference_is_not_taken_for_rounding(sabotage: Patch) -> None:
    def watched(change: Patch, label: str) -> ArmRecord:
        made = [adapter("ssd", "train") for _ in range(2)]
        for one in made:
            change(one)
        found = record(made[0], label)
        found.audit["shaken"] = [summary(audit(made[1], batches(), shake=True), None)]
        return found

    other, plain = watched(sabotage, "other"), watched(sabotages.nothing, "honest")
    assert doubtful(other, plain)
    assert verdict(other, plain).verdict == "unequal"


def test_biases_that_begin_with_zeros_are_equal() -> None:
    arms = [adapter("ssd", "train") for _ in range(2)]
    for one in arms:
        for name, parameter in one.model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
    plain = record(arms[0], "honest")
    rounded = record_of(arms[1].workload, [audit(arms[1], batches(), shake=True)], "rounded")
    assert verdict(rounded, plain).verdict == "equal"
