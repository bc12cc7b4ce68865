"""Logs beside each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.errors import BenchError
from bench.importers import ImportResult, compare_logs, render_comparison
from tests.helpers.logwriters import COCO_BLOCK, read, run, text


def log(name: str = "mmdet2", s_per_iter: float = 0.5, lines: int = 40, **values: Any) -> ImportResult:
    return read(text(name, [replace(line, **values) for line in run(lines, s_per_iter=s_per_iter)]))


def test_speed_is_of_steps_without_images() -> None:
    comparison = compare_logs([log(), log(s_per_iter=0.25)])
    assert (comparison[1].speed, comparison[1].speed_error) == (pytest.approx(2), 0)
    assert "give --images-per-step" in render_comparison(comparison)


def test_images_per_step_make_steps_of_two_sizes_comparable() -> None:
    comparison = compare_logs([log(), log(s_per_iter=0.25)], images_per_step=[16, 4])
    assert [column.images_per_s for column in comparison] == pytest.approx([32, 16])
    assert (comparison[1].speed, comparison[1].speed_error) == (pytest.approx(0.5), 0)


def test_errors_of_whole_seconds_add_up() -> None:
    comparison = compare_logs([log("mmengine"), log("detectron2")])
    seconds = [round(column.s_per_step * 780) for column in comparison if column.s_per_step]
    assert (comparison[1].speed, comparison[1].speed_error) == (
        pytest.approx(1),
        pytest.approx(sum(1 / n for n in seconds)),
    )


def test_memory_accuracy_and_quarters_stand_side_by_side() -> None:
    evaluated = read(text("mmdet2", run(40)) + "Evaluate annotation type *bbox*\n" + COCO_BLOCK)
    shown = render_comparison(compare_logs([evaluated, log(memory_mb=5000)]))
    rows = {line[:19].strip(): line[19:].split() for line in shown.splitlines()}
    assert rows["max MB allocated"] == ["3803", "5000"]
    assert rows["bbox AP"] == ["0.275", "–"]
    assert "bbox APl" not in rows  # undefined in one, missing in the other
    assert rows["by quarters, s/step"][:4] == ["0.5,", "0.5,", "0.5,", "0.5"]


def test_the_evaluation_is_of_the_section() -> None:
    first = text("mmdet2", run(40)) + "Evaluate annotation type *bbox*\n" + COCO_BLOCK
    two = read(first + text("mmdet2", [replace(line, lr=0.3) for line in run(60, start=run(400)[-1].when)]))
    longest, named = compare_logs([two, two]), compare_logs([two, two], sections=[2, 1])
    assert [column.section for column in longest] == [2, 2]
    assert [bool(column.accuracy) for column in named] == [False, True]


def test_rates_of_one_card_are_multiplied() -> None:
    cards = read("init nccl context nranks: 4 local rank: 0\n" + text("ppdet", run(20)))
    comparison = compare_logs([cards, log("ppdet")])
    assert [column.images_per_s for column in comparison] == pytest.approx([96, 24])
    assert "does not say how many" in render_comparison(comparison)


@pytest.mark.parametrize(
    ("images", "sections", "message"),
    [
        ([1, 2, 3], [], "given 3 times for 2 logs"),
        ([], [4], "no section 4"),
        ([0], [], "above 0"),
    ],
)
def test_wrong_options_are_refused(images: list[float], sections: list[int], message: str) -> None:
    with pytest.raises(BenchError, match=message):
        compare_logs([log(), log()], images, sections)


def test_a_log_without_training_lines_is_refused() -> None:
    with pytest.raises(BenchError, match="no training line"):
        compare_logs([log(), read("Overall fps: 12.4 img / s\n")])
    with pytest.raises(BenchError, match="two logs"):
        compare_logs([log()])


def test_the_command_prints_json(tmp_path: Path) -> None:
    paths = []
    for number, s_per_iter in enumerate((0.5, 0.25)):
        paths.append(tmp_path / f"{number}.log")
        paths[-1].write_text(text("mmdet2", run(40, s_per_iter=s_per_iter)))
    shown = CliRunner().invoke(app, ["compare-logs", *map(str, paths), "--images-per-step", "8", "--json"])
    assert shown.exit_code == 0
    logs = json.loads(shown.stdout)["logs"]
    assert [one["images_per_s"] for one in logs] == pytest.approx([16, 32])
    assert logs == json.loads(json.dumps(logs))
    assert logs[1]["speed"] == pytest.approx(2)


def test_undefined_accuracy_is_null_in_json() -> None:
    evaluated = read(text("mmdet2", run(40)) + "Evaluate annotation type *bbox*\n" + COCO_BLOCK)
    (first, _) = compare_logs([evaluated, evaluated])
    assert first.accuracy["bbox"]["APl"] is None
