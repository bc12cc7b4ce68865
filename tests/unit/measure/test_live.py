"""What a user sees while a run measures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bench.judge.numbers import duration_text
from bench.measure.live import SoFar
from bench.measure.progress import Bar, Board, Lines
from bench.recipe.workload import Workload
from bench.record.models import Failure


def plan() -> Any:
    """Two arms of one cell, `fast` twice as fast per image; 2 launches of 3 rounds each."""
    work = Workload(task="train", model="retinanet_r50_fpn", batch_size=2)
    arms = [SimpleNamespace(id=name, cell="c", baseline="slow", workload=work) for name in ("slow", "fast")]
    return SimpleNamespace(arms=arms, measure=SimpleNamespace(launches=2, rounds=3))


def blocks() -> Iterator[tuple[int, int, int, float]]:
    """Arm, launch, round and seconds."""
    for launch in range(2):
        for round_ in range(-1, 3):
            yield 0, launch, round_, 1.0 + 0.01 * round_
            yield 1, launch, round_, 0.5 + 0.004 * round_ * (launch + 1)


FAILURE = Failure(reason="crash", message="gone", stage="run_block", log="logs/x")


def test_ratio_so_far_has_an_interval_from_second_round() -> None:
    so_far, widths = SoFar(plan()), []
    for arm, launch, round_, seconds in blocks():
        so_far.add(("slow", "fast")[arm], launch, round_, seconds)
        found = so_far.ratio("fast")
        if found is not None:
            widths.append(found.high - found.low)
    assert so_far.ratio("slow") is None, "the baseline"
    assert found is not None
    assert found.value == pytest.approx(2.0, rel=0.02)
    assert widths[0] == float("inf")
    assert widths[-1] < float("inf")


def test_failed_arm_leaves_the_total() -> None:
    so_far = SoFar(plan())
    assert so_far.total == 16
    so_far.add("fast", 0, -1, 0.5)
    so_far.failed.add("fast")
    assert (so_far.done, so_far.total) == (1, 9)


def test_rounds_measured_again_are_added_to_the_total() -> None:
    so_far = SoFar(plan())
    for arm, launch, round_, seconds in blocks():
        if launch == 0:
            so_far.add(("slow", "fast")[arm], launch, round_, seconds)
    so_far.add("slow", 0, 3, 1.0)
    so_far.add("fast", 0, 3, 0.5)
    assert (so_far.done, so_far.total) == (10, 18), "the second launch is still to come"


def test_lines_say_place_time_left_and_ratio() -> None:
    output, asked = io.StringIO(), plan()
    lines = Lines(Console(file=output, width=80, highlight=False), SoFar(asked))
    for arm, launch, round_, seconds in blocks():
        lines.block(asked.arms[arm], launch, round_, seconds)
    shown = output.getvalue().splitlines()
    assert shown[0].startswith("[1/16, ")
    assert "left] slow  launch 1  warm-up" in shown[0]
    assert "ratio so far" not in shown[1]
    assert shown[-1].startswith(
        "[16/16, 0 s left] fast  launch 2  round 3  0.5160 s/iter  ratio so far 2.00 [1.90"
    )


def test_board_shows_cell_with_baseline_and_failure() -> None:
    output, asked = io.StringIO(), plan()
    console = Console(file=output, width=78, force_terminal=False)
    with Board(console=console, auto_refresh=False) as board:
        bar = Bar(console, SoFar(asked), board, board.add_task("x", total=16))
        for arm, launch, round_, seconds in blocks():
            bar.block(asked.arms[arm], launch, round_, seconds)
        console.print(board.get_renderable())
        bar.failed(asked.arms[1], FAILURE)
        bar.block(asked.arms[0], 2, 0, 1.0)
        console.print(board.get_renderable())
    first, _, second = output.getvalue().partition("FAILED")
    assert "baseline" in first
    assert "[1." in first
    assert "failed" in second
    assert max(map(len, output.getvalue().splitlines())) <= 78


@pytest.mark.parametrize("width", [60, 80])
def test_narrow_board_shows_progress_and_whole_numbers(width: int) -> None:
    output, asked = io.StringIO(), plan()
    for arm in asked.arms:
        arm.id = f"torchvision-task-train-model-faster-rcnn-r50-fpn-ema-{arm.id}"
        arm.baseline = f"{arm.id[: -len('slow')]}slow"
    console = Console(file=output, width=width, force_terminal=False)
    with Board(console=console, auto_refresh=False) as board:
        bar = Bar(console, SoFar(asked), board, board.add_task("x", total=16))
        for arm, launch, round_, seconds in blocks():
            bar.block(asked.arms[arm], launch, round_, seconds)
        console.print(board.get_renderable())
    progress, _, slow, fast = output.getvalue().splitlines()[-4:]
    assert "16/16" in progress
    assert slow.split()[1:] == ["1.010", "baseline", "6"]
    assert fast.split()[0].startswith("torchvis")
    assert fast.split()[0].endswith("fast")
    assert fast.split()[-1] == "6"
    assert "…" not in "".join(fast.split()[1:])


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (130, "2 min"), (9000, "2.5 h")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
