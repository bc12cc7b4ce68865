"""Every arm that secretly does other work is unequal; the honest one beside it is equal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from bench.record.models import ArmRecord  # noqa: E402
from tests.audit import in_inference, in_training  # noqa: E402, F401  (they fill the tables)
from tests.audit.sabotages import INFERENCE, TRAINING, Patch  # noqa: E402
from tests.audit.small import MODELS, adapter, record, verdict  # noqa: E402

CASES = [(f"{task}-{name}", task, *case) for task, table in (("train", TRAINING), ("infer", INFERENCE))
         for name, case in table.items()]  # fmt: skip


@pytest.fixture(autouse=True)
def _settings() -> Iterator[None]:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)


@cache
def honest(model: str, task: str) -> ArmRecord:
    return record(adapter(model, task), "honest")


@pytest.mark.parametrize("task", ["train", "infer"])
@pytest.mark.parametrize("model", MODELS)
def test_honest_arm_is_equal(model: str, task: str) -> None:
    assert verdict(record(adapter(model, task), "again"), honest(model, task)).verdict == "equal"


@pytest.mark.parametrize(
    ("task", "model", "sabotage"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_sabotage_is_caught(task: str, model: str, sabotage: Patch) -> None:
    made = adapter(model, task)
    sabotage(made)
    found = verdict(record(made, "other"), honest(model, task))
    assert found.verdict == "unequal"


def test_suite_covers_all_models_and_both_tasks() -> None:
    assert len(CASES) >= 60
    assert {(model, task) for _, task, model, _ in CASES} == {
        (m, t) for m in MODELS for t in ("train", "infer")
    }
