"""The difference in AP of two sets of detections, and its interval."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from bench.judge.accuracy import evaluate
from bench.judge.difference import Difference, average_precision, interval, match, resampled
from benchmarks.images import coverage, difference, found_objects
from tests.helpers.coco import BACKENDS, Json, random_case


def case_of_one_truth(seed: int) -> tuple[Json, list[Json], list[Json]]:
    """A ground truth and two sets of detections for it."""
    truth, results = random_case(seed, "bbox")
    rng = np.random.default_rng(seed)
    other = [{**row, "score": float(rng.random())} for row in results if rng.random() < 0.7]
    return truth, results, other


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_resamples_the_same_ap_that_is_reported(seed: int, iou_type: Any, backend: str) -> None:
    truth, results = random_case(seed, iou_type)
    expected = evaluate(truth, results, iou_type, backend=backend).metrics["AP"]
    found = average_precision(match(truth, results, iou_type, backend=backend))
    assert found == pytest.approx(expected, abs=1e-12)


def test_an_image_that_is_drawn_twice_counts_as_two_images() -> None:
    truth, results = random_case(1, "bbox")
    first, *others = sorted(image["id"] for image in truth["images"])
    copied = copy.deepcopy(truth)
    copied["images"].append({**next(i for i in truth["images"] if i["id"] == first), "id": 10**6})
    for row in [row for row in truth["annotations"] if row["image_id"] == first]:
        copied["annotations"].append({**row, "image_id": 10**6, "id": 10**6 + len(copied["annotations"])})
    scores = np.random.default_rng(0).permutation(len(results))  # no ties: their order is not defined
    results = [{**row, "score": 1 / (1 + int(score))} for row, score in zip(results, scores, strict=True)]
    twice = [*results, *({**row, "image_id": 10**6} for row in results if row["image_id"] == first)]
    weights = np.array([2, *(1 for _ in others)])
    found = average_precision(match(truth, results, "bbox"), weights)
    # Pycocotools takes the copies one after the other, which can only change precisions between two of them.
    assert found == pytest.approx(evaluate(copied, twice, "bbox").metrics["AP"], abs=0.02)


def test_difference_turns_its_sign_and_lies_in_its_interval() -> None:
    truth, results, other = case_of_one_truth(2)
    a, b = match(truth, results, "bbox"), match(truth, other, "bbox")
    assert difference(a, a, 20) == Difference(0.0, 0.0, 0.0, len(truth["images"]))
    there, back = difference(a, b, 200), difference(b, a, 200)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low <= there.value <= there.high
    assert there == difference(a, b, 200)


def test_a_difference_on_other_images_is_refused() -> None:
    truth, results, other = case_of_one_truth(0)
    some = [image["id"] for image in truth["images"]][:2]
    with pytest.raises(ValueError, match="different images"):
        difference(match(truth, results, "bbox"), match(truth, other, "bbox", image_ids=some), 20)


def test_no_detections_at_all_have_a_difference_too() -> None:
    truth, results, _ = case_of_one_truth(0)
    nothing = match(truth, [], "bbox")
    assert average_precision(nothing) == 0
    assert difference(match(truth, results, "bbox"), nothing, 20).value > 0


@pytest.mark.parametrize("images", [4, 8])
def test_few_images_are_covered_and_warned_of(images: int) -> None:
    """At full size in tests/statistical."""
    before, after = coverage(images, runs=40, replicates=60)
    assert after >= max(0.85, before)
    a, b = found_objects(np.random.default_rng(0), images)
    assert "say little" in str(difference(a, b, 20).warning)


def test_one_image_gives_no_interval() -> None:
    a, b = found_objects(np.random.default_rng(0), 1)
    assert difference(a, b, 20).high == np.inf


def test_an_ap_has_an_interval_of_its_own() -> None:
    found, _ = found_objects(np.random.default_rng(0), 30)
    own = interval(resampled(found, replicates=200))
    assert own.value == average_precision(found)
    assert own.low < own.value < own.high
