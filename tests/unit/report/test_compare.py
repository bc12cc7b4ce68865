"""`bench compare`: two runs or two arms side by side, and tables of a terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.errors import BenchError
from bench.record.run import Run
from bench.record.samples import block_times
from bench.report import tables
from bench.report import text as text_module
from bench.report.build import run_report
from bench.report.comparison import Side, comparison_blocks, comparison_table, resolve_side
from bench.report.render import markdown
from bench.report.render.terminal import show
from bench.report.text import to_json
from tests.helpers.report_runs import (
    CRASH,
    arm,
    ratio_of,
    samples,
    small,
    write_run,
)

# -- Compare -----------------------------------------------------------------------------------------------------


def test_compare_of_two_arms_gives_the_interleaved_ratio(reported: tuple[Run, Path, str]) -> None:
    run = reported[0]
    on, off = (
        next(a.id for a in run.arms() if a.codebase == "native" and a.levels["ema"] is level)
        for level in (True, False)
    )
    result = comparison_table(Side(run, off), Side(run, on))
    (pair,) = result.rows
    assert pair.interleaved
    assert pair.ratio == ratio_of(block_times(run.samples(on)), block_times(run.samples(off)))
    assert pair.ratio.value < 1, "EMA costs time"
    assert pair.differences == ("ema: False → True",)


def test_compare_of_two_runs_warns_of_what_differs(tmp_path: Path) -> None:
    old = small(tmp_path / "old")
    environment = {"python": "3.11.7", "packages": {"native": "1.3.0"}}
    new = write_run(
        tmp_path / "new" / "run",
        [(arm("native", environment=environment), samples(0.5, seed=2)), (arm("mmdet"), samples(1.0))],
        machine={"host": "other", "cpu": {"model": "Another CPU"}, "load_average": [3.0]},
    )
    result = comparison_table(Side(old), Side(new))
    (pair,) = result.rows
    assert not pair.interleaved
    assert pair.ratio is not None
    assert pair.ratio.value == pytest.approx(2.0, rel=0.03), "above 1: the second run is faster"
    assert result.only_a == ("torchvision (the other side has no such codebase)",)
    assert result.only_b == ("mmdet (the other side has no such codebase)",)
    text = markdown.render(comparison_blocks(result))
    assert "cpu.model: Test CPU @ 2.0 GHz → Another CPU" in text
    assert "native, packages.native: 1.2.3 → 1.3.0" in text
    assert text_module.NOT_INTERLEAVED in text
    assert not result.same_kind
    assert not any(text.startswith(("host", "load")) for text in result.machine)
    assert json.loads(json.dumps(to_json(result)))["rows"][0]["ratio"]["value"] == pair.ratio.value


def test_compare_shows_a_failed_arm_without_a_ratio(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        [(arm("torchvision"), samples(1.0)), (arm("native", status="failed", failure=CRASH), samples(1.0))],
    )
    result = comparison_table(Side(run, "torchvision"), Side(run, "native"))
    assert result.rows[0].ratio is None
    assert "B failed: crash" in markdown.render(comparison_blocks(result))


def test_compare_of_runs_with_nothing_in_common_is_refused(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [(arm("a"), samples(1.0))])
    two = write_run(tmp_path / "two", [(arm("b"), samples(1.0))])
    with pytest.raises(BenchError, match="no arm in common"):
        comparison_table(Side(one), Side(two))


def test_a_side_is_a_run_or_an_arm(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quick" / "20261122T100000Z-abcd", [(arm("native"), samples(1.0))])
    assert {resolve_side(name, tmp_path).name for name in ("latest", "20261122")} == {run.folder.name}
    side = resolve_side("latest:native", tmp_path)
    assert (side.run.folder, side.arm) == (run.folder, "native")
    with pytest.raises(BenchError, match="did you mean native"):
        resolve_side("latest:nativ", tmp_path)


def test_an_arm_is_found_by_words(tmp_path: Path) -> None:
    arms = [
        (arm(codebase, {"ema": ema}, workload={"task": "train"}), samples(1.0))
        for codebase in ("mmdet", "native")
        for ema in (False, True)
    ]
    write_run(tmp_path / "quick" / "20261122T100000Z-abcd", arms)
    assert resolve_side("latest:mmdet,train,ema=off", tmp_path).arm == arms[0][0].id
    with pytest.raises(BenchError, match="several arms fit 'mmdet'"):
        resolve_side("latest:mmdet", tmp_path)
    with pytest.raises(BenchError, match="unknown arm 'mmdet,infer'"):
        resolve_side("latest:mmdet,infer", tmp_path)


def test_latest_is_a_run_that_measured_something(tmp_path: Path) -> None:
    wanted = write_run(tmp_path / "a" / "20261122T100000Z-aaaa", [(arm("native"), samples(1.0))])
    check = write_run(tmp_path / "a" / "20261122T110000Z-bbbb", [(arm("native"), samples(1.0))])
    check.write_record(check.record().model_copy(update={"kind": "check"}))
    broken = write_run(tmp_path / "a" / "20261122T120000Z-cccc", [])
    broken.write_record(broken.record().model_copy(update={"status": "failed"}))
    assert resolve_side("latest", tmp_path).run.folder == wanted.folder


def test_the_terminal_shows_labels_as_text(tmp_path: Path) -> None:
    arms = [
        (arm("torchvision"), samples(1.0, seed=1)),
        (arm("native", label="[red]x[/] \x1b[2J"), samples(1.0, seed=2)),
    ]
    run = write_run(tmp_path / "run", arms)
    output = io.StringIO()
    group = run_report(run).groups[0]
    show([tables.group_table(group)], Console(file=output, width=200))
    assert "[red]x[/]" in output.getvalue()
    assert "\x1b" not in output.getvalue()


def test_a_comparison_fits_eighty_columns(reported: tuple[Run, Path, str]) -> None:
    run = reported[0]
    ids = [record.id for record in run.arms() if record.codebase in ("torchvision", "native")]
    output = io.StringIO()
    show(
        comparison_blocks(comparison_table(Side(run, ids[0]), Side(run, ids[1]))),
        Console(file=output, width=80),
    )
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert any("B ÷ A [95 % interval]" in line for line in lines), "no title is cut"
    assert any("] ?" in line for line in lines)
