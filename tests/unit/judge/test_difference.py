"""The difference in AP of two sets of detections, and its interval."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from bench.judge.accuracy import evaluate
from bench.judge.difference import (
    Difference,
    average_precision,
    match,
    paired_difference,
)
from benchmarks.images import coverage, found_objects
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


def test_a_difference_is_nothing_from_itself_turns_its_sign_and_lies_in_its_interval() -> None:
    truth, results, other = case_of_one_truth(2)
    a, b = match(truth, results, "bbox"), match(truth, other, "bbox")
    assert paired_difference(a, a, replicates=20) == Difference(0.0, 0.0, 0.0, len(truth["images"]))
    there, back = paired_difference(a, b, replicates=200), paired_difference(b, a, replicates=200)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert there.low <= there.value <= there.high
    assert there == paired_difference(a, b, replicates=200)


def test_the_interval_of_a_difference_holds_it_as_often_as_it_says() -> None:
    """Detectors that find each object with probability 0.7 and 0.5, on sets of 60 images."""
    image = {"file_name": "", "width": 100, "height": 80}
    truth = {
        "images": [{"id": i, **image} for i in range(1, 61)],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 2 * i + k, "image_id": i, "category_id": 3, "bbox": [50 * k, 10, 40, 40], "area": 1600}
            for i in range(1, 61)
            for k in (0, 1)
        ],
    }
    rng = np.random.default_rng(5)
    inside, repetitions = 0, 40
    for _ in range(repetitions):
        sides = [
            [
                {"image_id": row["image_id"], "category_id": 3, "bbox": row["bbox"], "score": 0.5}
                for row in truth["annotations"]
                if rng.random() < chance
            ]
            for chance in (0.7, 0.5)
        ]
        found = paired_difference(*(match(truth, side, "bbox") for side in sides), replicates=200)
        inside += found.low <= 0.2 <= found.high  # no false positives: AP is the share that is found
    assert inside >= 0.85 * repetitions  # of 95 %, less three standard deviations


def test_a_difference_on_other_images_is_refused() -> None:
    truth, results, other = case_of_one_truth(0)
    some = [image["id"] for image in truth["images"]][:2]
    with pytest.raises(ValueError, match="different images"):
        paired_difference(match(truth, results, "bbox"), match(truth, other, "bbox", image_ids=some))


def test_no_detections_at_all_have_a_difference_too() -> None:
    truth, results, _ = case_of_one_truth(0)
    nothing = match(truth, [], "bbox")
    assert average_precision(nothing) == 0
    assert paired_difference(match(truth, results, "bbox"), nothing, replicates=20).value > 0


@pytest.mark.parametrize("images", [4, 8])
def test_few_images_are_covered_and_warned_of(images: int) -> None:
    """At full size in tests/statistical."""
    before, after = coverage(images, runs=40, replicates=60)
    assert after >= max(0.85, before)
    a, b = found_objects(np.random.default_rng(0), images)
    assert "say little" in str(paired_difference(a, b, replicates=20).warning)


def test_one_image_gives_no_interval() -> None:
    a, b = found_objects(np.random.default_rng(0), 1)
    assert paired_difference(a, b, replicates=20).high == np.inf
