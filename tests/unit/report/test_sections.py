"""What stands in a report, and how it reads as Markdown and figures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.judge import noise
from bench.recipe.codebases import Codebase
from bench.record.run import Run
from bench.record.samples import block_times
from bench.report.document import Bullets, Cell, Code, Column, Heading, Table, Text
from bench.report.render import markdown
from bench.report.write import generate
from tests.helpers.report_runs import (
    MARKDOWN,
    RATIO,
    arm,
    markdown_of,
    rows_of,
    samples,
    small,
    tables_of,
    write_run,
)

# -- Content -----------------------------------------------------------------------------------------------------


def test_warnings_of_run_arms_and_statistics_are_shown(tmp_path: Path) -> None:
    arms = [
        (arm("torchvision"), samples(1.0, seed=1)),
        (arm("native", warnings=["own random weights"]), samples(1.0, noise=0.6, seed=2)),
    ]
    run = write_run(tmp_path / "run", arms, warnings=["load was 7 before the start"], git={"dirty": True})
    text = markdown_of(run)
    warnings = text.split("<summary>Warnings")[1].split("</details>")[0]
    assert "load was 7 before the start" in warnings
    assert "native: own random weights" in warnings
    assert "uncommitted changes" in warnings
    noisy = noise.check(block_times(run.samples("native")))
    assert noisy
    assert all(markdown.escape(warning) in warnings for warning in noisy)


def test_a_warning_that_all_arms_share_is_said_once(tmp_path: Path) -> None:
    arms = [(arm(name), samples(1.0, launches=1, seed=i)) for i, name in enumerate(("torchvision", "native"))]
    run = write_run(tmp_path / "run", arms)
    (shared,) = noise.check(block_times(run.samples("native")))
    text = markdown_of(run)
    assert text.count(markdown.escape(shared)) == 1
    assert "All arms: " in text


def test_machine_and_recipe_are_yaml(reported: tuple[Run, Path, str]) -> None:
    blocks = [token.content for token in MARKDOWN.parse(reported[2]) if token.info == "yaml"]
    machine, recipe = map(yaml.safe_load, blocks)
    assert machine["machine"]["cpu"]["model"] == "Test CPU @ 2.0 GHz"
    assert machine["load_after"] == [1.9, 1.5, 0.9]
    assert recipe == reported[0].record().recipe
    assert "torch 2.14.1" in reported[2]
    assert "OMP_NUM_THREADS=2" in reported[2]


def test_versions_are_those_of_the_distributions_that_identify_a_codebase(tmp_path: Path) -> None:
    environment = {
        "python": "3.10.1",
        "packages": {"Sal_Detectron2": "0.7.2", "fvcore": "0.1"},
        "variables": {},
    }
    run = write_run(
        tmp_path / "run", [(arm("detectron2", environment=environment), samples(1.0))], baseline={}
    )
    codebase = Codebase(
        name="detectron2", title="Detectron2", packages=["sal-detectron2", "fvcore"], models={}
    )
    text = markdown_of(run, codebases={"detectron2": codebase})
    assert rows_of(text, "Faster R-CNN R-50-FPN, training")[0]["version"].startswith("0.7.2")
    assert "sal-detectron2 0.7.2, fvcore 0.1" in text


def test_the_command_to_reproduce_can_be_pasted_into_a_shell(reported: tuple[Run, Path, str]) -> None:
    run, _, text = reported
    code = next(
        token.content for token in MARKDOWN.parse(text) if token.type == "fence" and token.info == "sh"
    )
    commands = [line for line in code.splitlines() if not line.startswith("#")]
    assert commands[0] == "git checkout 0123456789abcdef0123"
    assert commands[1].startswith("make ")
    assert commands[2] == "bench run recipes/quickstart.yaml --set measure.rounds=6"
    assert "# data " in code
    assert run.folder.name in text
    assert str(run.folder) not in text, "a path of this machine"


def test_training_and_inference_have_their_own_headline_and_phases(reported: tuple[Run, Path, str]) -> None:
    text = reported[2]
    assert "FPS (images/s), median (p5–p95)" in rows_of(text, "Mask R-CNN R-50-FPN, inference")[0]
    assert "images/s" in rows_of(text, "Mask R-CNN R-50-FPN, training")[0]
    train, infer = tables_of(text.split("Phases of a step</summary>")[1])[:2]
    phases = ("data", "forward", "backward", "optimizer", "EMA")
    assert train[0][2:] == [f"{name}, s (%)" for name in phases]
    assert infer[0][2:] == [f"{name}, s (%)" for name in ("data", "network", "post-processing")]
    shares = [float(cell.partition("(")[2].rstrip(")")) for cell in infer[1][2:]]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_no_table_is_wider_than_a_page_of_github(reported: tuple[Run, Path, str]) -> None:
    widths = [len(table[0]) for table in tables_of(reported[2])]
    assert max(widths) == 7
    assert len(widths) > 10


def test_a_phase_too_short_for_its_digits_is_no_zero(tmp_path: Path) -> None:
    record = arm("native", phases={"data": [6e-5], "forward": [2.0], "backward": [4.0], "optimizer": [0.0]})
    row = rows_of(markdown_of(write_run(tmp_path / "run", [(record, samples(1.0))])), "Phases of a step")[0]
    assert row["data, s (%)"] == "< 0.001 (0.0)"
    assert row["backward, s (%)"] == "4.000 (66.7)"


def test_share_of_peak_is_of_the_best_framework(
    tmp_path: Path,
) -> None:
    def record(name: str, task: str, peaks: dict[str, float]) -> Any:
        flops = {"forward_flops": 10e9, "training_flops": None if task == "infer" else 30e9}
        return arm(name, {"task": task}, description={**flops, "peak_flops_per_s": peaks})

    arms = [
        (record("mmdet", task, {"matrix product": 50e9, "convolution": 60e9}), samples(1.0, noise=0))
        for task in ("infer", "train")
    ]
    arms += [(record("paddledet", task, {}), samples(0.5, noise=0)) for task in ("infer", "train")]
    text = markdown_of(write_run(tmp_path / "run", arms))
    for title, expected in (
        ("inference", ["10.0 (17)", "20.0 (33)"]),
        ("training", ["30.0 (50)", "60.0 (100)"]),
    ):
        shown = [row["GFLOP/s (% of peak)"] for row in rows_of(text, f"Faster R-CNN R-50-FPN, {title}")]
        assert shown == expected


def test_the_share_of_one_operator_in_a_ratio_is_said(tmp_path: Path) -> None:
    def record(name: str, whole_s: float, part_s: float) -> Any:
        return arm(name, operators={"step": [whole_s], "deformable convolution": [part_s]})

    arms = [
        (record("paddledet", 11.0, 8.8), samples(10.0, noise=0)),
        (record("native", 2.5, 0.5), samples(2.0, noise=0)),
    ]
    text = markdown_of(write_run(tmp_path / "run", arms, baseline={"codebase": "paddledet"}))
    assert "Deformable convolution is 80 % of a step of paddledet and 20 % of one of native" in text
    assert re.search(r"the ratio would be 1\.2 instead of 5\.0+: 86 % of it", text)
    alike = [
        (record(name, 2.0, 1.0), samples(1.0, seed=seed)) for seed, name in enumerate(("paddledet", "native"))
    ]
    text = markdown_of(write_run(tmp_path / "alike", alike, baseline={"codebase": "paddledet"}))
    assert "% of it" not in text, "a ratio that may be 1 has no shares"


def test_an_aa_run_is_called_one(tmp_path: Path) -> None:
    arms = [(arm("native", label=f"native ({side})"), samples(1.0, seed=i)) for i, side in enumerate("AB")]
    run = write_run(tmp_path / "run", arms, baseline={"codebase": "native (A)"}, aa=True)
    text = markdown_of(run)
    assert "A/A run" in text
    assert rows_of(text, "Faster R-CNN R-50-FPN, training")[0][RATIO] == "1 (baseline)"


def test_several_runs_share_no_ratio_and_no_figure(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [(arm("torchvision"), samples(1.0)), (arm("native"), samples(0.9))])
            for name in ("one", "two")]  # fmt: skip
    path = generate(runs, tmp_path / "report")
    text = path.read_text()
    assert "no ratio here crosses runs" in text
    figures = re.findall(r'<img src="(figures/[^"]+)"', text)
    assert len(figures) == len(set(figures)) == 6
    assert all((path.parent / figure).stat().st_size > 5000 for figure in figures)


def test_a_broken_record_is_an_error_with_its_path(tmp_path: Path) -> None:
    run = small(tmp_path)
    (run.folder / "arms" / "native.json").write_text("{")
    with pytest.raises(BenchError, match=r"native\.json"):
        generate([run], tmp_path / "report")


# -- Markdown ----------------------------------------------------------------------------------------------------

#: Without characters that `bench.text_safety` makes visible: all but those of direction are excluded by category.
LABELS = st.text(
    st.characters(
        codec="utf-8",
        exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp"),
        exclude_characters="\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff",
    ),
    min_size=1,
)
TEXTS = st.lists(LABELS | st.sampled_from([*"|`*_~<>[]()#!&\\", "](x", "&lt;", "- ", "1.", "<b>", "http:"]),
                 min_size=1, max_size=6).map(" ".join)  # fmt: skip


@settings(deadline=None)  # the machine may be busy
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_in_a_table_reads_back(texts: list[str]) -> None:
    block = Table(tuple(Column(text) for text in texts), (tuple(Cell(text) for text in texts),))
    expected = [" ".join(text.split()) for text in texts]
    assert tables_of(markdown.render([block])) == [[expected, expected]]


@settings(deadline=None)  # the machine may be busy
@given(TEXTS)
def test_any_text_in_a_paragraph_reads_back(text: str) -> None:
    expected = " ".join(text.split())
    for block in (Text(text), Bullets((text,))):
        inline = [token for token in MARKDOWN.parse(markdown.render([block])) if token.type == "inline"]
        assert len(inline) == 1
        assert "".join(child.content for child in inline[0].children or []) == expected
        assert {child.type for child in inline[0].children or []} <= {"text", "text_special"}


@settings(deadline=None)  # the machine may be busy
@given(st.text(st.sampled_from("`~ab\n")))
def test_any_log_text_stays_inside_its_code_block(text: str) -> None:
    text = text.strip("\n") or "x"
    tokens = MARKDOWN.parse(markdown.render([Code(text), Heading(2, "after")]))
    assert [token.content for token in tokens if token.type == "fence"] == [text + "\n"]
    assert tokens[-1].type == "heading_close"


def test_ratios_stay_readable_in_the_markdown_source() -> None:
    assert markdown.escape("mask_rcnn_r50_fpn 1.23 [1.20, 1.26]") == "mask_rcnn_r50_fpn 1.23 [1.20, 1.26]"


def test_a_label_with_a_pipe_does_not_shift_the_columns(tmp_path: Path) -> None:
    arms = [
        (arm("torchvision"), samples(1.0, seed=1)),
        (arm("native", label="a|b $x_1$ <i>*\\"), samples(1.0, seed=2)),
    ]
    text = markdown_of(write_run(tmp_path / "run", arms))
    assert rows_of(text, "Faster R-CNN R-50-FPN, training")[1]["codebase"] == "a|b $x_1$ <i>*\\"
    for rows in tables_of(text):
        assert len({len(row) for row in rows}) == 1


# -- Figures -----------------------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_files_byte_for_byte(tmp_path: Path) -> None:
    run = small(tmp_path)
    first, second = (generate([run], tmp_path / name).parent for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert {str(path) for path in files} >= {"report.md", "report.json", "index.html", "figures/ratios.svg"}
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_figures_are_svg_in_two_themes_with_words(reported: tuple[Run, Path, str]) -> None:
    _, folder, text = reported
    images = re.findall(
        r'srcset="figures/([a-z0-9-]+)-dark\.svg"><img src="figures/([a-z0-9-]+)\.svg" alt="([^"]+)"', text
    )
    assert {name.split("-")[0] for _, name, _ in images} == {"ratios", "steps", "memory", "phases"}
    for dark, name, alt in images:
        assert dark == name
        assert len(alt) > 10
        light, night = ((folder / "figures" / f"{name}{end}.svg").read_text() for end in ("", "-dark"))
        assert "#ffffff" in light
        assert "#ffffff" not in night
        height = float(re.search(r'height="([\d.]+)pt"', light)[1]) * 96 / 72  # type: ignore[index]
        assert height <= 1000


@pytest.mark.parametrize(("low", "high"), [(0.97, 1.05), (0.5, 4.0), (0.2, 3.0), (0.01, 300.0)])
def test_ratio_axes_have_a_few_round_ticks(low: float, high: float) -> None:
    from bench.report.figures import log_ticks

    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)
    assert any(math.isclose(tick, 1.0) for tick in ticks)
