"""Damaged, mixed and rotated logs."""

from __future__ import annotations

import gzip
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.importers import import_logs, render, to_json
from tests.helpers.logwriters import (
    TEXT,
    TIMED,
    WRITERS,
    Line,
    only,
    read,
    run,
    text,
)


@pytest.mark.parametrize("name", WRITERS)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_log_cut_anywhere_never_gives_value_that_was_not_written(name: str, data: st.DataObject) -> None:
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
def test_line_cut_by_crash_is_broken_and_not_guessed(name: str, data: st.DataObject) -> None:
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
def test_value_that_is_not_number_makes_line_broken(name: str) -> None:
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
def test_two_ranks_in_one_file_are_two_runs(name: str) -> None:
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
def test_rest_of_progress_bar_does_not_hide_line(name: str) -> None:
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
