"""Every arm that secretly does other work is unequal; the honest one beside it is equal."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from functools import cache

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")

from bench.record.models import ArmRecord  # noqa: E402
from tests.audit import (  # noqa: E402, F401  (they fill the tables)
    in_corners,
    in_dense,
    in_details,
    in_inference,
    in_masks,
    in_training,
)
from tests.audit.sabotages import INFERENCE, TRAINING, Patch  # noqa: E402
from tests.audit.small import MODELS, adapter, record, verdict, with_closing  # noqa: E402

#: Beside most of SSD, which take a fifth of a second: one of a kind for `make test`.
QUICK = {
    "train-ssd-learning_rate_of_a_bias_doubled",
    "train-ssd-average_without_a_bias",
    "train-ssd-second_image_in_a_thread",
    "infer-ssd-scores_a_little_lower",
    "train-retinanet-statistics_of_the_batch",
    "train-retinanet-no_average",
    "train-faster_rcnn-half_of_the_regions",
    "train-faster_rcnn-half_of_the_anchors",
    "train-solov2-masks_of_one_image",
    "train-solov2-backward_only_once",
    "infer-retinanet-other_overlap_in_suppression",
    "infer-faster_rcnn-fewer_proposals",
    "infer-solov2-larger_masks",
}
CASES = [(f"{task}-{name}", task, *case) for task, table in (("train", TRAINING), ("infer", INFERENCE))
         for name, case in table.items()]  # fmt: skip
PARAMETERS = [
    pytest.param(
        task, model, sabotage, id=name,
        marks=[] if name in QUICK or (model == "ssd" and sabotage.__module__ != in_dense.__name__)
        else [pytest.mark.nightly],
    )
    for name, task, model, sabotage in CASES
]  # fmt: skip


@pytest.fixture(autouse=True)
def _settings(one_thread: None) -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.mkldnn.conv.fp32_precision = "none"
    torch.backends.mkldnn.enabled = True
    torch.set_flush_denormal(False)
    torch.autograd.set_detect_anomaly(False)
    gc.collect()  # patched adapters refer to themselves


@cache
def honest(model: str, task: str) -> ArmRecord:
    return record(adapter(model, task), "honest")


@pytest.mark.parametrize("task", ["train", "infer"])
@pytest.mark.parametrize(
    "model",
    [
        pytest.param(one, marks=[pytest.mark.nightly] if one in ("mask_rcnn", "fcos") else [])
        for one in MODELS
    ],
)
def test_honest_arm_is_equal(model: str, task: str) -> None:
    assert verdict(record(adapter(model, task), "again"), honest(model, task)).verdict == "equal"


@pytest.mark.parametrize(("task", "model", "sabotage"), PARAMETERS)
def test_sabotage_is_caught(task: str, model: str, sabotage: Patch) -> None:
    made = adapter(model, task)
    sabotage(made)
    found = verdict(record(made, "other"), honest(model, task))
    assert found.verdict == "unequal"


#: What sets in after the audited steps, and shows in the step that is watched after the timed ones.
LATER = [
    ("train-ssd-bfloat16", True),
    ("train-ssd-one_thread_more", True),
    ("train-ssd-first_image_twice", True),
    ("train-ssd-gradients_rounded", True),
    ("train-ssd-no_backward", True),
    ("train-ssd-values_dropped_by_a_function", True),
    ("train-ssd-gradients_summed_over_two_halves", True),
    ("train-retinanet-statistics_of_the_batch", False),
    ("train-faster_rcnn-half_of_the_regions", False),
    ("infer-ssd-bfloat16", True),
    ("infer-ssd-one_image_at_a_time", True),
    ("infer-ssd-no_postprocessing", True),
    ("infer-ssd-fewer_candidates", True),
    ("infer-ssd-other_overlap_in_suppression", True),
    ("infer-ssd-random_heads", True),
    ("infer-ssd-detections_of_one_image", True),
    ("infer-solov2-larger_masks", False),
    ("infer-faster_rcnn-half_of_the_detections", False),
]  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if quick else [pytest.mark.nightly]) for name, quick in LATER]
)
def test_sabotage_that_sets_in_later_is_caught(name: str) -> None:
    task, model, sabotage = next(case[1:] for case in CASES if case[0] == name)
    made, secret = adapter(model, task), adapter(model, task)
    baseline = with_closing(honest(model, task), adapter(model, task))
    assert verdict(with_closing(honest(model, task), made), baseline).verdict == "equal"
    found = verdict(with_closing(honest(model, task), secret, sabotage), baseline)
    assert found.verdict == "unequal"
    assert all("after the timed blocks" in one.fact for one in found.differences)


def test_suite_covers_all_models_and_both_tasks() -> None:
    assert len(CASES) >= 300
    assert {(model, task) for _, task, model, _ in CASES} == {
        (m, t) for m in MODELS for t in ("train", "infer")
    }
    assert {name for name, *_ in CASES} >= QUICK
