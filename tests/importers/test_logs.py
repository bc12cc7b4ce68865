"""Logs in, numbers out: what a reader of a report relies on when its numbers come from somebody's training log."""

from __future__ import annotations

import gzip
import random
import tempfile
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.importers import ImportResult, import_logs, known_formats, render, to_json
from bench.importers.events import BestMetric, Evaluation, Inference
from bench.importers.section import Section
from tests.importers.logwriters import EPOCH_LENGTH, WRITERS, Line

START = datetime(2021, 12, 31, 23, 50)
#: Formats that print a time: only these have a wall clock.
TIMED = [name for name, writer in WRITERS.items() if writer.stamp]
TEXT = [name for name in WRITERS if known_formats()[name].json is None]

# Values that every format prints exactly with the decimals it uses.
exact = st.integers(1, 999).map(lambda n: n / 1000)
quarter = st.integers(0, 400).map(lambda n: n / 100)


@st.composite
def logs(draw: st.DrawFn, max_lines: int = 30) -> list[Line]:
    """Lines of one run: iterations grow by an interval, the clock by what they take."""
    interval = draw(st.integers(1, 60))
    count = draw(st.integers(2, max_lines))
    ms = draw(st.integers(200, 900))
    when = START + timedelta(milliseconds=draw(st.integers(0, 999)))
    keys = draw(
        st.lists(
            st.sampled_from(["loss_cls", "loss_bbox", "loss_ins", "rpn.loss", "loss"]),
            unique=True,
            min_size=1,
        )
    )
    lines = []
    for n in range(1, count + 1):
        when += timedelta(milliseconds=ms * interval + draw(st.integers(0, 50)))
        lines.append(
            Line(
                iteration=n * interval,
                when=when,
                s_per_iter=draw(exact),
                data_s=draw(exact),
                lr=draw(exact),
                memory_mb=draw(st.integers(0, 80_000)),
                images_per_s=draw(quarter),
                eta_s=draw(st.integers(0, 10_000_000)),
                losses={key: draw(quarter) for key in keys},
            )
        )
    return lines


def read(data: str | bytes, name: str = "auto", **window: Any) -> ImportResult:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.log"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return import_logs(name, [path], **window)


def text(name: str, lines: Iterable[Line]) -> str:
    return "".join(WRITERS[name].write(line) + "\n" for line in lines)


def run(
    count: int, interval: int = 20, s_per_iter: float = 0.5, first: int = 1, start: datetime = START
) -> list[Line]:
    """A steady run of `count` lines."""
    return [
        Line(first - 1 + n * interval, start + timedelta(seconds=n * interval * s_per_iter), s_per_iter)
        for n in range(1, count + 1)
    ]


def only(result: ImportResult) -> Section:
    (section,) = result.log.sections
    return section


def wall_seconds(name: str, first: Line, last: Line) -> int:
    """Whole seconds between two lines' times."""
    return int(last.when.timestamp()) - int(first.when.timestamp())


# -- Every format ----------------------------------------------------------------------------------------------


def test_every_known_format_is_tested() -> None:
    assert {*WRITERS, "ultralytics"} == set(known_formats())


@pytest.mark.parametrize("name", WRITERS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(lines=logs())
def test_what_a_tool_wrote_is_read_back_to_the_last_value(name: str, lines: list[Line]) -> None:
    writer = WRITERS[name]
    result = read(text(name, lines))
    section = only(result)
    offset = writer.first_iteration - 1
    assert dict(result.train_lines) == {name: len(lines)}
    assert (section.format, section.lines) == (name, len(lines))
    assert result.log.broken_lines == 0
    for line, point in zip(lines, section.curve, strict=True):
        if name != "mmdet2-json":  # the length of an epoch is not printed there
            assert point.iteration == line.iteration + offset
        for value in writer.values:
            assert getattr(point.fields, value) == pytest.approx(getattr(line, value), rel=1e-9), value
        for key, loss in line.losses.items():
            assert point.fields.losses[writer.prefix + key] == pytest.approx(loss, rel=1e-9)
    clock = section.wall_clock
    if not writer.stamp:
        assert clock is None
        assert "prints no time" in section.no_wall_clock
    elif wall_seconds(name, lines[0], lines[-1]) > 0:
        assert clock is not None
        assert clock.steps == lines[-1].iteration - lines[0].iteration
        assert clock.seconds == wall_seconds(name, lines[0], lines[-1])
        if writer.stamp == "ms":
            exact_ms = (lines[-1].when - lines[0].when) / timedelta(milliseconds=1)
            assert clock.exact_seconds * 1000 == pytest.approx(exact_ms, abs=1)


@pytest.mark.parametrize("name", WRITERS)
def test_the_named_format_reads_the_same_as_auto(name: str) -> None:
    data = text(name, run(5))
    assert to_json(read(data, name))["log"] == to_json(read(data))["log"]


#: One line per spelling: the format, a tab, a training line as some version of its tool writes it.
SPELLINGS = (Path(__file__).parent / "spellings.txt").read_text().splitlines()


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_spellings_of_older_and_newer_versions_are_read(spelling: str) -> None:
    name, _, line = spelling.partition("\t")
    result = read(line + "\n")
    assert dict(result.train_lines) == {name: 1}
    assert result.log.broken_lines == 0
    (point,) = only(result).curve
    assert point.fields.losses
    assert (point.fields.s_per_iter is None) == all(
        key not in line for key in ("time: ", "batch_cost: ", '"time": ')
    )


def test_a_curve_of_a_long_log_is_thinned_and_says_so() -> None:
    lines = run(9000, interval=1)
    many = only(read(text("mmengine", lines)))
    assert many.lines == 9000
    assert many.curve_stride == 8
    assert [point.iteration for point in many.curve] == list(range(1, 9001, 8))


def test_a_log_of_many_restarts_does_not_fill_the_memory_with_curves() -> None:
    data = "".join(text("mmdet2", run(100, start=START + timedelta(hours=n))) for n in range(30))
    sections = read(data).log.sections
    assert len(sections) == 30
    assert all(section.lines == 100 for section in sections)
    assert [len(section.curve) for section in sections] == [100] * 10 + [50] * 20
    assert all(section.curve_stride == 2 for section in sections[10:])


# -- Damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_log_cut_anywhere_never_gives_a_value_that_was_not_written(name: str, data: st.DataObject) -> None:
    lines = run(4)
    whole = text(name, lines)
    cut = whole[: data.draw(st.integers(0, len(whole)))]
    full_lines = cut.count("\n")
    try:
        section = only(read(cut))
    except BenchError:
        assert full_lines == 0
        return
    # The last line counts only if all of it is there.
    expected = full_lines + (cut.endswith(WRITERS[name].write(lines[min(full_lines, 3)])) and cut[-1] != "\n")
    assert full_lines <= section.lines <= expected
    for line, point in zip(lines, section.curve, strict=False):
        for value in WRITERS[name].values:
            assert getattr(point.fields, value) == pytest.approx(getattr(line, value)), value


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_line_cut_by_a_crash_is_counted_as_broken_and_not_guessed(name: str, data: st.DataObject) -> None:
    rows = text(name, run(6)).splitlines()
    # From within the values on: what is cut before them shows nothing of the line.
    at = (
        rows[2].index("{") + 1
        if name not in TEXT
        else rows[2].index("lr: " if "lr: " in rows[2] else "learning_rate: ") + 15
    )
    cut = data.draw(st.integers(at, len(rows[2]) - 6))
    rows[2] = rows[2][:cut] + rows[3]  # the next line was appended to it
    del rows[3]
    result = read("\n".join(rows) + "\n")
    assert result.log.broken_lines >= 1
    assert only(result).lines == 4
    assert "broken lines: 1" in render(result)


@pytest.mark.parametrize("name", TEXT)
def test_a_value_that_is_not_a_number_makes_the_line_broken(name: str) -> None:
    rows = text(name, run(5)).splitlines()
    rows[2] = rows[2].replace("loss_cls: ", "loss_cls: x").replace("'loss_cls': '", "'loss_cls': 'x")
    result = read("\n".join(rows) + "\n")
    assert result.log.broken_lines == 1
    assert only(result).lines == 4


@pytest.mark.parametrize("name", TIMED)
def test_a_time_that_does_not_exist_makes_the_line_broken(name: str) -> None:
    rows = text(name, run(5)).splitlines()
    rows[2] = rows[2].replace("23:50:", "24:50:").replace(":50:", ":61:")
    result = read("\n".join(rows) + "\n")
    assert result.log.broken_lines == 1
    assert only(result).lines == 4


@pytest.mark.parametrize("name", WRITERS)
def test_windows_line_ends_change_nothing(name: str) -> None:
    data = text(name, run(5))
    assert to_json(read(data.replace("\n", "\r\n")))["log"] == to_json(read(data))["log"]


@pytest.mark.parametrize("name", WRITERS)
def test_colours_change_nothing(name: str) -> None:
    data = text(name, run(5))
    coloured = "".join(f"\x1b[32m{line}\x1b[0m\n" for line in data.splitlines())
    coloured = coloured.replace("INFO", "\x1b[1;34mINFO\x1b[0m")
    assert to_json(read(coloured))["log"] == to_json(read(data))["log"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
@pytest.mark.parametrize("name", TIMED)
def test_comments_in_any_encoding_do_not_hide_the_log(name: str, encoding: str) -> None:
    data = "本仓库训练速度：\nuse_ema = True\n" + text(name, run(5)) + "所以 本仓库训练速度\n"
    section = only(read(data.encode(encoding)))
    assert section.lines == 5
    assert section.heading == "本仓库训练速度"
    assert section.settings["use_ema"] == "True"


@pytest.mark.parametrize("name", TIMED)
def test_two_ranks_in_one_file_are_two_runs_and_not_a_run_of_twice_the_speed(name: str) -> None:
    first = run(40)
    second = [Line(line.iteration, line.when + timedelta(milliseconds=7), 0.25) for line in first]
    mixed = [line for pair in zip(first, second, strict=True) for line in pair]
    sections = read(text(name, mixed)).log.sections
    assert [section.lines for section in sections] == [40, 40]
    assert all(section.parallel and not section.restart for section in sections)
    for section in sections:
        assert section.wall_clock is not None
        assert section.wall_clock.s_per_iter == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("name", TEXT)
def test_a_launchers_prefix_tells_the_ranks_apart(name: str) -> None:
    rows = [f"[rank{n % 2}]: {row}" for n, row in enumerate(text(name, run(10)).splitlines())]
    sections = read("\n".join(rows) + "\n").log.sections
    assert sorted(section.rank for section in sections if section.rank is not None) == [0, 1]
    assert [section.lines for section in sections] == [5, 5]


@pytest.mark.parametrize("name", TEXT)
def test_the_rest_of_a_progress_bar_does_not_hide_a_line(name: str) -> None:
    rows = text(name, run(5)).splitlines()
    rows[2] = "[>>>>>>>>>] 5000/5000, 12.3 task/s, elapsed: 406s, ETA:     0s" + rows[2]
    rows[3] = "[>>>  ] 1/5\r[>>>>] 2/5\r" + rows[3]
    result = read("\n".join(rows) + "\n")
    assert only(result).lines == 5
    assert result.log.broken_lines == 0


@pytest.mark.parametrize("name", TIMED)
def test_rotated_files_are_one_run_whatever_their_order(name: str, tmp_path: Path) -> None:
    lines = run(30)
    newest, middle, oldest = tmp_path / "train.log", tmp_path / "train.log.1", tmp_path / "train.log.2.gz"
    oldest.write_bytes(gzip.compress(text(name, lines[:10]).encode()))
    middle.write_text(text(name, lines[10:20]))
    newest.write_text(text(name, lines[20:]))
    result = import_logs("auto", [newest, middle, oldest])
    if WRITERS[name].stamp == "ms":
        assert [path.name for path in result.files] == [oldest.name, middle.name, newest.name]
        assert only(result).lines == 30
    result = import_logs("auto", [oldest, middle, newest])
    assert [path.name for path in result.files] == [oldest.name, middle.name, newest.name]
    assert only(result).lines == 30


def test_the_same_line_twice_counts_once() -> None:
    rows = text("mmdet2", run(5)).splitlines()
    result = read("\n".join(row for row in rows for _ in range(2)) + "\n")
    assert only(result).lines == 5
    assert result.log.repeated_lines == 5


# -- The clock -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TIMED)
def test_midnight_and_new_year_are_seconds_like_others(name: str) -> None:
    lines = run(100)  # from 23:50 of 31 December, 10 s between lines
    clock = only(read(text(name, lines))).wall_clock
    assert clock is not None
    assert clock.seconds == 990
    assert clock.excluded_steps == 0


@pytest.mark.parametrize("name", TIMED)
def test_a_leap_day_is_a_day(name: str) -> None:
    start = datetime(2024, 2, 28, 23, 59, 30)
    days = [Line(20 * (n + 1), start + timedelta(days=n), 4320.0) for n in range(4)]
    clock = only(read(text(name, days))).wall_clock
    assert clock is not None
    assert clock.seconds == 3 * 86_400


def test_ranks_around_new_year_do_not_add_a_year() -> None:
    before, after = datetime(2021, 12, 31, 23, 59, 59), datetime(2022, 1, 1, 0, 0, 1)
    other = {"s_per_iter": 0.25}
    lines = [Line(20, before), Line(40, after), Line(20, before, **other), Line(40, after, **other)]
    lines.append(Line(60, after + timedelta(seconds=9)))
    sections = read(text("mmengine", lines)).log.sections
    seconds = [section.wall_clock.seconds for section in sections if section.wall_clock is not None]
    assert sorted(seconds) == [2, 11]


@pytest.mark.parametrize("name", TIMED)
def test_a_clock_that_goes_back_is_not_training_time(name: str) -> None:
    lines = run(20)
    back = [Line(line.iteration, line.when - timedelta(hours=1), 0.5) for line in lines[10:]]
    result = read(text(name, lines[:10] + back))
    section = only(result)
    assert section.wall_clock is not None
    assert section.wall_clock.s_per_iter == pytest.approx(0.5)
    assert section.wall_clock.excluded_steps == 20
    assert section.excluded[0].reason == "the clock went back"
    assert "the clock went back" in render(result)


@pytest.mark.parametrize("name", TIMED)
def test_a_pause_is_not_training_time(name: str) -> None:
    lines = run(20)
    later = [Line(line.iteration, line.when + timedelta(hours=5), 0.5) for line in lines[10:]]
    section = only(read(text(name, lines[:10] + later)))
    assert section.wall_clock is not None
    assert section.wall_clock.s_per_iter == pytest.approx(0.5)
    assert section.wall_clock.excluded_seconds == pytest.approx(5 * 3600 + 10)


@pytest.mark.parametrize("name", TIMED)
def test_a_restart_from_a_checkpoint_is_another_section_and_its_pause_no_training_time(name: str) -> None:
    lines = run(40)
    resumed = run(60, start=START + timedelta(hours=3))[24:]
    sections = read(text(name, lines + resumed)).log.sections
    assert [(section.lines, section.restart) for section in sections] == [(40, False), (36, True)]
    for section in sections:
        assert section.wall_clock is not None
        assert section.wall_clock.s_per_iter == pytest.approx(0.5)


def test_a_tools_own_lists_are_not_taken_for_headings_between_logs() -> None:
    lines = run(12)
    listing = "\nRuntime environment:\n    seed: 0\n\nl.bias - torch.Size([1]):\nNormalInit\n\n"
    section = only(read(listing + text("mmengine", lines[:6]) + listing + text("mmengine", lines[6:])))
    assert (section.heading, section.lines) == ("", 12)


def test_a_crash_in_a_log_is_shown_with_its_line() -> None:
    rows = text("mmengine", run(5)).splitlines()
    rows[3:3] = [
        "",
        "Traceback (most recent call last):",
        '  File "train.py", line 3, in <module>',
        "KeyboardInterrupt",
    ]
    result = read("\n".join(rows) + "\n")
    assert [one.line for one in result.log.interruptions] == [5, 7]
    assert "interrupted at line 5: Traceback (most recent call last):" in render(result)
    assert only(result).lines == 5


_EVALUATIONS = {
    "solov2-own": "2021-12-31 23:55:00,000-INFO: Test iter 100",
    "paddledetection-2020": "2021-12-31 23:55:00,000-INFO: Test iter 100",
    "ppdet": "[12/31 23:55:00] ppdet.engine INFO: Eval iter: 100",
    "mmdet2": "2021-12-31 23:55:00,000 - mmdet - INFO - Epoch(val) [1][5000]\tbbox_mAP: 0.3740, bbox_mAP_50: 0.5810",
    "mmengine": "12/31 23:55:00 - mmengine - INFO - Epoch(val) [1][5000/5000]    coco/bbox_mAP: 0.3740  time: 0.0402",
    "detectron2": "[12/31 23:55:00 d2.evaluation.evaluator]: Inference done 11/5000. Dataloading: 0.0010 s/iter.",
    "detectors": "2021-12-31 23:55:00,000 detectors INFO: evaluating: 100/5000",
    "maskrcnn-benchmark": "2021-12-31 23:55:00,000 maskrcnn_benchmark.inference INFO: Total run time: 0:05:09.3 "
    "(0.0618 s / img per device, on 8 devices)",
    "yolox": "Average forward time: 5.31 ms, Average NMS time: 0.88 ms, Average inference time: 6.19 ms",
}


@pytest.mark.parametrize("name", TIMED)
def test_iterations_during_which_an_evaluation_ran_are_left_out_and_named(name: str) -> None:
    lines = run(20)
    later = [Line(line.iteration, line.when + timedelta(seconds=50), 0.5) for line in lines[10:]]
    data = text(name, lines[:10]) + _EVALUATIONS[name] + "\n" + text(name, later)
    result = read(data)
    section = only(result)
    assert section.wall_clock is not None
    assert section.wall_clock.s_per_iter == pytest.approx(0.5)
    (left_out,) = section.excluded
    offset = WRITERS[name].first_iteration - 1
    assert (left_out.first, left_out.last) == (lines[9].iteration + offset, lines[10].iteration + offset)
    assert left_out.reason == "an evaluation ran"
    assert "an evaluation ran" in render(result)


def test_the_window_is_the_one_asked_for() -> None:
    lines = run(100)
    clock = only(read(text("mmdet2", lines), from_iter=100, to_iter=999)).wall_clock
    assert clock is not None
    assert (clock.first, clock.last, clock.steps, clock.seconds) == (100, 980, 880, 440)


def test_an_empty_window_is_said_to_be_empty() -> None:
    section = only(read(text("mmdet2", run(5)), from_iter=5000))
    assert section.wall_clock is None
    assert section.no_wall_clock == "no line lies in the window"
    with pytest.raises(BenchError, match="the window is empty"):
        read("", from_iter=1000, to_iter=20)


# -- Evaluation and inference ----------------------------------------------------------------------------------

COCO_BLOCK = """ Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.275
 Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.468
 Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = 0.283
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 0.077
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.287
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = -1.000
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.257
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ] = 0.387
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.408
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 0.152
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.460
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = 0.657
"""


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
    (placed,) = read("\n".join(["Evaluate annotation type *keypoints*", *rows]) + "\n").log.found
    assert isinstance(placed.event, Evaluation)
    assert placed.event.metrics == {
        "AP": 0.011, "AP50": 0.048, "AR": 0.036, "AR50": 0.086, "AR75": 0.015, "ARm": None, "ARl": 0.04
    }  # fmt: skip


def test_an_evaluation_that_was_cut_off_is_shown_with_what_it_has() -> None:
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
def test_evaluations_in_a_tools_own_words_become_fractions_with_the_usual_names(
    line: str, expected: dict[str, dict[str, float]]
) -> None:
    found = [placed.event for placed in read(line + "\n").log.found]
    assert {event.task: dict(event.metrics) for event in found if isinstance(event, Evaluation)} == expected


def test_detectron2s_percentages_become_fractions() -> None:
    prefix = "[12/31 23:55:00 d2.evaluation.testing]: copypaste: "
    rows = ["Task: segm", "AP,AP50,AP75,APs,APm,APl", "34.5,56.1,36.6,15.1,36.9,49.9"]
    (placed,) = read("".join(f"{prefix}{row}\n" for row in rows)).log.found
    assert isinstance(placed.event, Evaluation)
    assert placed.event.task == "segm"
    assert placed.event.metrics["AP"] == pytest.approx(0.345)


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
        ("Test: Total time: 0:04:00 (0.0480 s / it)", {"total_s": 240, "s_per_batch": 0.048}),
        (
            "2021-12-31 23:55:00,000 detectors INFO: inference: 5000 images  s/image: 0.0502  FPS: 19.92",
            {"images": 5000, "s_per_image": 0.0502, "fps": 19.92},
        ),
    ],
)
def test_an_inference_rate_is_read_with_only_what_the_line_states(
    line: str, expected: dict[str, float]
) -> None:
    (placed,) = read(line + "\n").log.found
    assert isinstance(placed.event, Inference)
    stated = {key: value for key, value in vars(placed.event).items() if value is not None}
    assert {
        key: stated[key] for key in stated if key not in ("format", "what", "line", "time_ms")
    } == pytest.approx(expected)


def test_the_best_value_keeps_the_label_that_the_tool_gave_it() -> None:
    (placed,) = read("2020-12-04 22:05:51,340-INFO: Best test box ap: 0.2752, in iter: 20000\n").log.found
    assert placed.event == BestMetric("paddledetection-2020", "box ap", 0.2752, 20000, line=1)


# -- Errors ----------------------------------------------------------------------------------------------------


def test_a_file_of_no_known_format_is_refused_with_its_beginning_and_the_formats() -> None:
    with pytest.raises(BenchError) as error:
        read("once upon a time\n")
    assert "once upon a time" in str(error.value)
    assert "mmengine-json" in str(error.value)


def test_a_log_of_another_format_than_the_named_one_is_refused() -> None:
    with pytest.raises(BenchError, match="of the format 'mmdet2'"):
        read(text("ppdet", run(3)), "mmdet2")


def test_a_misspelt_format_is_met_with_the_right_name() -> None:
    with pytest.raises(BenchError, match="did you mean mmengine"):
        read("", "mmengin")


def test_a_file_that_is_not_there_is_an_error_for_the_user(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="cannot read"):
        import_logs("auto", [tmp_path / "none.log"])


def test_a_damaged_gzip_file_is_an_error_for_the_user(tmp_path: Path) -> None:
    path = tmp_path / "train.log.gz"
    path.write_bytes(gzip.compress(text("mmdet2", run(500)).encode())[:-100])
    with pytest.raises(BenchError, match="cannot read"):
        import_logs("auto", [path])


def test_a_file_without_line_ends_does_not_fill_the_memory() -> None:
    with pytest.raises(BenchError, match="not a text log"):
        read(b"\0" * (1 << 25))


# -- Fuzzing ---------------------------------------------------------------------------------------------------


def _survives(data: bytes) -> None:
    """Nothing but the documented error, and a summary that can be shown."""
    try:
        result = read(data)
    except BenchError:
        return
    render(result)
    to_json(result)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    _survives(data)


def _seeds() -> list[bytes]:
    rows = [row for name in WRITERS for row in text(name, run(3)).splitlines()]
    rows += [
        *_EVALUATIONS.values(),
        *COCO_BLOCK.splitlines(),
        "Evaluate annotation type *bbox*",
        "use_ema = True",
    ]
    rows += ["980step / 1644s = 0.5961 step/s", "copypaste: AP,AP50", "copypaste: 1,2", "", "heading:"]
    rows += [
        '{"bbox/AP": 1e999, "iteration": 3, "total_loss": 1}',
        '{"coco/bbox_mAP": ' + "9" * 400 + ', "step": 1}',
    ]
    return [row.encode() for row in rows]


def _mutated(rng: random.Random, seeds: Sequence[bytes], count: int) -> bytes:
    """Many lines: whole, cut, with bytes changed, two glued, with digits blown up."""
    junk = [
        b"9" * 30,
        b"nan",
        b"inf",
        b"-",
        b"1e309",
        b"\xff\xfe",
        b"\x1b[31m",
        b"\r",
        b"{",
        b"[",
        b'"',
        b": ",
        b"0",
    ]
    out = []
    for _ in range(count):
        line = rng.choice(seeds)
        kind = rng.random()
        at = rng.randrange(len(line) + 1)
        if kind < 0.2:
            line = line[:at]
        elif kind < 0.6:
            line = line[:at] + rng.choice(junk) + line[at + rng.randrange(4) :]
        elif kind < 0.7:
            line = line[:at] + rng.choice(seeds)
        elif kind < 0.8:
            line = line[at:]
        out.append(line)
    return b"\n".join(out)


@pytest.mark.slow
def test_a_million_damaged_lines_raise_nothing_but_the_documented_error() -> None:
    rng, seeds = random.Random(20201204), _seeds()
    for _ in range(100):
        _survives(_mutated(rng, seeds, 10_000))


def test_some_damaged_lines_raise_nothing_but_the_documented_error() -> None:
    rng, seeds = random.Random(1), _seeds()
    for _ in range(10):
        _survives(_mutated(rng, seeds, 500))


def test_an_epoch_is_as_long_as_the_writers_say() -> None:
    lines = run(150, interval=20)
    section = only(read(text("mmdet2", lines)))
    assert section.last == 3000 == 3 * EPOCH_LENGTH
