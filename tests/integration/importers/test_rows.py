"""What stands around the lines of a log: labels, wraps, tables, notebooks, traps."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.importers import import_logs, known_formats, render
from bench.importers.events import Evaluation, Inference
from tests.helpers.logwriters import COCO_BLOCK, START, TEXT, WRITERS, Line, only, read, run, text

COLLAPSED = ["mmengine", "detectron2", "torchvision", "detectors", "maskrcnn-benchmark"]


@pytest.mark.parametrize(
    ("label", "rank"),
    [
        ("0: ", 0),
        (" 3: ", 3),
        ("[rank2]: ", 2),
        ("[default1]:", 1),
        ("[trainer3]:", 3),
        ("[1,5]<stdout>:", 5),
        ("trainer_1  | ", None),
        ("[pod/train-0/pytorch] ", None),
        ("2024-05-01T10:00:00.123456789Z ", None),
        ("(RayTrainWorker pid=1234, ip=10.0.0.2) ", None),
        ("Nov 28 20:00:00 host python[123]: ", None),
        ("train.log:17:", None),
        ("17:", None),
        ("     17\t", None),
        ("> ", None),
        ("# ", None),
        (">> > ", None),
        ("    ", None),
        ("some-launcher@node7 ", None),
        ("web | 2024-05-01T10:00:00Z 1: ", 1),
    ],
)
def test_labels_before_lines_change_nothing(label: str, rank: int | None) -> None:
    for name in WRITERS:
        result = read("".join(f"{label}{row}\n" for row in text(name, run(5)).splitlines()))
        assert (name, only(result).lines, only(result).rank) == (name, 5, rank)
        assert result.log.broken_lines == 0


@pytest.mark.parametrize("label", ["0: ", "trainer_1  | ", "> ", "\t", "2024-05-01T10:00:00Z "])
def test_labels_before_other_lines_change_nothing(label: str) -> None:
    rows = [
        "Test: Total time: 0:04:00 (0.0480 s / it)",
        '{"bbox/AP": 40.25, "bbox/APs": 24.0, "iteration": 89999}',
        '{"mode": "val", "epoch": 1, "iter": 5000, "lr": 0.02, "bbox_mAP": 0.374}',
    ]
    events = [placed.event for placed in read("\n".join(label + row for row in rows) + "\n").log.found]
    assert [type(event) for event in events] == [Inference, Evaluation, Evaluation]


@pytest.mark.parametrize("end", ["   ", "\t", "\u00a0", " \r", "`"])
def test_blanks_at_the_end_change_nothing(end: str) -> None:
    for name in WRITERS:
        result = read("".join(f"{row}{end}\n" for row in text(name, run(5)).splitlines()))
        assert (name, only(result).lines) == (name, 5)


@pytest.mark.parametrize("name", COLLAPSED)
def test_blanks_that_a_web_page_collapsed_change_nothing(name: str) -> None:
    rows = [" ".join(row.split()) for row in text(name, run(5)).splitlines()]
    result = read("\n".join(rows) + "\n")
    assert (only(result).lines, result.log.broken_lines) == (5, 0)


@pytest.mark.parametrize("width", [60, 79, 80, 100, 120, 181])
def test_lines_wrapped_by_a_terminal_are_put_together(width: int) -> None:
    lines = run(8)
    for name in TEXT:
        rows = text(name, lines).splitlines()
        wrapped = [row[at : at + width] for row in rows for at in range(0, len(row), width)]
        result = read("\n".join(wrapped) + "\n")
        assert (name, only(result).lines, result.log.broken_lines) == (name, 8, 0)
        for line, point in zip(lines, only(result).curve, strict=True):
            for value in WRITERS[name].values:
                assert getattr(point.fields, value) == pytest.approx(getattr(line, value)), value


@pytest.mark.parametrize("width", [60, 77, 78, 79])
def test_a_wrapped_summary_is_put_together(width: int) -> None:
    rows = COCO_BLOCK.splitlines()
    wrapped = [row[at : at + width] for row in rows for at in range(0, len(row), width)]
    (placed,) = read("\n".join(["Evaluating bbox...", *wrapped]) + "\n").log.found
    assert isinstance(placed.event, Evaluation)
    assert list(placed.event.metrics.values()) == [
        0.275, 0.468, 0.283, 0.077, 0.287, None, 0.257, 0.387, 0.408, 0.152, 0.460, 0.657
    ]  # fmt: skip


def test_a_line_after_a_whole_one_is_not_joined() -> None:
    rows = text("mmdet2", run(4)).splitlines()
    rows.insert(2, "17 images were skipped")
    rows.insert(1, "12345")
    fields = only(read("\n".join(rows) + "\n")).curve[0].fields
    assert fields.losses == {"loss_cls": 0.25, "loss": 0.75}


def test_padding_within_a_word_or_number_is_taken_out() -> None:
    # github.com/TeleeMa/DAA-DA8, README: a terminal's copy
    row = "[08/25 12:23:{} d2.utils.events]:  eta: 5:33:13  iter: {}  loss_cls: 4.116  time: {}_time: 0.0{}"
    pad = " " * 30
    rows = [
        row.format("03", 479, f"0.8208{pad}data", "276  lr: 5.035e-05  max_mem: 5069M"),
        row.format("20", 499, f"0.8207  d{pad}ata", "276  lr: 5.035e-05  max_mem: 5069M"),
        row.format("36", 519, "0.8210  data", f"2{pad}76  lr: 5.035{pad}e-05  max_mem: 5069M"),
    ]
    curve = only(read("\n".join(rows) + "\n")).curve
    assert {(point.fields.data_s, point.fields.lr) for point in curve} == {(0.0276, 5.035e-05)}
    assert [dict(point.fields.other) for point in curve] == [{}] * 3


def test_json_spread_over_several_lines_is_read() -> None:
    # github.com/facebookresearch/Detectron/issues/247
    rows = ['"eta": "1 day, 13:30:44",', '  "iter": 120000,', '  "loss": 0.562384, ', '  "mb_qsize": 64, ']
    for begin in ('{"accuracy_cls": 0.923639, ', 'json_stats: {\n"accuracy_cls": 0.923639,'):
        section = only(read("\n".join([begin, *rows, '  "time": 0.562685}', ""])))
        assert (section.first, section.curve[0].fields.s_per_iter) == (120000, 0.562685)


def test_epochs_of_detr_that_are_not_printed_are_counted() -> None:
    rows = [
        row.replace(f', "epoch": {n * 20 - 1}', "")
        for n, row in enumerate(text("detr", run(3)).split("\n"), 1)
    ]
    result = read("\n".join(rows))
    assert (only(result).first, only(result).last, only(result).lines) == (0, 2, 3)
    assert [placed.after_iteration for placed in result.log.found] == [0, 1, 2]


def test_lines_without_time_are_a_section_of_their_own() -> None:
    rows = text("ppdet", run(6)).splitlines()
    bare = [row.partition("] ")[2] for row in rows[3:]]
    sections = read("\n".join([*rows[:3], *bare]) + "\n").log.sections
    assert [(section.lines, section.wall_clock is None) for section in sections] == [(3, False), (3, True)]


@pytest.mark.parametrize("lost", ["", "^[", "\\x1b", "\\033", "␛"])
def test_colours_without_their_escape_character_change_nothing(lost: str) -> None:
    for name in TEXT:
        rows = [f"{lost}[32m{row}{lost}[0m" for row in text(name, run(5)).splitlines()]
        assert (name, only(read("\n".join(rows) + "\n")).lines) == (name, 5)


# -- Restarts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("dead_lines", [1, 3, 7])
def test_a_restart_that_overtakes_the_dead_run_is_one_section(name: str, dead_lines: int) -> None:
    dead = [replace(line, lr=0.01) for line in run(dead_lines)]
    again = run(20, start=START + timedelta(minutes=30))
    sections = read(text(name, [*dead, *again])).log.sections
    assert [section.lines for section in sections] == [dead_lines, 20]
    assert [(section.restart, section.parallel) for section in sections] == [(False, False), (True, False)]


# -- Tables and notebooks --------------------------------------------------------------------------------------

ULTRALYTICS = """epoch,time,train/box_loss,train/cls_loss,metrics/precision(B),metrics/mAP50(B),metrics/mAP50-95(B),metrics/mAP50-95(M),lr/pg0
1,57.5,1.25,1.9,0.63,0.53,0.37,0.31,0.0033
2,112.25,1.2,1.8,0.65,0.55,0.38,0.32,0.0066
3,168.0,1.15,1.75,0.66,0.56,0.39,0.33,0.0099
"""  # noqa: E501
YOLOV5 = """               epoch,      train/box_loss,      train/obj_loss,   metrics/precision,     metrics/mAP_0.5,metrics/mAP_0.5:0.95,               x/lr0
                   0,            0.107,             0.025,            0.52,             0.44,             0.21,            0.07
                   1,            0.099,             0.024,            0.55,             0.46,             0.22,            0.05
"""  # noqa: E501


def test_results_csv_of_ultralytics_is_read() -> None:
    result = read(ULTRALYTICS)
    section = only(result)
    assert (section.format, section.unit, section.first, section.last) == ("ultralytics", "epoch", 1, 3)
    assert section.wall_clock is not None
    assert section.wall_clock.s_per_iter == pytest.approx((168 - 57.5) / 2)
    assert section.curve[1].fields.losses == {"train/box_loss": 1.2, "train/cls_loss": 1.8}
    found = [
        (one.event, one.after_iteration) for one in result.log.found if isinstance(one.event, Evaluation)
    ]
    assert [(event.task, at, event.metrics["AP"]) for event, at in found][:3] == [
        ("bbox", 1, 0.37),
        ("segm", 1, 0.31),
        ("bbox", 2, 0.38),
    ]


def test_results_csv_of_yolov5_is_read() -> None:
    result = read(YOLOV5)
    assert (only(result).first, only(result).last) == (0, 1)
    evaluations = [one.event for one in result.log.found if isinstance(one.event, Evaluation)]
    assert [(one.metrics["AP"], one.metrics["AP50"]) for one in evaluations] == [(0.21, 0.44), (0.22, 0.46)]


def test_outputs_of_a_notebook_are_read(tmp_path: Path) -> None:
    rows = text("detectron2", run(4)).splitlines(keepends=True)
    outputs = [
        {"output_type": "stream", "name": "stdout", "text": rows[:2]},
        {"output_type": "stream", "name": "stderr", "text": "a warning"},
        {"output_type": "stream", "name": "stdout", "text": "".join(rows[2:])},
        {"output_type": "execute_result", "data": {"text/plain": ["OrderedDict()"]}},
        {"output_type": "display_data", "data": {"image/png": "AAAA"}},
    ]
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"outputs": outputs}], "nbformat": 4}))
    assert only(import_logs("auto", [path])).lines == 4


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"cells": 3}', '{"cells": [{"outputs": [1]}]}'])
def test_a_damaged_notebook_is_refused_with_a_hint(tmp_path: Path, content: str) -> None:
    path = tmp_path / "train.ipynb"
    path.write_text(content)
    with pytest.raises(BenchError, match="copy the printed lines"):
        import_logs("auto", [path])


# -- Traps -----------------------------------------------------------------------------------------------------

FRAGMENTS = [
    " ",
    "[",
    "1",
    "a ",
    ": ",
    "{",
    "1/",
    "Epoch [1][",
    "lr: 1, ",
    "eta: 1 day, ",
    "0: ",
    "| AP ",
    "AP, ",
]


@pytest.mark.parametrize("name", known_formats())
def test_crafted_lines_take_linear_time(name: str) -> None:
    size = 440_000 if name == "mmdet2" else 110_000
    line = WRITERS[name].write(run(1)[0]) if name in WRITERS else ULTRALYTICS.splitlines()[0]
    start = time.process_time()
    for head in (line, line[: len(line) // 2]):
        for fragment in FRAGMENTS:
            try:
                read(f"{head}{fragment * (size // len(fragment))}x\n")
            except BenchError:
                continue
    # A quadratic pattern takes longer than that for one of these.
    assert time.process_time() - start < 20


def test_a_line_of_more_than_a_megabyte_is_broken() -> None:
    rows = text("mmdet2", run(3)).splitlines()
    result = read("\n".join([*rows, rows[0] + " " * (1 << 20) + "x"]) + "\n")
    assert (only(result).lines, result.log.broken_lines) == (3, 1)


@pytest.mark.parametrize(
    "trap", ["\x1b]52;c;aGk=\x07", "\x1b[2J", "\x9b31m", "\u202e", "\u2066", "\x07", "\x00"]
)
def test_terminal_escapes_are_shown_and_not_obeyed(trap: str) -> None:
    rows = text("mmdet2", run(3)).splitlines()
    data = "\n".join(
        [
            "",
            f"my {trap} run:",
            *rows[:2],
            f"Traceback (most recent call last){trap}",
            rows[2][:90] + trap,
            f"2021-12-31 23:55:00,000 - mmdet - INFO - Epoch(val) [1][5]\tm{trap}AP: 0.5",
        ]
    )
    shown = render(read(data + "\n"))
    assert trap not in shown
    assert all(char.isprintable() or char == "\n" for char in shown)


def test_two_ranks_of_a_labelled_log_are_summed() -> None:
    lines = [Line(line.iteration, line.when, images_per_s=10.0) for line in run(6)]
    rows = [f"[rank{rank}]: {row}" for row in text("ppdet", lines).splitlines() for rank in (0, 1)]
    result = read("\n".join(rows) + "\n")
    assert "20 images/s over 2 ranks" in render(result)
