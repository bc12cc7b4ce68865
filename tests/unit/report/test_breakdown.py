"""Where AP is lost, as reports show it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.judge.accuracy import METRICS
from bench.judge.difference import Difference
from bench.report.accuracy_errors import SHOWN_CLASSES, break_down, breakdown_blocks
from bench.report.accuracy_sections import accuracy_blocks
from bench.report.accuracy_values import ArmAccuracy, CellAccuracy, Evaluated
from bench.report.build import run_report
from bench.report.document import Table
from bench.report.render import markdown
from tests.helpers.coco import hit, small_truth
from tests.helpers.report_runs import small


def written(folder: Path, truth: object, results: object) -> tuple[Path, Path]:
    paths = folder / "truth.json", folder / "results.json"
    for path, content in zip(paths, (truth, results), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_classes_and_errors_of_arms_stand_side_by_side(tmp_path: Path) -> None:
    good = break_down(*written(tmp_path, small_truth(), [hit()]), ["bbox", "segm"])
    stray = break_down(*written(tmp_path, small_truth(), [hit(), hit(image_id=2, score=0.9)]), ["bbox"])
    blocks = breakdown_blocks([("good", good), ("stray", stray)])
    tables = [block for block in blocks if isinstance(block, Table)]
    assert [table.caption.split(",")[0] for table in tables] == [
        "What each kind of error costs in AP50 of boxes",
        "AP of boxes by class",
        "What each kind of error costs in AP50 of masks",
        "AP of masks by class",
    ]
    errors, classes = ([[cell.text for cell in row] for row in table.rows] for table in tables[:2])
    assert errors[1][:2] == ["stray", "50.0"]
    assert (
        dict(zip([column.title for column in tables[0].columns], errors[1], strict=True))["background"]
        == "50.0"
    )
    assert classes == [["dog", "1", "100.0", "50.0"]]


def test_only_the_commonest_classes_are_shown(tmp_path: Path) -> None:
    truth = small_truth()
    truth["categories"] = [{"id": number, "name": f"class {number}"} for number in range(3, 33)]
    square = truth["annotations"][0]
    truth["annotations"] = [
        {**square, "id": 100 * number + copy, "category_id": number}
        for number in range(3, 33)
        for copy in range(1 + (number == 30))
    ]
    breakdown = break_down(*written(tmp_path, truth, [hit()]), ["bbox"])
    _, classes = (block for block in breakdown_blocks([("one", breakdown)]) if isinstance(block, Table))
    assert len(classes.rows) == SHOWN_CLASSES
    assert classes.rows[0][0].text == "class 30"
    assert "20 classes of 30" in classes.caption


@pytest.mark.parametrize("content", ["", "[{}]", "{"])
def test_damaged_detections_have_no_breakdown(tmp_path: Path, content: str) -> None:
    truth, results = written(tmp_path, small_truth(), [])
    results.write_text(content)
    assert break_down(truth, results, ["bbox"]) == {}
    assert breakdown_blocks([("one", {})]) == []


def test_interval_of_ap_from_few_images_warns(tmp_path: Path) -> None:
    accuracy = {"bbox": dict.fromkeys(METRICS, 0.5)}
    one = ArmAccuracy(
        "a", "native", "native", "native", False, (Evaluated(None, None, {"bbox": 0.5}),), accuracy, 9, None, {},
        differences={"bbox": Difference(0.1, 0.0, 0.2, 8)},
    )  # fmt: skip
    cell = CellAccuracy("c", "m", "val", "0" * 64, 8, 0, 9, None, (one,), ())
    report = replace(run_report(small(tmp_path)), accuracy=(cell,))
    assert "8 images say little about AP on others: use 50 or more." in markdown.render(
        accuracy_blocks(report, [])
    )
