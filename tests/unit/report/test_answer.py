"""The answer of a report: only equal work counts, and every ratio carries its marks."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from bench.judge.audit import Audit, Difference
from bench.record.models import Failure
from bench.record.run import Run
from bench.report import sections
from bench.report.answer import geometric_mean, headline, outcome_blocks, pivot_table
from bench.report.app.page import render_page
from bench.report.build import run_report
from bench.report.colours import CODEBASES, OTHERS, look, luminance
from bench.report.document import Column, Table
from bench.report.render import markdown
from bench.report.render.terminal import fit, show
from bench.report.text import cell
from bench.report.values import MARKS, Report, model_title
from bench.report.write import MARKDOWN_LIMIT, generate
from tests.helpers.report_runs import arm, equal_audits, judged, markdown_of, samples, tables_of, write_run

MODELS = ("faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "retinanet_r50_fpn")
UNEQUAL = (Difference("forward FLOPs", 100, 98, 0.01),)


def three(folder: Path) -> Run:
    """native beside torchvision on three models: 2, 4 and 8 times as fast."""
    arms = []
    for index, model in enumerate(MODELS):
        arms.append((arm("torchvision", {"model": model}), samples(1.0, noise=0.001, seed=index)))
        arms.append((arm("native", {"model": model}), samples(0.5 / 2**index, noise=0.001, seed=9 + index)))
    return write_run(folder / "run", arms)


def verdicts(run: Run, *words: str) -> dict[str, Audit]:
    """One verdict for each model's native arm."""
    found = {
        "equal": lambda name: Audit(name, "baseline"),
        "unequal": lambda name: Audit(name, "baseline", UNEQUAL),
        "not shown": lambda name: Audit(name, "baseline", (), ("observed steps",)),
    }
    ids = [record.id for record in run.arms() if record.codebase == "native"]
    return {name: found[word](name) for name, word in zip(ids, words, strict=True)}


def test_only_equal_work_counts_in_the_mean(tmp_path: Path) -> None:
    run = three(tmp_path)
    with judged(verdicts(run, "equal", "equal", "unequal")):
        report = run_report(run)
    mean = geometric_mean(report.rows)
    assert mean is not None
    assert mean.count == 2
    assert mean.value == pytest.approx(math.sqrt(2 * 4), rel=0.01)
    (sentence,) = headline(report)
    assert "faster than torchvision in 2 of 2 workloads of equal work, surely in 2" in sentence
    assert "Not counted: 1 unequal work ≠." in sentence


def test_each_comparison_has_a_mean_of_its_own(tmp_path: Path) -> None:
    arms = []
    for index, model in enumerate(MODELS[:2]):
        for number, (name, seconds) in enumerate((("torchvision", 1.0), ("native", 0.5), ("mmdet", 2.0))):
            arms.append((arm(name, {"model": model}), samples(seconds, noise=0.001, seed=3 * index + number)))
    run = write_run(tmp_path / "run", arms)
    equal = {
        record.id: Audit(record.id, "baseline") for record in run.arms() if record.codebase != "torchvision"
    }
    with judged(equal):
        report = run_report(run)
    means = [row for row in pivot_table(report).rows if "geometric mean, 2 rows" in str(row)]
    assert [float(next(one.sort for one in row if one.sort)) for row in means] == pytest.approx(
        [2, 0.5], rel=0.01
    )
    assert "native / torchvision" in str(means[0])
    assert "mmdet / torchvision" in str(means[1])


def test_without_equal_work_there_is_no_mean(tmp_path: Path) -> None:
    run = three(tmp_path)
    with judged(verdicts(run, "unequal", "not shown", "not shown")):
        report = run_report(run)
    (sentence,) = headline(report)
    assert "no ratio is shown to be of equal work, so there is no mean" in sentence
    assert "geometric mean" not in str(pivot_table(report))


def test_old_records_are_not_shown_to_be_equal(tmp_path: Path) -> None:
    report = run_report(three(tmp_path))
    assert {row.marks for row in report.rows if not row.is_baseline} == {("?",)}


def test_marks_stand_beside_every_ratio(tmp_path: Path) -> None:
    run = three(tmp_path)
    with judged(verdicts(run, "equal", "unequal", "not shown")):
        text = generate([run], tmp_path / "report").read_text()
    shown = [
        cell
        for table in tables_of(text)
        for row in table
        for cell in row
        if "[" in cell and "interval" not in cell
    ]
    assert sum("≠" in cell for cell in shown) == sum("?" in cell for cell in shown) == 2  # pivot and table
    figure = (tmp_path / "report" / "figures" / "ratios.svg").read_text()
    assert figure.count("≠") == figure.count("] ?") == 1
    assert "**" not in next(line for line in text.splitlines() if "≠" in line), "unequal work is not bold"


def test_stand_ins_few_launches_and_failures_are_marked(tmp_path: Path) -> None:
    few = samples(1.0, launches=2)
    arms = [
        (arm("torchvision"), few),
        (arm("mmdet", description={"kernels": "torchvision stand-ins"}), samples(1.0, launches=2)),
        (arm("native", status="failed", failure=Failure(reason="oom", message="out of memory")), few),
    ]
    run = write_run(tmp_path / "run", arms)
    with judged(equal_audits(run)):
        rows = run_report(run).rows
    assert [row.marks for row in rows] == [("‡",), ("†", "‡"), ("✕",)]
    assert set("".join(mark for row in rows for mark in row.marks)) <= set(MARKS)


def test_runs_that_were_not_interleaved_are_marked(tmp_path: Path) -> None:
    arms = [(arm(name), samples(1.0, seed=seed)) for seed, name in enumerate(("torchvision", "native"))]
    run = write_run(tmp_path / "run", arms, recipe={"name": "quickstart", "measure": {"interleave": False}})
    assert all("‡" in row.marks for row in run_report(run).rows)


@pytest.mark.parametrize("bad", ["zero", "nothing"])
def test_damaged_samples_are_named_and_break_nothing(tmp_path: Path, bad: str) -> None:
    frame = samples(1.0)
    frame = frame.assign(duration_ns=0) if bad == "zero" else frame[frame["round"] < 0]
    arms = [(arm("torchvision"), samples(1.0)), (arm("native"), frame), (arm("mmdet"), samples(0.9))]
    run = write_run(tmp_path / "run", arms)
    text = generate([run], tmp_path / "report").read_text()
    row = next(row for row in run_report(run).rows if row.codebase == "native")
    assert row.reason
    assert row.marks == ("✕",)
    assert row.reason in text
    assert "1.1" in text, "the other arm keeps its ratio"


def test_a_model_changed_by_options_loses_its_backbone() -> None:
    assert (
        model_title("mask_rcnn_r50_fpn", [{"kernels": "auto", "channels_last": True}])
        == "Mask R-CNN R-50-FPN"
    )
    changed = model_title("mask_rcnn_r50_fpn", [{}, {"cfg_options": {"model.backbone.depth": 18}}])
    assert changed == "Mask R-CNN, changed by options"


def test_options_keep_their_underscores(tmp_path: Path) -> None:
    arms = [
        (arm("torchvision"), samples(1.0)),
        (arm("native", options={"channels_last": True}), samples(1.0)),
    ]
    assert "channels_last=True" in markdown_of(write_run(tmp_path / "run", arms))


def test_outputs_stay_small_with_many_arms(tmp_path: Path) -> None:
    report = run_report(three(tmp_path))
    groups = []
    for number in range(150):
        for group in report.groups:
            told = tuple(
                replace(row, arm=f"{row.arm}-{number}", warnings=(f"{number} " * 40,)) for row in group.rows
            )
            groups.append(replace(group, rows=told, levels={"seed": number}))
    many = Report((replace(report, groups=tuple(groups)),))
    text = markdown.render(sections.report_blocks(many, [{}]), MARKDOWN_LIMIT)
    assert len(text.encode()) <= MARKDOWN_LIMIT
    pivot = tables_of(text)[0]
    assert len(pivot) == 101
    assert len(pivot[0]) <= 7
    assert "Left out here for length" in text
    assert "<summary>Reproduce</summary>" in text
    assert len(render_page(many).encode()) < 1_000_000


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_table_fits_and_keeps_numbers(tmp_path: Path, width: int) -> None:
    output = io.StringIO()
    show(outcome_blocks(run_report(three(tmp_path))), Console(file=output, width=width))
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    ratios = [line for line in lines if "[" in line and "interval" not in line]
    assert len(ratios) == 3
    assert all("] ?" in line for line in ratios)


def test_a_narrow_cell_parts_between_its_names() -> None:
    names, ratio = cell("native, EMA on / native, EMA off"), cell("1.9 [1.8, 2.0] ≠")
    block = Table((Column("codebase"), Column("ratio", True)), ((names, ratio),))
    assert fit(block, 40).rows[0][0].text == "native, EMA on /\nnative, EMA off"
    assert "\n" not in fit(block, 40, fold=False).rows[0][0].text


def test_narrow_cells_keep_both_names() -> None:
    names = "torchvision fasterrcnn_mobilenet_v3_large_320_fpn / python mypackage.models:build"
    block = Table((Column("codebase"), Column("ratio", True)), ((cell(names), cell("2.5 [0.083, 75] ◇‡")),))
    whole = fit(block, 60).rows[0][0].text
    assert (whole.split(), max(map(len, whole.splitlines())) <= 42) == (names.split(), True)
    shown = fit(block, 60, fold=False).rows[0][0].text
    assert len(shown) <= 42
    arm, base = shown.split(" / ")
    assert (arm[:5], arm[-3:], base[:5], base[-3:]) == ("torch", "fpn", "pytho", "ild")  # codespell:ignore


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_are_fixed_and_seen_in_both_themes() -> None:
    assert look("native") == ("#0072b2", "o")
    assert look("somebody else's") == look("somebody else's")
    for colour, _ in (*CODEBASES.values(), *OTHERS):
        assert contrast(colour, "#ffffff") >= 3, colour
        assert contrast(colour, "#0d1117") >= 3, colour


def test_report_json_holds_verdicts_and_marks(tmp_path: Path) -> None:
    run = three(tmp_path)
    with judged(verdicts(run, "equal", "unequal", "not shown")):
        generate([run], tmp_path / "report")
    groups = json.loads((tmp_path / "report" / "report.json").read_text())["runs"][0]["groups"]
    assert [group["rows"][1]["marks"] for group in groups] == [[], ["≠"], ["?"]]


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({"state": "fail", "base": "main", "head": "work",
          "comparisons": [{"name": "native", "reason": "worse by 5 %"}]},
         "REGRESSION: work against main. native: worse by 5 %."),
        ({"state": "pass", "base": "main", "head": "work", "comparisons": 3}, "PASS: work against main."),
        ({}, "A check without an outcome: it was interrupted."),
    ],
)  # fmt: skip
def test_a_check_says_its_outcome_first(tmp_path: Path, check: dict[str, object], said: str) -> None:
    run = write_run(tmp_path / "run", [(arm("torchvision"), samples(1.0))], check=check)
    assert headline(run_report(run))[0] == said
