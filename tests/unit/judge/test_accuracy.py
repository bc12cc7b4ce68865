"""COCO numbers: those of the reference, bit for bit, and a defined answer where the reference has none."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.errors import BenchError
from bench.judge.accuracy import METRICS, evaluate
from tests.conftest import SHARED
from tests.helpers.coco import BACKENDS, Json, hit, random_case, reference_stats, rle, small_truth, stats

OFFICIAL = SHARED / "data" / "cocoapi_official100"
PERFECT = dict.fromkeys(METRICS, 1.0)


# -- the numbers are the reference's ---


@pytest.mark.skipif(not OFFICIAL.exists(), reason=f"{OFFICIAL} is not there")
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_published_numbers_of_cocoapi_are_reproduced_by_both_evaluators(
    iou_type: Any,
) -> None:
    published: dict[str, list[float]] = {}
    for line in (OFFICIAL / "val2014_fake_eval_res.txt").read_text().splitlines():
        if line.startswith("type="):
            section = published.setdefault(line.removeprefix("type="), [])
        elif " = " in line:
            section.append(float(line.rpartition("= ")[2]))
    truth = OFFICIAL / "instances_val2014_100.json"
    found = OFFICIAL / f"instances_val2014_fake{iou_type}100_results.json"
    expected = reference_stats(json.loads(truth.read_text()), json.loads(found.read_text()), iou_type)
    fast, slow = (evaluate(truth, found, iou_type, backend=backend) for backend in BACKENDS)
    assert stats(fast) == stats(slow) == expected
    assert fast.classes == slow.classes
    assert [round(value, 3) for value in stats(fast)] == published[iou_type]
    assert len(fast.image_ids) == 100
    assert fast.images_without_objects == 0


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_random_sets_get_the_references_numbers_to_the_last_bit(seed: int, iou_type: Any) -> None:
    truth, results = random_case(seed, iou_type)
    expected = reference_stats(truth, results, iou_type)
    before = copy.deepcopy((truth, results))
    for backend in BACKENDS:
        evaluation = evaluate(truth, results, iou_type, backend=backend)
        assert stats(evaluation) == expected
        assert evaluation.detections == len(results)
    assert (truth, results) == before, "what was passed in is not changed"
    assert 0.01 < expected[0] < 0.99, "a case that tells the evaluators apart"


@pytest.mark.parametrize("backend", BACKENDS)
def test_per_class_numbers_average_to_the_whole(backend: str) -> None:
    truth, results = random_case(11, "bbox")
    whole = evaluate(truth, results, "bbox", backend=backend)
    assert [row.name for row in whole.classes] == ["2", "5", "7", "9"]
    assert whole.classes[2].metrics == dict.fromkeys(METRICS), "a class without objects has no numbers"
    for row in (whole.classes[0], whole.classes[3]):
        alone = {
            **truth,
            "categories": [c for c in truth["categories"] if c["id"] == row.id],
            "annotations": [a for a in truth["annotations"] if a["category_id"] == row.id],
        }
        of_class = [result for result in results if result["category_id"] == row.id]
        evaluation = evaluate(alone, of_class, "bbox", backend=backend)
        assert evaluation.metrics == row.metrics
        assert (evaluation.objects, evaluation.detections) == (row.objects, row.detections)
    for name in ("AP", "AP50", "AR@100"):
        defined = [row.metrics[name] for row in whole.classes if row.metrics[name] is not None]
        assert whole.metrics[name] == pytest.approx(np.mean(defined))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_numbers_worked_out_by_hand(iou_type: Any, backend: str) -> None:
    def score(*results: Json) -> dict[str, float | None]:
        return evaluate(small_truth(), list(results), iou_type, backend=backend).metrics

    undefined = dict.fromkeys(("APs", "APl", "ARs", "ARl"))  # the object is of medium size
    assert score(hit()) == pytest.approx(PERFECT | undefined)
    # A false positive above the hit: precision 1/2 at every recall; below it: no loss.
    miss = {"bbox": [60, 60, 10, 10], "segmentation": rle([60, 60, 10, 10])}
    assert score(hit(), hit(**miss, score=0.9))["AP"] == pytest.approx(0.5)
    assert score(hit(), hit(**miss, score=0.1))["AP"] == pytest.approx(1)
    # 40 by 40 against 40 by 29 inside of it: IoU 0.725, so found at 5 of the 10 thresholds.
    near = {"bbox": [10, 10, 40, 29], "segmentation": rle([10, 10, 40, 29])}
    numbers = score(hit(**near))
    assert (numbers["AP"], numbers["AP50"], numbers["AP75"]) == pytest.approx((0.5, 1, 0))


# -- what the reference leaves to chance ---


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
def test_model_that_finds_nothing_scores_zero(iou_type: Any, backend: str) -> None:
    evaluation = evaluate(small_truth(), [], iou_type, backend=backend)
    assert evaluation.metrics["AP"] == 0.0
    assert evaluation.metrics["AR@100"] == 0.0
    assert evaluation.metrics["APs"] is None, "there is no small object to find"
    assert evaluation.detections == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_data_set_without_any_object_has_no_numbers(backend: str) -> None:
    truth = {**small_truth(), "annotations": []}
    for results in ([], [hit()]):
        evaluation = evaluate(truth, results, "bbox", backend=backend)
        assert evaluation.metrics == dict.fromkeys(METRICS)
        assert evaluation.images_without_objects == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_without_objects_are_evaluated_and_said_to_be(backend: str) -> None:
    """The reference log's code left out 48 such images of val2017, and their false positives, without a word."""
    stray = hit(image_id=2, score=0.9)
    everything = evaluate(small_truth(), [hit(), stray], "bbox", backend=backend)
    assert everything.image_ids == (1, 2)
    assert everything.images_without_objects == 1
    assert everything.metrics["AP"] == pytest.approx(0.5)
    subset = evaluate(small_truth(), [hit(), stray], "bbox", backend=backend, image_ids=[1])
    assert subset.image_ids == (1,)
    assert subset.images_without_objects == 0
    assert (subset.detections, subset.detections_left_out) == (1, 1)
    assert subset.metrics["AP"] == pytest.approx(1)
    with pytest.raises(BenchError, match="image 9 is not in the ground truth"):
        evaluate(small_truth(), [], "bbox", backend=backend, image_ids=[1, 9])


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_inside_a_crowd_cost_nothing(backend: str) -> None:
    truth = small_truth()
    crowd = {"id": 6, "image_id": 2, "category_id": 3, "bbox": [0, 0, 60, 60], "area": 3600, "iscrowd": 1}
    truth["annotations"].append({**crowd, "segmentation": rle([0, 0, 60, 60])})
    inside = [
        hit(image_id=2, score=0.9, bbox=[i, i, 10, 10], segmentation=rle([i, i, 10, 10])) for i in (0, 9, 30)
    ]
    for iou_type in ("bbox", "segm"):
        evaluation = evaluate(truth, [hit(), *inside], iou_type, backend=backend)  # type: ignore[arg-type]
        assert evaluation.metrics["AP"] == pytest.approx(1)
        assert (evaluation.objects, evaluation.crowds, evaluation.detections) == (1, 1, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_detection_given_twice_is_false_positive_second_time(backend: str) -> None:
    truth = small_truth()
    truth["annotations"].append({**truth["annotations"][0], "id": 6, "image_id": 2})
    once = evaluate(truth, [hit(), hit(image_id=2, score=0.1)], "bbox", backend=backend)
    twice = evaluate(truth, [hit(), hit(), hit(image_id=2, score=0.1)], "bbox", backend=backend)
    assert once.metrics["AP"] == pytest.approx(1)
    # Precision 1 up to recall 1/2 (51 of the 101 points), then 2/3.
    assert twice.metrics["AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_object_with_the_id_zero_can_be_found(backend: str) -> None:
    truth = small_truth()
    truth["annotations"][0]["id"] = 0
    assert reference_stats(truth, [hit()], "bbox")[0] < 1.0, "why this needs a test"
    assert evaluate(truth, [hit()], "bbox", backend=backend).metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_size_of_detected_mask_is_not_taken_from_its_box(backend: str) -> None:
    """A large box around a small mask far from any object: a false positive among small ones, not large ones."""
    truth = small_truth()
    truth["annotations"][0].update(bbox=[10, 10, 20, 20], area=400, segmentation=rle([10, 10, 20, 20]))
    found = [
        hit(segmentation=rle([10, 10, 20, 20])),
        hit(segmentation=rle([60, 40, 20, 20]), bbox=[0, 0, 99, 79], score=0.9),
    ]
    assert evaluate(truth, found, "segm", backend=backend).metrics["APs"] == pytest.approx(0.5)
    assert reference_stats(truth, found, "segm")[3] == pytest.approx(1), (
        "what taking the box's area would give"
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_boxes_outside_the_image_are_counted_and_are_false_positives(backend: str) -> None:
    beyond = [hit(bbox=[200, 10, 40, 40], score=0.9), hit(bbox=[-50, 10, 40, 40], score=0.8)]
    evaluation = evaluate(small_truth(), [hit(), *beyond], "bbox", backend=backend)
    assert evaluation.boxes_outside == 2
    assert evaluation.metrics["AP"] == pytest.approx(1 / 3)
    partly = evaluate(small_truth(), [hit(bbox=[-10, 10, 60, 40])], "bbox", backend=backend)
    assert partly.boxes_outside == 0
    assert partly.metrics["AP50"] == pytest.approx(1), "IoU 40/60 as it is; clipped it would be 40/50"
    assert partly.metrics["AP75"] == 0.0


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_form_of_a_mask_is_the_same_mask(backend: str) -> None:
    polygon = [[10, 10, 50, 10, 50, 50, 10, 50]]
    inside = (np.indices((80, 100)) - 10).clip(-1, 40)
    flat = ((inside >= 0) & (inside < 40)).all(axis=0).T.ravel()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
    uncompressed = {"size": [80, 100], "counts": np.diff(np.concatenate([[0], edges])).tolist()}
    for form in (rle([10, 10, 40, 40]), polygon, uncompressed):
        assert evaluate(small_truth(), [hit(segmentation=form)], "segm", backend=backend).metrics[
            "AP"
        ] == pytest.approx(1)


def _no(key: str) -> Callable[[Json], Any]:
    return lambda entry: entry.pop(key)


def _set(**values: Any) -> Callable[[Json], Any]:
    return lambda entry: entry.update(values)


@pytest.mark.parametrize(
    ("iou_type", "change", "words"),
    [
        ("bbox", _set(score=math.nan), "detection 1 .*score nan"),
        ("bbox", _set(score=math.inf), "detection 1 .*score inf"),
        ("bbox", _set(score=-math.inf), "detection 1 .*score -inf"),
        ("bbox", _set(score="0.5"), "detection 1 .*score 0.5"),
        ("bbox", _no("score"), "detection 1 .*score None"),
        ("bbox", _set(image_id=7), r"detection 1 \(image 7\): this image is not in the ground truth"),
        ("bbox", _set(image_id=[1]), "not in the ground truth"),
        ("bbox", _set(category_id=1), "no category 1"),
        ("bbox", _no("category_id"), "no category None"),
        ("bbox", _set(bbox=[1, 2, math.nan, 4]), "no box .*nan"),
        ("bbox", _set(bbox=[1, 2, -3, 4]), "no box .*-3"),
        ("bbox", _set(bbox=[1, 2, 3]), "no box"),
        ("bbox", _no("bbox"), "no box .*None"),
        ("segm", _no("segmentation"), "detection 1 .*no segmentation"),
        (
            "segm",
            _set(segmentation=rle([1, 1, 5, 5], 100, 80)),
            r"mask has size \[100, 80\], its image \[80, 100\]",
        ),
        ("segm", _set(segmentation={"size": [80, 100]}), "size and counts"),
        ("segm", _set(segmentation=[[1, 2]]), "no valid mask"),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_detection_that_means_nothing_is_one_clear_error(
    iou_type: Any, change: Callable[[Json], Any], words: str, backend: str
) -> None:
    bad = hit()
    change(bad)
    with pytest.raises(BenchError, match=words):
        evaluate(small_truth(), [hit(), bad], iou_type, backend=backend)


@pytest.mark.parametrize(
    ("iou_type", "change", "words"),
    [
        ("bbox", _no("area"), "annotation 5 has no area"),
        ("bbox", _set(area=math.nan), "annotation 5 has no area: nan"),
        ("bbox", _set(image_id=3), "annotation 5 is of unknown image 3"),
        ("bbox", _set(category_id=4), "annotation 5 is of unknown category 4"),
        ("bbox", _set(bbox=[1, 2, 3, math.inf]), "annotation 5 has no box"),
        ("segm", _no("segmentation"), "annotation 5 .*no segmentation"),
        ("segm", _set(segmentation=rle([1, 1, 5, 5], 90, 90)), r"annotation 5 .*: mask has size \[90, 90\]"),
    ],
)
def test_ground_truth_that_means_nothing_is_one_clear_error(
    iou_type: Any, change: Callable[[Json], Any], words: str
) -> None:
    truth = small_truth()
    change(truth["annotations"][0])
    with pytest.raises(BenchError, match=words):
        evaluate(truth, [hit()], iou_type)


def test_id_that_occurs_twice_in_ground_truth_is_error() -> None:
    for table in ("images", "annotations", "categories"):
        truth = small_truth()
        truth[table].append(dict(truth[table][0]))
        with pytest.raises(BenchError, match=f"{table} id {truth[table][0]['id']} occurs twice"):
            evaluate(truth, [hit()], "bbox")


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    truth = tmp_path / "truth.json"
    truth.write_text(json.dumps(small_truth()))
    results = tmp_path / "results.json"
    for content, words in (("[{", "not valid JSON"), ("{}", "not COCO results"), ("[1]", "not COCO results")):
        results.write_text(content)
        with pytest.raises(BenchError, match=f"results.json: {words}"):
            evaluate(truth, results, "bbox")
    with pytest.raises(BenchError, match=r"absent.json: cannot be read"):
        evaluate(truth, tmp_path / "absent.json", "bbox")
    with pytest.raises(BenchError, match=r"results.json: not a COCO instances file"):
        evaluate(results, [], "bbox")
    with pytest.raises(BenchError, match=r"unknown evaluator 'hotcocoa'\n.*did you mean hotcoco"):
        evaluate(truth, [], "bbox", backend="hotcocoa")


def test_an_evaluation_can_be_stored_as_json_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    for backend in BACKENDS:
        evaluation = evaluate(small_truth(), [hit()], "bbox", backend=backend)
        stored = json.loads(json.dumps(evaluation.as_json()))
        assert stored["metrics"] == evaluation.metrics
        assert stored["image_ids"] == [1, 2]
        assert [row["name"] for row in stored["classes"]] == ["dog", "cat"]
    assert capfd.readouterr() == ("", "")
