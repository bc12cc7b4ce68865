"""Ground truth and detections of strangers: read as pycocotools reads them, or one clear error before C code runs."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import BenchError
from bench.inputs.coco import object_mask
from bench.inputs.masks import check_run_lengths
from bench.judge.accuracy import KEYPOINT_METRICS, evaluate
from tests.conftest import SHARED
from tests.helpers.coco import BACKENDS, Json, hit, random_case, reference_stats, rle, small_truth, stats

CASES = SHARED / "cases" / "eval"
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")


def files(name: str) -> tuple[Path, Path]:
    return CASES / f"{name}_gt.json", CASES / f"{name}_dt.json"


# -- Ids and sizes ---------------------------------------------------------------------------------------------


@needs_cases
@pytest.mark.parametrize("name", ["01", "oi", "03", "52"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_real_files_get_pycocotools_ap(name: str, backend: str) -> None:
    evaluation = evaluate(*files(name), "bbox", backend=backend)
    assert evaluation.metrics["AP"] == pytest.approx(0.95)
    assert [one.metrics["AP"] for one in evaluation.classes] == pytest.approx([1, 0.9])


@needs_cases
@pytest.mark.parametrize("backend", BACKENDS)
def test_sizes_of_masks_may_be_floats(backend: str) -> None:
    assert evaluate(*files("m46"), "segm", backend=backend).metrics["AP"] == pytest.approx(1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("first", [2**53, 2**63, 10**30])
def test_large_ids_stay_apart(first: int, backend: str) -> None:
    truth, results = random_case(3, "bbox")
    expected = stats(evaluate(truth, results, "bbox", backend=backend))
    for rows, keys in (
        (truth["images"], ("id",)),
        (truth["annotations"], ("image_id",)),
        (results, ("image_id",)),
    ):
        for row in rows:
            row.update({key: first + row[key] for key in keys})
    evaluation = evaluate(truth, results, "bbox", backend=backend)
    assert stats(evaluation) == expected
    assert evaluation.image_ids[0] == first + 1


def test_floats_are_ids_while_they_are_exact() -> None:
    truth = small_truth()
    truth["images"][0]["id"] = truth["annotations"][0]["image_id"] = 1.0
    assert evaluate(truth, [hit(image_id=1.0, category_id=3.0)], "bbox").metrics["AP"] == pytest.approx(1)
    with pytest.raises(BenchError, match=r"image 1\.5\): this image is not in"):
        evaluate(truth, [hit(image_id=1.5)], "bbox")
    truth["images"].append({"id": 2**60})
    with pytest.raises(BenchError, match="not in the ground truth"):
        evaluate(truth, [hit(image_id=float(2**60))], "bbox")
    with pytest.raises(BenchError, match="not in the ground truth"):
        evaluate(truth, [hit(image_id=True)], "bbox")


@pytest.mark.parametrize("absent", ["file_name", "width height", "name"])
def test_boxes_need_no_names_and_no_sizes(absent: str) -> None:
    truth = small_truth()
    for row in [*truth["images"], *truth["categories"]]:
        for key in absent.split():
            row.pop(key, None)
    evaluation = evaluate(truth, [hit()], "bbox")
    assert evaluation.metrics["AP"] == pytest.approx(1)
    assert evaluation.boxes_outside == 0
    if "width" in absent:
        with pytest.raises(BenchError, match="no height and width"):
            evaluate(truth, [hit()], "segm")


# -- What is there ---------------------------------------------------------------------------------------------


def run_eval(tmp_path: Path, truth: Any, results: Any, *options: str) -> Any:
    paths = [tmp_path / "truth.json", tmp_path / "results.json"]
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return CliRunner().invoke(app, ["eval", *map(str, paths), *options])


def test_files_of_boxes_alone_are_evaluated(tmp_path: Path) -> None:
    boxes = [{key: value for key, value in hit().items() if key != "segmentation"}]
    shown = run_eval(tmp_path, small_truth(), boxes, "--json")
    assert shown.exit_code == 0
    (document,) = json.loads(shown.stdout)
    assert (document["iou_type"], document["metrics"]["AP"]) == ("bbox", pytest.approx(1))
    assert "not evaluated: segm: no detection has a mask" in shown.stderr


def test_what_is_asked_for_by_name_must_be_there(tmp_path: Path) -> None:
    boxes = [{key: value for key, value in hit().items() if key != "segmentation"}]
    shown = run_eval(tmp_path, small_truth(), boxes, "--iou-type", "segm")
    assert isinstance(shown.exception, BenchError)
    assert "detection 0 (image 1): no segmentation" in str(shown.exception)


def test_classes_and_errors_are_shown(tmp_path: Path) -> None:
    truth = small_truth()
    truth["categories"][0]["name"] = "[bold]d\x1bog"
    shown = run_eval(tmp_path, truth, [hit(), hit(image_id=2, score=0.9)], "--json")
    document = json.loads(shown.stdout)[0]
    assert document["errors"]["count"]["Bkg"] == 1
    assert document["errors"]["cost"]["Bkg"] == pytest.approx(0.5)
    shown = run_eval(tmp_path, truth, [hit(), hit(image_id=2, score=0.9)])
    assert "[bold]d\\x1bog" in shown.stdout
    assert "background" in shown.stdout


def test_lvis_is_refused() -> None:
    truth = small_truth()
    truth["images"][0]["neg_category_ids"] = [3]
    with pytest.raises(BenchError, match="this is LVIS"):
        evaluate(truth, [hit()], "bbox")


# -- Errors of TIDE --------------------------------------------------------------------------------------------


def test_errors_are_those_of_tidecv() -> None:
    """tidecv 1.0.1 gave these numbers for this case, which has no ties and no crowds."""
    truth, results = random_case(0, "bbox")
    truth["annotations"] = [row for row in truth["annotations"] if not row["iscrowd"]]
    draw = random.Random(0)
    results = [{**row, "score": draw.random()} for row in results]
    errors = evaluate(truth, results, "bbox", errors=True).errors
    assert errors is not None
    assert errors.ap50 == pytest.approx(0.4708565197912889)
    assert errors.count == {"Cls": 0, "Loc": 5, "Both": 1, "Dupe": 46, "Bkg": 41, "Miss": 12}
    costs = {"Cls": 0, "Loc": 0.842, "Both": 0.019, "Dupe": 11.897, "Bkg": 11.241, "Miss": 13.371}
    assert {name: round(100 * cost, 3) for name, cost in errors.cost.items()} == costs


# -- Keypoints -------------------------------------------------------------------------------------------------


def people(seed: int) -> tuple[Json, list[Json]]:
    rng = np.random.default_rng(seed)
    truth: Json = {"images": [], "categories": [{"id": 1, "name": "person"}], "annotations": []}
    results = []
    for image in range(1, 9):
        truth["images"].append({"id": image, "width": 320, "height": 240})
        for _ in range(rng.integers(1, 4)):
            x, y, w, h = rng.uniform(0, 100), rng.uniform(0, 100), rng.uniform(40, 200), rng.uniform(40, 120)
            points = np.column_stack(
                [rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17), rng.integers(0, 3, 17)]
            )
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h * 0.6,
                    "iscrowd": 0,
                    "keypoints": points.ravel().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
            near = points + np.column_stack([rng.normal(0, 4, (17, 2)), np.zeros(17)])
            score = float(rng.random())
            results.append(
                {"image_id": image, "category_id": 1, "keypoints": near.ravel().tolist(), "score": score}
            )
    return truth, results


@pytest.mark.parametrize("backend", BACKENDS)
def test_keypoints_get_the_references_numbers(backend: str) -> None:
    truth, results = people(4)
    evaluation = evaluate(truth, results, "keypoints", backend=backend)
    assert list(evaluation.metrics) == list(KEYPOINT_METRICS)
    assert stats(evaluation) == pytest.approx(reference_stats(truth, results, "keypoints"))
    assert 0.01 < stats(evaluation)[0] < 0.99


def test_other_keypoints_than_coco_s_are_refused() -> None:
    truth, results = people(1)
    results[2]["keypoints"] = results[2]["keypoints"][:-3]
    with pytest.raises(BenchError, match=r"detection 2 \(image \d\): not COCO's 17 keypoints"):
        evaluate(truth, results, "keypoints")


# -- Masks -----------------------------------------------------------------------------------------------------


def far(value: float) -> list[list[float]]:
    return [[0, 0, value, 0, value, value]]


GOOD = rle([10, 10, 40, 40])["counts"]


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ({"size": [80, 100], "counts": GOOD[:-1]}, "run lengths"),
        ({"size": [80, 100], "counts": GOOD + "1"}, "add up"),
        ({"size": [80, 100], "counts": ""}, "missing, or cut"),
        ({"size": [80, 100], "counts": "ooooooooooooooooooooo"}, "missing, or cut"),
        ({"size": [80, 100], "counts": "oooooooooooooooooooo1"}, "too large"),
        ({"size": [80, 100], "counts": "\x01\x02"}, "none of theirs|cut"),
        ({"size": [80, 100], "counts": "é"}, "missing, or cut"),
        ({"size": [80, 100], "counts": "O" + GOOD}, "negative|add up"),
        ({"size": [80.5, 100], "counts": GOOD}, "mask has size"),
        ({"size": 80, "counts": GOOD}, "mask has size"),
        ({"size": [100, 80], "counts": GOOD}, "mask has size"),
        ({"size": [80, 100], "counts": [8001]}, "add up to 8001 of 8000"),
        ({"size": [80, 100], "counts": [-1, 8001]}, "0 or more"),
        ({"size": [80, 100], "counts": [2.5, 7997.5]}, "0 or more"),
        ({"size": [80, 100], "counts": 3}, "text or a list"),
        (far(1e8), "further than 1000"),
        (far(3e7), "further than 1000"),
        (far(1e308), "further than 1000"),
        (far(float("nan")), "further than 1000"),
        ([[1, 2, 3, "4", 5, 6]], "no number"),
        ([[1, 2, 3, 4, 5, 6, 7]], "three corners"),
        ([[10, 10, 40, 40]], "three corners"),
        ([5], "three corners"),
        ("mask", "no segmentation"),
    ],
)
def test_masks_that_break_evaluators_are_one_clear_error(mask: Any, words: str) -> None:
    with pytest.raises(BenchError, match=rf"detections: detection 1 \(image 1\): .*({words})"):
        evaluate(small_truth(), [hit(), hit(segmentation=mask)], "segm")
    truth = small_truth()
    truth["annotations"][0]["segmentation"] = mask
    with pytest.raises(BenchError, match=rf"ground truth: annotation 5 \(image 1\): .*({words})"):
        evaluate(truth, [hit()], "segm")


def test_run_lengths_of_pycocotools_are_sound() -> None:
    rng = np.random.default_rng(1)
    counts, pixels = [], []
    for density in (0, 0.001, 0.1, 0.5, 0.99, 1):
        for _ in range(30):
            height, width = rng.integers(1, 200, 2)
            mask = (rng.random((height, width)) < density).astype(np.uint8)
            counts.append(coco_mask.encode(np.asfortranarray(mask))["counts"].decode())
            pixels.append(int(height * width))
    assert check_run_lengths(counts, pixels) is None
    assert check_run_lengths([], []) is None
    for place in (0, 70, 179):
        wrong = [*pixels]
        wrong[place] += 1
        assert check_run_lengths(counts, wrong) == (
            place, f"run lengths add up to {pixels[place]} of {wrong[place]} pixels"
        )  # fmt: skip


@pytest.mark.parametrize("box", [[0, 0, 1e7, 1e7], [-1e7, 5, 2e7, 3], [50, 50, 1e6, 1]])
def test_mask_of_far_box_is_that_of_its_image(box: list[float]) -> None:
    mask = object_mask({"bbox": box}, {"height": 80, "width": 100})
    assert mask.shape == (80, 100)
    with pytest.raises(ValueError, match="run lengths"):
        object_mask(
            {"bbox": box, "segmentation": {"size": [80, 100], "counts": "1"}}, {"height": 80, "width": 100}
        )


@pytest.mark.parametrize("box", [[0, 0, 1e308, 1e308], [1e300, 0, 1, 1], [0, 0, 1e8, 1]])
def test_boxes_larger_than_any_image_are_refused(box: list[float]) -> None:
    with pytest.raises(BenchError, match=r"detection 0 \(image 1\): no box"):
        evaluate(small_truth(), [hit(bbox=box)], "bbox")


# -- Anything --------------------------------------------------------------------------------------------------

JUNK: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, 1e308, float("nan"), float("inf"), "", "x", "\ud800", [], [[]], [1], {}, {"a": 1},
    [[1e9] * 6], {"size": [80, 100], "counts": "0"}, {"size": [1e9, 1e9], "counts": [1]}, {"size": None, "counts": []},
]  # fmt: skip


def mutated(rng: random.Random, content: Any) -> Any:
    """The content with one value anywhere replaced, taken out or doubled."""
    content = copy.deepcopy(content)
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return content
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        kind = rng.random()
        if kind < 0.7:
            place[key] = rng.choice(JUNK)
        elif kind < 0.85 or isinstance(place, dict):
            del place[key]
        else:
            place.append(place[key])
        return content


@pytest.mark.parametrize("seed", range(4))
def test_any_files_are_evaluated_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    crowd = {"id": 6, "image_id": 2, "category_id": 8, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 1}
    truth = small_truth()
    truth["annotations"].append({**crowd, "segmentation": {"size": [80, 100], "counts": [0, 9, 7991]}})
    results = [hit(), hit(image_id=2, category_id=8), hit(segmentation=[[1, 1, 30, 1, 30, 30]])]
    for _ in range(150):
        bad_truth = mutated(rng, truth) if rng.random() < 0.5 else truth
        bad_results = results if bad_truth is not truth else mutated(rng, results)
        for iou_type in ("bbox", "segm"):
            for backend in BACKENDS:
                with contextlib.suppress(BenchError):
                    evaluate(bad_truth, bad_results, iou_type, backend=backend)  # type: ignore[arg-type]
