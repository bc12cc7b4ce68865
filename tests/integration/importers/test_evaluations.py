"""Evaluations and inference rates in logs."""

from __future__ import annotations

import pytest

from bench.importers.events import BestMetric, Evaluation, Inference
from tests.helpers.logwriters import (
    COCO_BLOCK,
    read,
    run,
    text,
)


def only_evaluation(log: str) -> Evaluation:
    """The one thing that is found in a log."""
    (placed,) = read(log).log.found
    assert isinstance(placed.event, Evaluation)
    return placed.event


@pytest.mark.parametrize(
    ("opening", "task"),
    [
        ("Evaluate annotation type *segm*", "segm"),
        ("Evaluating bbox...", "bbox"),
        ("IoU metric: bbox", "bbox"),
    ],
)
def test_all_twelve_coco_numbers_are_read_with_their_task(opening: str, task: str) -> None:
    result = read(text("torchvision", run(3)) + opening + "\n" + COCO_BLOCK)
    (evaluation,) = [placed.event for placed in result.log.found if isinstance(placed.event, Evaluation)]
    assert evaluation.task == task
    assert dict(evaluation.metrics) == {
        "AP": 0.275,
        "AP50": 0.468,
        "AP75": 0.283,
        "APs": 0.077,
        "APm": 0.287,
        "APl": None,
        "AR@1": 0.257,
        "AR@10": 0.387,
        "AR@100": 0.408,
        "ARs": 0.152,
        "ARm": 0.460,
        "ARl": 0.657,
    }


def test_keypoints_have_recalls_of_their_own() -> None:
    rows = [
        f" Average {what}  @[ IoU={iou} | area={area} | maxDets= 20 ] = {value}"
        for what, iou, area, value in (
            ("Precision  (AP)", "0.50:0.95", "   all", "0.011"),
            ("Precision  (AP)", "0.50     ", "   all", "0.048"),
            ("Recall     (AR)", "0.50:0.95", "   all", "0.036"),
            ("Recall     (AR)", "0.50     ", "   all", "0.086"),
            ("Recall     (AR)", "0.75     ", "   all", "0.015"),
            ("Recall     (AR)", "0.50:0.95", "medium", "-1.000"),
            ("Recall     (AR)", "0.50:0.95", " large", "0.040"),
        )
    ]
    evaluation = only_evaluation("\n".join(["Evaluate annotation type *keypoints*", *rows]) + "\n")
    assert evaluation.metrics == {
        "AP": 0.011, "AP50": 0.048, "AR": 0.036, "AR50": 0.086, "AR75": 0.015, "ARm": None, "ARl": 0.04
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "metrics"),
    [
        (
            "2025-12-11 23:33:20,008 - mmdet - INFO - Epoch(val) [24][64]    OpenLane-V2 Score: 0.2734, "
            "DET_l: 0.35054, Overall/L1 mAP: 0.0949, x error (far): nan",
            {"OpenLane-V2 Score": 0.2734, "DET_l": 0.35054, "Overall/L1 mAP": 0.0949, "x error (far)": None},
        ),
        (
            "01/08 08:55:43 - mmengine - INFO - Epoch(test) [8/8]    pascal_voc/mAP: 0.67  data_time: 0.0382",
            {"pascal_voc/mAP": 0.67},
        ),
        (
            "01/08 08:55:43 - mmengine - INFO - Epoch(val) [1][8/8] coco/bbox_mAP: 0.67 coco/bbox_mAP_50: 0.8",
            {"AP": 0.67, "AP50": 0.8},
        ),
        ("map_5095: 0.5424730153762637", {"map_5095": 0.5424730153762637}),
        (
            "[11/22 03:13:27] ppdet.metrics.metrics INFO: mAP(0.50, 11point) = 84.50%",
            {"mAP(0.50, 11point)": 0.845},
        ),
        (  # github.com/PaddlePaddle/PaddleDetection/issues/1436
            "2020-09-18 13:08:28,896-INFO: mAP(0.50, 11point) = 1.33",
            {"mAP(0.50, 11point)": pytest.approx(0.0133)},
        ),
    ],
)
def test_metrics_that_are_not_coco_s_keep_their_names(line: str, metrics: dict[str, float | None]) -> None:
    evaluation = only_evaluation(line + "\n")
    assert evaluation.metrics == metrics


def test_validation_without_metrics_is_not_broken() -> None:
    lines = (
        text("mmengine-json", run(4))
        + '{"data_time": 0.1, "time": 0.2, "step": 1}\n'
        + text("detectron", run(4))
    )
    result = read(lines + 'json_stats: {"_type": "test_epoch", "mem": 3088, "top1_acc": 74.3}\n')
    assert result.log.broken_lines == 0


@pytest.mark.parametrize("label", ["", "# ", "0: "])
def test_lvis_has_rare_common_and_frequent_classes(label: str) -> None:
    rows = [
        f" Average Precision  (AP) @[ IoU=0.50:0.95 | area={area} | maxDets={most} catIds={classes}] = 0.{value}"
        for area, most, classes, value in (
            ("   all", "300", "all", "271"),
            ("     s", " -1", "all", "207"),
            ("   all", "300", "  r", "263"),
            ("   all", "300", "  f", "287"),
        )
    ]
    names = f"{label}copypaste: AP,APs,APr,APf,AR1\n{label}copypaste: 27.12,20.71,26.31,28.66,31.2\n"
    evaluation = only_evaluation("".join(f"{label}{row}\n" for row in rows) + names)
    assert evaluation.metrics == pytest.approx(
        {"AP": 0.2712, "APs": 0.2071, "APr": 0.2631, "APf": 0.2866, "AR1": 0.312}
    )


def test_recalls_below_summary_belong_to_it() -> None:
    # github.com/dnth/DEIMKit/issues/30
    rows = [
        f" Average Recall     (AR) @[ IoU={iou}      | area=   all | maxDets=100 ] = {value}"
        for iou, value in (("0.50", "0.608"), ("0.75", "0.301"))
    ]
    evaluation = only_evaluation("IoU metric: bbox\n" + COCO_BLOCK + "\n".join(rows) + "\n")
    assert (len(evaluation.metrics), evaluation.metrics["AR50"], evaluation.metrics["AR75"]) == (
        14,
        0.608,
        0.301,
    )


def test_recalls_of_proposals_are_read_without_ap() -> None:
    label = "[05/24 11:50:33] d2.evaluation.testing INFO: copypaste: "
    rows = ["Task: box_proposals", "AR@100,ARs@100,AR@1000", "45.4900,30.9323,57.9785"]
    evaluation = only_evaluation("".join(f"{label}{row}\n" for row in rows))
    assert evaluation.task == "proposal"
    assert evaluation.metrics == pytest.approx({"AR@100": 0.4549, "ARs@100": 0.309323, "AR@1000": 0.579785})


def test_one_iou_threshold_is_not_ap() -> None:
    line = " Average Precision  (AP) @[ IoU=0.50:0.50 | area=   all | maxDets=100 ] = 0.468"
    evaluation = only_evaluation(f"Evaluating bbox...\n{line}\n")
    assert evaluation.metrics == {"AP50": 0.468}


def test_evaluation_cut_off_is_shown_with_what_it_has() -> None:
    result = read("Evaluate annotation type *bbox*\n" + "".join(COCO_BLOCK.splitlines(keepends=True)[:3]))
    (placed,) = result.log.found
    assert isinstance(placed.event, Evaluation)
    assert list(placed.event.metrics) == ["AP", "AP50", "AP75"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "2021-12-31 23:55:00,000 - mmdet - INFO - Epoch(val) [1][5000]\tbbox_mAP: 0.3740, bbox_mAP_s: 0.2100, "
            "bbox_mAP_copypaste: 0.374 0.581, segm_mAP: 0.3390",
            {"bbox": {"AP": 0.374, "APs": 0.21}, "segm": {"AP": 0.339}},
        ),
        (
            "12/31 23:55:00 - mmengine - INFO - Epoch(val) [1][5000/5000]    coco/bbox_mAP: 0.3740  "
            "coco/bbox_mAP_50: 0.5810  data_time: 0.0021  time: 0.0402",
            {"bbox": {"AP": 0.374, "AP50": 0.581}},
        ),
        ('{"mode": "val", "epoch": 1, "iter": 5000, "lr": 0.02, "bbox_mAP": 0.374}', {"bbox": {"AP": 0.374}}),
        (
            '{"coco/segm_mAP_75": 0.36, "data_time": 0.0021, "time": 0.04, "step": 1}',
            {"segm": {"AP75": 0.36}},
        ),
        ('{"bbox/AP": 40.25, "bbox/APs": 24.0, "iteration": 89999}', {"bbox": {"AP": 0.4025, "APs": 0.24}}),
        (
            "2021-12-31 23:55:00,000 detectors INFO: evaluation: segm  AP: 0.374  ARl: 0.619",
            {"segm": {"AP": 0.374, "ARl": 0.619}},
        ),
    ],
)
def test_evaluations_in_tools_own_words_become_fractions_with_usual_names(
    line: str, expected: dict[str, dict[str, float]]
) -> None:
    found = [placed.event for placed in read(line + "\n").log.found]
    assert {event.task: dict(event.metrics) for event in found if isinstance(event, Evaluation)} == expected


def test_detectron2s_percentages_become_fractions() -> None:
    prefix = "[12/31 23:55:00 d2.evaluation.testing]: copypaste: "
    rows = ["Task: segm", "AP,AP50,AP75,APs,APm,APl", "34.5,56.1,36.6,15.1,36.9,49.9"]
    evaluation = only_evaluation("".join(f"{prefix}{row}\n" for row in rows))
    assert evaluation.task == "segm"
    assert evaluation.metrics["AP"] == pytest.approx(0.345)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "2020-12-04 22:03:53,315-INFO: Total iteration: 5000, inference time: 6.46526465264554 batch/s.",
            {"batches": 5000, "batches_per_s": 6.46526465264554},
        ),
        ("2020-12-04 23:33:00,303-INFO: total time: 1018.726801s", {"total_s": 1018.726801}),
        (
            "2020-12-04 23:33:00,303-INFO: Speed: 0.205720s per image,  4.9 FPS.",
            {"s_per_image": 0.20572, "fps": 4.9},
        ),
        (
            "[11/22 03:15:27] ppdet.engine INFO: Total sample number: 8, average FPS: 1.64",
            {"images": 8, "fps": 1.64},
        ),
        (
            "[11/22 03:15:27] ppdet.engine INFO: Total sample number: 8, averge FPS: 1.64",
            {"images": 8, "fps": 1.64},
        ),
        ("Overall fps: 12.4 img / s, times per image: 80.6 ms / img", {"fps": 12.4, "s_per_image": 0.0806}),
        (
            "[10/10 13:00:00 d2.evaluation.evaluator]: Total inference time: 1 day, 0:04:12.5 "
            "(0.050469 s / iter per device, on 8 devices)",
            {"total_s": 86652.5, "s_per_batch": 0.050469},
        ),
        (
            "[06/27 05:46:10 d2.evaluation.evaluator]: Total inference time: 0:59:41 "
            "(0.716917 s / img per device, on 1 devices)",
            {"total_s": 3581, "s_per_image": 0.716917},
        ),
        (
            "2020-09-18 13:08:28,833-INFO: Total number of images: 248, inference time: 8.814965413086895 fps.",
            {"images": 248, "fps": 8.814965413086895},
        ),
        ("Test: Total time: 0:04:00 (0.0480 s / it)", {"total_s": 240, "s_per_batch": 0.048}),
        (
            "2021-12-31 23:55:00,000 detectors INFO: inference: 5000 images  s/image: 0.0502  FPS: 19.92",
            {"images": 5000, "s_per_image": 0.0502, "fps": 19.92},
        ),
    ],
)
def test_inference_rate_is_read_with_only_what_line_states(line: str, expected: dict[str, float]) -> None:
    (placed,) = read(line + "\n").log.found
    assert isinstance(placed.event, Inference)
    stated = {key: value for key, value in vars(placed.event).items() if value is not None}
    assert {
        key: stated[key] for key in stated if key not in ("format", "what", "line", "time_ms")
    } == pytest.approx(expected)


def test_best_value_keeps_label_that_tool_gave_it() -> None:
    (placed,) = read("2020-12-04 22:05:51,340-INFO: Best test box ap: 0.2752, in iter: 20000\n").log.found
    assert placed.event == BestMetric("box ap", 0.2752, 20000, "paddledetection-2020", line=1)
