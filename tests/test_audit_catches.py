"""The audit against a real codebase that was tampered with: what the worker reports has to give each trick away."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bench.judge.audit import audit
from bench.record.models import ArmRecord
from bench.worker.api import Batch

pytest.importorskip("torchvision")

from tests.test_torchvision_adapter import make_batch, prepared

MODEL = "faster_rcnn_r50_fpn"
BATCH = make_batch(96, 128)


def described(adapter: Any, batch: Batch = BATCH) -> ArmRecord:
    data = adapter.load(adapter.convert(batch))
    return ArmRecord(
        id="arm", codebase="torchvision", label="torchvision", cell="all", workload={"model": MODEL}, status="ok",
        description=dataclasses.asdict(adapter.describe(data)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def honest() -> ArmRecord:
    return described(prepared(MODEL))


def found(arm: ArmRecord, baseline: ArmRecord) -> set[str]:
    return {difference.fact for difference in audit(arm, baseline).differences}


def other_image_size() -> ArmRecord:
    return described(prepared(MODEL), make_batch(128, 128))


def half_the_batch() -> ArmRecord:
    half = Batch(
        BATCH.images[:1], BATCH.image_sizes[:1], BATCH.original_sizes[:1], BATCH.image_ids[:1],
        BATCH.boxes[:1], BATCH.labels[:1], BATCH.masks[:1],
    )  # fmt: skip
    return described(prepared(MODEL), half)


def unfrozen_batch_norm() -> ArmRecord:
    return described(prepared(MODEL, frozen_bn=False))


def fewer_proposals() -> ArmRecord:
    adapter = prepared(MODEL)
    adapter.model.rpn._post_nms_top_n = {"training": 300, "testing": 300}
    return described(adapter)


def other_score_threshold() -> ArmRecord:
    return described(prepared(MODEL, score_threshold=0.5))


def fewer_pyramid_levels() -> ArmRecord:
    """The top of the pyramid and its anchors are gone: the RPN looks at four levels instead of five."""
    adapter = prepared(MODEL)
    adapter.model.backbone.fpn.extra_blocks = None
    generator = adapter.model.rpn.anchor_generator
    generator.sizes, generator.aspect_ratios = generator.sizes[:4], generator.aspect_ratios[:4]
    generator.cell_anchors = generator.cell_anchors[:4]
    for box in ("featmap_names",):  # and one level less for the regions
        setattr(adapter.model.roi_heads.box_roi_pool, box, ["0", "1", "2"])
    adapter.model.rpn._pre_nms_top_n = {"training": 500, "testing": 500}
    return described(adapter)


def wrong_normalisation() -> ArmRecord:
    """As if the model normalised once more what the harness has normalised."""
    adapter = prepared(MODEL)
    body = adapter.model.backbone.body
    plain = body.forward
    body.forward = lambda images: plain((images - 0.45) / 0.225)
    return described(adapter)


def half_precision() -> ArmRecord:
    return described(prepared(MODEL, precision="bfloat16"))


def objects_left_out() -> ArmRecord:
    fewer = dataclasses.replace(
        BATCH,
        boxes=(BATCH.boxes[0][:1], BATCH.boxes[1]),
        labels=(BATCH.labels[0][:1], BATCH.labels[1]),
        masks=(BATCH.masks[0][:1], BATCH.masks[1]),
    )
    return described(prepared(MODEL), fewer)


@pytest.mark.parametrize(
    ("trick", "fact"),
    [
        (other_image_size, "input shape"),
        (half_the_batch, "input shape"),
        (unfrozen_batch_norm, "trainable parameters"),
        (fewer_proposals, "proposals"),
        (other_score_threshold, "score threshold"),
        (fewer_pyramid_levels, "proposal candidates"),
        (wrong_normalisation, "input mean"),
        (half_precision, "precision"),
        (objects_left_out, "ground-truth objects"),
    ],
)
def test_a_codebase_that_does_less_or_other_work_is_found_out(
    honest: ArmRecord, trick: Callable[[], ArmRecord], fact: str
) -> None:
    assert fact in found(trick(), honest)


def test_an_honest_codebase_passes(honest: ArmRecord) -> None:
    assert not found(described(prepared(MODEL)), honest)
    assert np.isfinite(honest.description["input_mean"])
