"""Real logs of `../shared/cases/logs`: what each of them says, found out by hand or with an independent reader."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from bench.importers import ImportResult, import_logs, render
from bench.importers.events import BestMetric, Evaluation, Inference
from bench.importers.section import Section, WallClock
from tests.conftest import SHARED

LOGS = SHARED / "cases" / "logs"
pytestmark = pytest.mark.skipif(not LOGS.is_dir(), reason="../shared/cases/logs is not there")


@cache
def log(start: str) -> ImportResult:
    (path,) = LOGS.glob(f"{start}*")
    return import_logs("auto", [path])


def log_text(start: str) -> str:
    (path,) = LOGS.glob(f"{start}*")
    return path.read_text()


def sections(start: str) -> tuple[Section, ...]:
    return log(start).log.sections


def spans(start: str) -> list[tuple[int, int, int]]:
    return [(section.first, section.last, section.lines) for section in sections(start)]


def evaluations(start: str) -> list[Evaluation]:
    return [placed.event for placed in log(start).log.found if isinstance(placed.event, Evaluation)]


def inferences(start: str) -> list[Inference]:
    return [placed.event for placed in log(start).log.found if isinstance(placed.event, Inference)]


def clock(section: Section) -> WallClock:
    assert section.wall_clock is not None
    return section.wall_clock


def metrics(evaluation: Evaluation, names: str) -> list[float | None]:
    return [evaluation.metrics[name] for name in names.split()]


@pytest.mark.parametrize("path", sorted(LOGS.glob("*")), ids=lambda path: path.name[:30])
def test_real_logs_are_read(path: Path) -> None:
    result = import_logs("auto", [path])
    assert result.log.sections or result.log.found
    # 01 was cut by hand in the middle of two lines.
    assert result.log.broken_lines == (2 if path.name.startswith("01-") else 0)
    assert render(result)


# -- Sections --------------------------------------------------------------------------------------------------


def test_restart_that_overtakes_the_dead_run_is_a_restart() -> None:
    assert spans("repro-mix") == [(0, 245, 3), (0, 600, 4)]
    assert [(section.restart, section.parallel) for section in sections("repro-mix")] == [
        (False, False),
        (True, False),
    ]


def test_six_runs_in_one_scalars_file() -> None:
    assert spans("04-") == [
        (1, 2, 2),
        (1, 150, 150),
        (1, 740, 75),
        (1, 1500, 31),
        (1, 500, 11),
        (1, 1500, 31),
    ]
    third, fourth = sections("04-")[2:4]
    assert third.printed["s_per_iter"].mean == pytest.approx(2.404, abs=5e-4)
    assert third.printed["memory_mb"].maximum == 837
    assert fourth.printed["s_per_iter"].mean == pytest.approx(0.545, abs=5e-4)
    assert fourth.printed["memory_mb"].maximum == 5687


def test_five_runs_of_a_worker_log() -> None:
    assert spans("03-")[2:4] == [(0, 245, 8), (0, 4160, 26)]
    short, long = sections("03-")[2:4]
    assert short.wall_clock is None
    assert (clock(long).steps, clock(long).seconds) == (3800, 2755)
    assert long.printed["images_per_s"].mean == pytest.approx(11.32, abs=5e-3)


def test_json_resumed_at_epoch_three_agrees_with_its_text() -> None:
    assert spans("06-") == spans("06b-") == [(14710, 87930, 1460)]
    json_log, text_log = sections("06-")[0], sections("06b-")[0]
    for name in ("s_per_iter", "data_s", "memory_mb"):
        assert json_log.printed[name].mean == pytest.approx(text_log.printed[name].mean, rel=1e-3)
    for one, other in zip(evaluations("06-"), evaluations("06b-"), strict=True):
        assert one.metrics == {name: other.metrics[name] for name in one.metrics}


# -- Rates -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "index", "steps", "seconds"),
    [
        ("01-", 0, 180, 154),
        ("02-", 1, 4762, 14697),
        ("16-", 0, 1780, 1317),
        ("16b-", 0, 1780, 1317),
        ("31-", 0, 1780, 1317),
        ("12-", 0, 2020, 1290.062),
        ("14-", 0, 80, 10.738),
        ("33-", 0, 150, 36.716),
        ("21-", 0, 150, 36.716),
    ],
)
def test_rate_by_the_clock(start: str, index: int, steps: int, seconds: float) -> None:
    found = clock(sections(start)[index])
    assert found.steps == steps
    assert found.s_per_iter * steps == pytest.approx(seconds)
    assert bool(found.relative_error) == (seconds == int(seconds))


def test_wrapped_lines_are_put_together() -> None:
    assert spans("01-") == [(19, 199, 9), (19, 79, 3), (19, 79, 4), (19, 99, 5)]
    assert sections("01-")[0].curve[0].fields.losses["aux_bce_loss_0"] == 0.3859


def test_milliseconds_are_used_where_printed() -> None:
    assert clock(sections("14-")[0]).steps_per_s == pytest.approx(7.4502, abs=5e-5)
    assert "80 step / 10.738 s = 7.4502 step/s" in render(log("14-"))
    assert "= 1.1688 ± 0.0076 step/s" in render(log("01-"))


def test_total_times_of_epochs_give_the_rate() -> None:
    assert clock(sections("10-")[0]).s_per_iter == pytest.approx(0.5633, abs=5e-5)
    assert (clock(sections("32-")[0]).steps, clock(sections("32-")[0]).seconds) == (512, 300)


@pytest.mark.parametrize(
    ("start", "name", "mean"), [("13-", "images_per_s", 0.384), ("15-", "s_per_iter", 2.161)]
)
def test_iteration_zero_is_left_out_and_said(start: str, name: str, mean: float) -> None:
    assert sections(start)[0].printed[name].mean == pytest.approx(mean, abs=5e-4)
    assert "iteration 0 is left out" in render(log(start))


def test_memory_is_the_maximum() -> None:
    assert "max 5687 MB allocated, not what nvidia-smi shows" in render(log("04-"))
    assert "median 837" not in render(log("04-"))


def test_data_is_a_part_of_the_step() -> None:
    assert sections("12-")[0].data_share == pytest.approx(0.018, abs=5e-4)
    assert "data is 1.8% of the step" in render(log("12-"))


# -- Evaluations -----------------------------------------------------------------------------------------------


def test_keypoints_are_one_evaluation() -> None:
    found = [one for one in evaluations("03-") if one.task == "keypoints"]
    assert len(found) == log_text("03-").count("Evaluate annotation type *keypoints*")
    # The last one was cut.
    assert {" ".join(one.metrics) for one in found[:-1]} == {"AP AP50 AP75 APm APl AR AR50 AR75 ARm ARl"}


def test_best_of_two_tasks_is_kept() -> None:
    best = [placed.event for placed in log("03-").log.found if isinstance(placed.event, BestMetric)]
    assert (best[0].label, best[0].value) == ("bbox + keypoint ap", 0.073)


def test_best_of_a_teacher_is_kept() -> None:
    best = [placed.event for placed in log("02-").log.found if isinstance(placed.event, BestMetric)]
    assert [(one.label, one.value) for one in best][:1] == [("teacher bbox ap", 0.393)]


def test_table_and_line_are_one_evaluation_with_undefined_values() -> None:
    (evaluation,) = evaluations("30-")
    assert evaluation.task == "bbox"
    assert metrics(evaluation, "AP AP50 APs APm APl ARs") == [0.031, 0.119, None, None, 0.031, None]
    assert "APs –  APm –" in render(log("30-"))


def test_validation_of_mmengine_is_one_evaluation() -> None:
    (evaluation,) = evaluations("27-")
    assert evaluation.task == "bbox"
    assert metrics(evaluation, "AP AP50 AP75 APs APm APl AR@300") == [
        0.432, 0.617, 0.468, 0.256, 0.461, 0.585, 0.654
    ]  # fmt: skip


def test_detectron2_evaluates_before_the_line_of_its_iteration() -> None:
    places = [
        placed.after_iteration for placed in log("09-").log.found if isinstance(placed.event, Evaluation)
    ]
    assert places == [999]
    (evaluation,) = evaluations("09-")
    assert metrics(evaluation, "AP AP50 APs") == pytest.approx([0.25193, 0.427338, 0.017945])


def test_detectron2_json_states_the_iteration() -> None:
    places = [placed.after_iteration for placed in log("19-").log.found]
    assert places == [499, 999, 1499]
    assert evaluations("19-")[0].metrics["APm"] is None


def test_voc_is_read() -> None:
    assert [one.metrics for one in evaluations("07-")] == [{"mAP": 0.6749}, {"mAP": 0.7082}, {"mAP": 0.7238}]
    assert "evaluation that is not COCO's, at line 125" in render(log("07-"))


def test_lvis_is_read() -> None:
    (evaluation,) = evaluations("25-")
    assert (evaluation.task, metrics(evaluation, "AP AP50 AP75 APs")) == (
        "bbox",
        [0.219, 0.351, 0.235, 0.166],
    )


def test_odd_metric_keys_do_not_drop_a_line() -> None:
    assert spans("22-") == [(4, 12, 3)]
    assert sections("22-")[0].curve[0].fields.other["recall@thr=0.5"] == 0.3889
    (evaluation,) = evaluations("22-")
    assert metrics(evaluation, "mAP/overall mAP/object_manipulation") == [0.0, None]


def test_detr_log_txt_has_an_evaluation_of_every_epoch() -> None:
    assert spans("11-") == [(0, 4, 5)]
    assert sections("11-")[0].unit == "epoch"
    assert [placed.after_iteration for placed in log("11-").log.found] == [0, 1, 2, 3, 4]
    assert len(evaluations("11-")[0].metrics) == 12


# -- Other values ----------------------------------------------------------------------------------------------


def test_keys_are_as_printed() -> None:
    assert sections("23-")[0].curve[0].fields.losses["layer_-1_loss_cls"] == 10.1055


def test_labels_before_inference_lines_are_stripped() -> None:
    assert [one.s_per_batch for one in inferences("32-")] == [0.7452, 0.6792, 0.7234, 0.64]
    assert sections("32-")[0].rank == 0


def test_benchmark_of_mmdetection_three() -> None:
    (inference,) = inferences("29-")
    assert (inference.fps, inference.s_per_image) == (23.5, 0.0426)
    (inference,) = inferences("28-")
    assert inference.fps == 10.3


def test_quoted_numbers_of_detectron_are_read() -> None:
    fields = sections("26-")[0].curve[0].fields
    assert (fields.lr, fields.s_per_iter, fields.memory_mb, fields.eta_s) == (0.0025, 0.239996, 6340, 24201)
    assert spans("26-") == [(29160, 29200, 3)]


def test_older_order_of_mmengine_is_read() -> None:
    fields = sections("24-")[0].curve[0].fields
    assert (fields.s_per_iter, fields.memory_mb, fields.losses["loss_db"]) == (1.8666, 7730, 0.9879)


def test_slurm_output_is_read() -> None:
    assert spans("08-") == [(50, 4400, 88)]


def test_cards_are_counted() -> None:
    assert [sections(start)[0].cards for start in ("01-", "03-", "09-", "10-")] == [4, 2, 6, 8]
    assert "images/s over 2 cards" in render(log("03-"))
