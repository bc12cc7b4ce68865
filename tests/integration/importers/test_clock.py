"""Rates by the clock of a log, and what does not count."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from bench.errors import BenchError
from bench.importers import render
from tests.helpers.logwriters import (
    EVALUATIONS,
    START,
    TIMED,
    WRITERS,
    Line,
    only,
    read,
    run,
    text,
)


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
def test_restart_from_checkpoint_is_another_section_without_its_pause(name: str) -> None:
    lines = run(40)
    resumed = run(60, start=START + timedelta(hours=3))[24:]
    sections = read(text(name, lines + resumed)).log.sections
    assert [(section.lines, section.restart) for section in sections] == [(40, False), (36, True)]
    for section in sections:
        assert section.wall_clock is not None
        assert section.wall_clock.s_per_iter == pytest.approx(0.5)


def test_tools_own_lists_are_not_taken_for_headings_between_logs() -> None:
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


@pytest.mark.parametrize("name", TIMED)
def test_iterations_during_which_evaluation_ran_are_left_out_and_named(name: str) -> None:
    lines = run(20)
    later = [Line(line.iteration, line.when + timedelta(seconds=50), 0.5) for line in lines[10:]]
    data = text(name, lines[:10]) + EVALUATIONS[name] + "\n" + text(name, later)
    result = read(data)
    section = only(result)
    assert section.wall_clock is not None
    assert section.wall_clock.s_per_iter == pytest.approx(0.5)
    (left_out,) = section.excluded
    offset = WRITERS[name].first_iteration - 1
    assert (left_out.first, left_out.last) == (lines[9].iteration + offset, lines[10].iteration + offset)
    assert left_out.reason == "an evaluation ran"
    assert "an evaluation ran" in render(result)


def test_cards_are_those_of_the_run() -> None:
    first = "".join(f"| distributed init (rank {rank}): env://\n" for rank in (0, 3, 1, 2)) + text(
        "torchvision", run(9)
    )
    second = "".join(f"| distributed init (rank {rank}): env://\n" for rank in (1, 0)) + text(
        "torchvision", run(5)
    )
    assert [section.cards for section in read(first + second).log.sections] == [4, 2]
    third = "init nccl context nranks: 8 local rank: 0\n" + text("ppdet", run(9))
    assert [section.cards for section in read(first + third).log.sections] == [4, 8]


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
