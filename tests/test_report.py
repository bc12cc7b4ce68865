"""What a reader of a report relies on. Runs are simulated (tests/report_runs.py) and written through bench.record."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from bench.errors import BenchError
from bench.gate.history import collect
from bench.judge import noise, ratio
from bench.recipe.codebases import Codebase
from bench.record.models import Failure, Memory
from bench.record.run import Run
from bench.record.samples import block_times
from bench.report import (
    Side,
    Verdict,
    comparison_blocks,
    comparison_table,
    generate,
    resolve_side,
    run_report,
    sections,
    show,
    text,
    to_json,
)
from bench.report.document import Bullets, Cell, Code, Column, Heading, Table, Text
from bench.report.render import markdown
from bench.report.values import Report
from tests.report_runs import CRASH, arm, quickstart, samples, write_run

MARKDOWN = MarkdownIt("commonmark").enable("table").enable("strikethrough")


def tables_of(text: str) -> list[list[list[str]]]:
    """The tables of a markdown document as a renderer reads them: rows of cell texts, the header first."""
    found: list[list[list[str]]] = []
    tokens = MARKDOWN.parse(text)
    for index, token in enumerate(tokens):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            children = tokens[index + 1].children or []
            found[-1][-1].append("".join(child.content for child in children))
    return found


def rows_of(text: str, title: str) -> list[dict[str, str]]:
    """Rows of the first table below a heading, by column title."""
    section = text.split(f" {title}\n", 1)[1]
    header, *rows = tables_of(section)[0]
    return [dict(zip(header, row, strict=True)) for row in rows]


RATIO = "ratio to baseline [95 % interval]"
SECONDS = "s/iter, median (p5–p95)"


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, str]:
    """The quickstart run, its report folder, and the markdown."""
    root = tmp_path_factory.mktemp("quickstart")
    run = quickstart(
        root / "results" / "quickstart" / "20261122T100000Z-abcd", warnings=["the laptop lid was shut"]
    )
    path = generate([run], root / "report")
    return run, path.parent, path.read_text()


def small(folder: Path, **more: object) -> Run:
    """Two arms, one group."""
    arms = [(arm("torchvision"), samples(1.3, seed=1)), (arm("native"), samples(1.0, seed=2))]
    return write_run(folder / "run", arms, **more)  # type: ignore[arg-type]


def markdown_of(run: Run, **more: Any) -> str:
    """The markdown of one run, without drawing its figures."""
    return markdown.render(sections.report_blocks(Report((run_report(run, **more),)), [{}]))


def compared(arm: pd.DataFrame, baseline: pd.DataFrame) -> ratio.Ratio:
    pairs = ratio.pair(arm, baseline)
    return ratio.ratio(pairs.launch, pairs.log_ratio)


# -- Numbers -----------------------------------------------------------------------------------------------------


def test_the_ratio_in_the_table_is_the_one_statistics_computed(reported: tuple[Run, Path, str]) -> None:
    run, _, text = reported
    arms = {record.id: record for record in run.arms()}
    native = next(a for a in arms.values() if a.codebase == "native" and a.workload.task == "infer")
    base = next(a for a in arms.values() if a.codebase == "torchvision" and a.cell == native.cell)
    expected = compared(block_times(run.samples(native.id)), block_times(run.samples(base.id)))
    row = rows_of(text, "Faster R-CNN R-50-FPN, inference")[1]
    value, low, high = map(float, re.findall(r"[\d.]+", row[RATIO]))
    assert row["codebase"] == "native"
    assert (value, low, high) == pytest.approx((expected.value, expected.low, expected.high), abs=0.006)
    assert expected.value > 1, "native is the faster one: above 1"


def test_json_and_markdown_give_the_same_ratios_and_times(reported: tuple[Run, Path, str]) -> None:
    _, folder, text = reported
    document = json.loads((folder / "report.json").read_text())
    for group in document["runs"][0]["groups"]:
        title = next(line for line in re.findall(r"^### (.*)$", text, re.M) if _is_title_of(line, group))
        for row, shown in zip(group["rows"], rows_of(text, title), strict=True):
            if row["ratio"]:
                value = float(shown[RATIO].split(" ")[0])
                digits = len(shown[RATIO].split(" ")[0].partition(".")[2])
                assert value == round(row["ratio"]["value"], digits)
            if row["step_s"]:
                median = shown[SECONDS].split(" ")[0]
                assert float(median) == round(row["step_s"]["median_s"], len(median.partition(".")[2]))


def _is_title_of(line: str, group: dict[str, str]) -> bool:
    task = {"train": "training", "infer": "inference"}[group["task"]]
    return task in line and (group["model"].split("_")[0] in line.lower())


def test_times_and_memory_of_two_ranks_are_those_of_the_slower_and_the_larger(tmp_path: Path) -> None:
    record = arm("native", {"ranks": 2}, peak_mib=1000)
    run = write_run(tmp_path / "run", [(record, samples(1.0, ranks=2, noise=0.001))], baseline={})
    row = rows_of(markdown_of(run), "Faster R-CNN R-50-FPN, training, ranks 2")[0]
    assert float(row[SECONDS].split(" ")[0]) == pytest.approx(1.1, rel=0.01)  # rank 1 is 10 % slower
    assert float(row["images/s"]) == pytest.approx(4 / 1.1, rel=0.01)  # 2 images on each of 2 ranks
    assert row["max memory (MiB)"] == "1007 (300)"


def test_scaling_efficiency_is_images_per_second_per_rank(tmp_path: Path) -> None:
    arms = [
        (
            arm("native", {"ranks": n}, baseline=("ranks",)),
            samples(1.0 if n == 1 else 1.25 / 1.1, ranks=n, seed=n),
        )
        for n in (1, 2)
    ]
    run = write_run(tmp_path / "run", arms, baseline={"ranks": 1})
    row = rows_of(markdown_of(run), "Scaling over ranks")[0]
    efficiency = row["scaling efficiency (%) [95 % interval]"]
    assert (row["ranks"], row["against ranks"], row["interleaved"]) == ("2", "1", "yes")
    assert float(efficiency.split(" ")[0]) == pytest.approx(80, abs=1.5)


def test_the_cost_of_ema_is_its_share_of_a_step(reported: tuple[Run, Path, str]) -> None:
    run, _, text = reported
    on, off = (
        next(a for a in run.arms() if a.codebase == "native" and a.levels["ema"] is level)
        for level in (True, False)
    )
    cost = ratio.cost(compared(block_times(run.samples(on.id)), block_times(run.samples(off.id))))
    row = rows_of(text, "Effects of factors within a codebase")[0]
    assert (row["factor"], row["level"], row["against"], row["interleaved"]) == ("EMA", "on", "off", "yes")
    shown = list(map(float, re.findall(r"-?[\d.]+", row["cost (% of a step) [95 % interval]"])))
    assert shown == pytest.approx([100 * cost.share, 100 * cost.low, 100 * cost.high], abs=0.06)


def test_a_larger_batch_is_judged_by_images_per_second_and_not_by_steps(tmp_path: Path) -> None:
    arms = [
        (arm("native", {"batch_size": size}, baseline=("batch_size",)), samples(seconds, seed=size))
        for size, seconds in ((1, 1.0), (8, 4.0))
    ]
    text = markdown_of(write_run(tmp_path / "run", arms, baseline={"batch_size": 1}))
    ratio = rows_of(text, "Faster R-CNN R-50-FPN, training")[1][RATIO]
    assert float(ratio.split(" ")[0]) == pytest.approx(2.0, rel=0.03)
    effect = rows_of(text, "Effects of factors within a codebase")[0]
    assert effect["throughput ratio [95 % interval]"] == ratio
    assert effect["cost (% of a step) [95 % interval]"] == "–", "a step is not the same work"


def test_an_effect_between_arms_that_were_not_interleaved_says_so(tmp_path: Path) -> None:
    arms = [
        (arm("native", {"precision": name}), samples(seconds, seed=3))
        for name, seconds in (("float32", 1.0), ("bfloat16", 0.8))
    ]
    text = markdown_of(write_run(tmp_path / "run", arms))
    row = rows_of(text, "Effects of factors within a codebase")[0]
    assert (row["level"], row["against"], row["interleaved"]) == ("bfloat16", "float32", "no")
    assert row["cost (% of a step) [95 % interval]"].startswith("-25"), "it saves time"
    assert sections.NOT_INTERLEAVED in text


def test_gpu_memory_is_what_the_framework_allocated_max_over_ranks_and_launches(tmp_path: Path) -> None:
    passes = [
        Memory(
            rank=rank,
            launch=launch,
            allocated_bytes=(900 + 10 * rank + launch) * 2**20,
            host_peak_bytes=2**35,
        )
        for rank in (0, 1)
        for launch in (0, 1)
    ]
    record = arm("native", workload={"device": "cuda"}, memory=passes)
    run = write_run(tmp_path / "run", [(record, samples(1.0))], baseline={})
    assert rows_of(markdown_of(run), "Faster R-CNN R-50-FPN, training")[0]["max memory (MiB)"] == "911"


def test_a_codebase_is_not_charged_for_the_memory_of_the_audits_tools(tmp_path: Path) -> None:
    def shown(*peaks: tuple[int, bool]) -> tuple[str, float]:
        passes = [
            Memory(
                launch=launch,
                host_baseline_bytes=300 * 2**20,
                host_peak_bytes=peak * 2**20,
                described=described,
            )
            for launch, (peak, described) in enumerate(peaks)
        ]
        record = arm("native", memory=passes)
        results = tmp_path / f"launches-{len(peaks)}"
        run = write_run(results / "recipe" / "run", [(record, samples(1.0))], baseline={})
        (history,) = (one for one in collect(results)[0] if one.metric == "max memory")
        report = rows_of(markdown_of(run), "Faster R-CNN R-50-FPN, training")[0]["max memory (MiB)"]
        return report, history.points[0].value

    assert shown((950, True), (800, False), (810, False)) == ("810 (300)", 810)
    assert shown((950, True)) == ("950 (300)", 950)  # better than nothing


def test_one_round_gives_a_ratio_without_an_interval_rather_than_a_false_one(tmp_path: Path) -> None:
    arms = [
        (arm(name), samples(1.0, launches=1, rounds=1, seed=i))
        for i, name in enumerate(("torchvision", "native"))
    ]
    run = write_run(tmp_path / "run", arms)
    text = markdown_of(run)
    cell = rows_of(text, "Faster R-CNN R-50-FPN, training")[1][RATIO]
    assert "one round, no interval" in cell
    assert not re.search(r"\binf\b", text)
    document = json.dumps(to_json(run_report(run)), allow_nan=False)
    assert json.loads(document)["groups"][0]["rows"][1]["ratio"]["high"] is None


@settings(deadline=None)  # the machine may be busy
@given(st.floats(1e-4, 1e4, allow_nan=False), st.floats(1.0001, 50), st.floats(1.0001, 50))
def test_an_interval_as_text_is_ordered_and_close_to_its_values(value: float, down: float, up: float) -> None:
    low, high = value / down, value * up
    shown = [float(part) for part in re.findall(r"\d+(?:\.\d+)?", text.interval_text(value, low, high))]
    assert len(shown) == 3
    assert shown[1] <= shown[0] <= shown[2]
    assert shown[1] > 0, "a positive bound is never rounded to 0"
    assert shown[0] == pytest.approx(value, abs=max((high - low) / 4, value * 0.06))


@settings(deadline=None)  # the machine may be busy
@given(st.floats(1e-6, 1e6), st.integers(2, 5))
def test_significant_digits_are_plain_numbers_near_the_value(value: float, digits: int) -> None:
    shown = text.significant(value, digits)
    assert "e" not in shown
    assert float(shown) == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits))


# -- Status ------------------------------------------------------------------------------------------------------


def test_a_failed_arm_is_a_row_with_its_reason_and_no_number(reported: tuple[Run, Path, str]) -> None:
    _, folder, text = reported
    row = next(row for row in rows_of(text, "Faster R-CNN R-50-FPN, training") if row["codebase"] == "broken")
    assert row["status"] == "failed: crash in run_block: worker exited with signal 11"
    numbers = {SECONDS, "images/s", "max memory (MiB)", RATIO, "detectable effect (%)", "launches × rounds"}
    assert {row[name] for name in numbers} == {"–"}
    document = json.loads((folder / "report.json").read_text())
    failed = [r for g in document["runs"][0]["groups"] for r in g["rows"] if r["status"] == "failed"]
    assert len(failed) == 2
    assert all(r["step_s"] is r["ratio"] is r["memory"] is None for r in failed)


def test_the_end_of_a_failed_arms_log_is_in_the_report_as_it_was_printed(
    reported: tuple[Run, Path, str],
) -> None:
    _, _, text = reported
    fences = [token.content for token in MARKDOWN.parse(text) if token.type == "fence"]
    assert "\n".join(CRASH.log_tail) + "\n" in fences
    assert "logs/broken-0.log" in text


def test_a_failed_baseline_leaves_no_ratio_and_says_why(tmp_path: Path) -> None:
    base = arm("torchvision", status="failed", failure=Failure(reason="oom", message="out of memory"))
    run = write_run(tmp_path / "run", [(base, samples(1.0)), (arm("native"), samples(1.0))])
    text = markdown_of(run)
    rows = rows_of(text, "Faster R-CNN R-50-FPN, training")
    assert [row[RATIO] for row in rows] == ["–", "–"]
    assert rows[1][SECONDS] != "–", "the other arm keeps its own numbers"
    assert "No ratios: the baseline torchvision has no result." in text


def test_a_run_without_a_baseline_has_no_ratios(tmp_path: Path) -> None:
    text = markdown_of(small(tmp_path, baseline={}))
    assert {row[RATIO] for row in rows_of(text, "Faster R-CNN R-50-FPN, training")} == {"–"}
    assert "no arm of this group is the baseline" in text


def test_a_group_that_has_no_baseline_arm_does_not_borrow_one_from_another(tmp_path: Path) -> None:
    arms = [
        (arm(name, {"ema": ema}), samples(1.0, seed=i))
        for i, (name, ema) in enumerate([("torchvision", False), ("native", False), ("native", True)])
    ]
    text = markdown_of(write_run(tmp_path / "run", arms))
    assert rows_of(text, "Faster R-CNN R-50-FPN, training, EMA off")[1][RATIO] != "–"
    assert rows_of(text, "Faster R-CNN R-50-FPN, training, EMA on")[0][RATIO] == "–"


def test_a_baseline_with_levels_is_compared_with_the_other_levels_in_one_table(
    reported: tuple[Run, Path, str],
) -> None:
    rows = rows_of(reported[2], "Faster R-CNN R-50-FPN, training")
    assert [(row["codebase"], row["EMA"]) for row in rows] == [
        ("torchvision", "off"), ("native", "off"), ("broken", "off"), ("native", "on"),
    ]  # fmt: skip
    assert rows[0][RATIO] == "1 (baseline)"
    assert rows[3][RATIO] not in ("–", rows[1][RATIO])


def test_two_arms_of_one_codebase_with_own_labels_are_told_apart(tmp_path: Path) -> None:
    arms = [
        (arm("native"), samples(1.0, seed=1)),
        (arm("native", label="native compiled", options={"compile": True}), samples(0.5, seed=2)),
    ]
    rows = rows_of(markdown_of(write_run(tmp_path / "run", arms, baseline={"codebase": "native"})),
                   "Faster R-CNN R-50-FPN, training")  # fmt: skip
    assert [row["codebase"] for row in rows] == ["native", "native compiled"]
    assert rows[0][RATIO] == "1 (baseline)"
    assert rows[1][RATIO].startswith(("2.0", "1.9"))


def test_an_interrupted_run_names_what_has_no_result_and_keeps_what_it_has(tmp_path: Path) -> None:
    arms = [
        (arm("torchvision", status="partial"), samples(1.0, rounds=2, seed=1)),
        (arm("native", status="partial"), samples(0.9, rounds=3, seed=2)),
    ]
    run = write_run(
        tmp_path / "run", arms, status="interrupted", planned=["torchvision", "native", "mmdet_later"]
    )
    text = markdown_of(run)
    rows = rows_of(text, "Faster R-CNN R-50-FPN, training")
    assert [row["status"] for row in rows] == ["partial", "partial"]
    assert rows[1][RATIO] != "–"
    assert "Planned but without a result: mmdet_later." in text
    assert "The run is interrupted" in text


def test_an_arm_without_any_measured_block_is_shown_without_numbers(tmp_path: Path) -> None:
    nothing = samples(1.0, rounds=0)
    run = write_run(tmp_path / "run", [(arm("torchvision", status="partial", memory=[], phases={}), nothing)])
    row = rows_of(markdown_of(run), "Faster R-CNN R-50-FPN, training")[0]
    assert (row[SECONDS], row["status"]) == ("–", "partial")


def test_a_run_of_which_nothing_ended_still_makes_a_report(tmp_path: Path) -> None:
    text = markdown_of(write_run(tmp_path / "run", [], planned=["native"], status="interrupted"))
    assert "Planned but without a result: native." in text


def test_an_unequal_work_verdict_stands_in_the_table_with_its_differences(tmp_path: Path) -> None:
    run = small(tmp_path)
    verdict = Verdict("unequal work", equal=False, differences=("parameters: 41.75 M, not 41.70 M",))
    text = markdown_of(run, verdicts={("run", "native"): verdict})
    assert [row["audit"] for row in rows_of(text, "Faster R-CNN R-50-FPN, training")] == ["–", "unequal work"]
    assert "- parameters: 41.75 M, not 41.70 M" in text


# -- Content -----------------------------------------------------------------------------------------------------


def test_warnings_of_the_run_the_arms_and_the_statistics_are_all_shown(tmp_path: Path) -> None:
    arms = [
        (arm("torchvision"), samples(1.0, seed=1)),
        (arm("native", warnings=["own random weights"]), samples(1.0, noise=0.6, seed=2)),
    ]
    run = write_run(tmp_path / "run", arms, warnings=["load was 7 before the start"], git={"dirty": True})
    text = markdown_of(run)
    warnings = text.split("## Warnings")[1].split("## ")[0]
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


def test_the_setting_is_said_in_words(reported: tuple[Run, Path, str]) -> None:
    setting = reported[2].split("## Setting")[1].split("## ")[0]
    for words in (
        "Training and inference of Faster R-CNN R-50-FPN, Mask R-CNN R-50-FPN",
        "the same decoded batches for every codebase",
        "512x512",
        "2 images per step and rank, float32",
        "EMA on or off",
        "frozen up to stage 1",
        "transplanted",
        "3 launches (fresh processes) of 6 rounds of 4 steps, after 3 warm-up steps",
        "2 threads per process",
    ):
        assert words in setting


def test_machine_and_software_are_in_the_report(reported: tuple[Run, Path, str]) -> None:
    text = reported[2]
    facts = {row["what"]: row["value"] for row in rows_of(text, "Machine and software")}
    assert facts["cpu: model"] == "Test CPU @ 2.0 GHz"
    assert facts["memory: total"] == "23.5 GiB"
    assert facts["cpu: caches"] == "L1d 48 KiB, L3 480 MiB"
    assert facts["cpu: clock"] == "2600 MHz"
    assert facts["cpu: smt"] == "no"
    assert (
        facts["gpu: devices"] == "index 0, model V100, memory total 16 GiB, temperature 41 °C, power 55.5 W"
    )
    assert facts["load average (1, 5, 15 min)"] == "before: 0.1, 0.2, 0.3; after: 1.9, 1.5, 0.9"
    assert "torch 2.14.1" in text
    assert "OMP_NUM_THREADS=2" in text


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
    assert code.splitlines()[:2] == [
        "git checkout 0123456789abcdef0123",
        "bench run recipes/quickstart.yaml --set measure.rounds=6",
    ]
    assert run.folder.name in text
    assert str(run.folder) not in text, "a path of this machine"


def test_training_and_inference_have_their_own_headline_and_phases(reported: tuple[Run, Path, str]) -> None:
    text = reported[2]
    assert "FPS (images/s), median (p5–p95)" in rows_of(text, "Mask R-CNN R-50-FPN, inference")[0]
    assert "images/s" in rows_of(text, "Mask R-CNN R-50-FPN, training")[0]
    train, infer = tables_of(text.split("## Phases of a step")[1])[:2]
    assert train[0][2:] == [f"{name} ({unit})" for name in ("data", "forward", "backward", "optimizer", "EMA")
                            for unit in ("s", "%")]  # fmt: skip
    assert infer[0][2:] == [
        f"{name} ({unit})" for name in ("data", "network", "post-processing") for unit in ("s", "%")
    ]
    shares = [float(cell) for cell in infer[1][3::2]]
    assert sum(shares) == pytest.approx(100, abs=0.2)


def test_a_phase_too_short_for_the_digits_shown_is_not_written_as_nothing(tmp_path: Path) -> None:
    record = arm("native", phases={"data": [6e-5], "forward": [2.0], "backward": [4.0], "optimizer": [0.0]})
    row = rows_of(markdown_of(write_run(tmp_path / "run", [(record, samples(1.0))])), "Phases of a step")[0]
    assert row["data (s)"] == "< 0.001"
    assert row["backward (s)"] == "4.000"


def test_the_distance_of_a_step_to_the_machines_limit_is_shown_against_the_best_that_any_framework_reached(
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


def test_how_much_of_a_ratio_is_one_operators_kernel_is_said_beside_it(tmp_path: Path) -> None:
    def record(name: str, whole_s: float, part_s: float) -> Any:
        return arm(name, operators={"step": [whole_s], "deformable convolution": [part_s]})

    arms = [
        (record("paddledet", 11.0, 8.8), samples(10.0, noise=0)),
        (record("native", 2.5, 0.5), samples(2.0, noise=0)),
    ]
    text = markdown_of(write_run(tmp_path / "run", arms, baseline={"codebase": "paddledet"}))
    assert "(1.2 without deformable convolution)" in text.split("## Machine")[0]
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


def test_several_runs_share_a_report_but_no_ratio_and_no_figure(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, [(arm("torchvision"), samples(1.0)), (arm("native"), samples(0.9))])
            for name in ("one", "two")]  # fmt: skip
    path = generate(runs, tmp_path / "report")
    text = path.read_text()
    assert "no ratio here crosses runs" in text
    figures = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert len(figures) == len(set(figures)) == 8
    assert all((path.parent / figure).stat().st_size > 5000 for figure in figures)


def test_a_broken_record_is_an_error_with_its_path(tmp_path: Path) -> None:
    run = small(tmp_path)
    (run.folder / "arms" / "native.json").write_text("{")
    with pytest.raises(BenchError, match=r"native\.json"):
        generate([run], tmp_path / "report")


# -- Markdown ----------------------------------------------------------------------------------------------------

LABELS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1)
TEXTS = st.lists(LABELS | st.sampled_from([*"|`*_~<>[]()#!&\\", "](x", "&lt;", "- ", "1.", "<b>", "http:"]),
                 min_size=1, max_size=6).map(" ".join)  # fmt: skip


@settings(deadline=None)  # the machine may be busy
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_any_text_in_a_table_reads_back_as_it_was_and_keeps_the_columns(texts: list[str]) -> None:
    block = Table(tuple(Column(text) for text in texts), (tuple(Cell(text) for text in texts),))
    expected = [" ".join(text.split()) for text in texts]
    assert tables_of(markdown.render([block])) == [[expected, expected]]


@settings(deadline=None)  # the machine may be busy
@given(TEXTS)
def test_any_text_in_a_paragraph_or_a_list_reads_back_as_it_was(text: str) -> None:
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


def test_every_figure_is_there_as_png_and_svg_and_said_in_words(reported: tuple[Run, Path, str]) -> None:
    _, folder, text = reported
    images = re.findall(r"!\[([^\]]+)\]\(figures/([a-z0-9-]+)\.png\)", text)
    assert {name.split("-")[0] for _, name in images} == {"ratios", "steps", "memory", "phases"}
    for alt, name in images:
        assert len(alt) > 10
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()[:1500]


@pytest.mark.parametrize(("low", "high"), [(0.97, 1.05), (0.5, 4.0), (0.2, 3.0), (0.01, 300.0)])
def test_ratio_axes_have_a_few_round_ticks(low: float, high: float) -> None:
    from bench.report.figures import log_ticks

    ticks = log_ticks(low, high)
    assert 3 <= len(ticks) <= 12
    assert all(low <= tick <= high for tick in ticks)
    assert any(math.isclose(tick, 1.0) for tick in ticks)


# -- Compare -----------------------------------------------------------------------------------------------------


def test_compare_of_two_arms_of_a_run_gives_the_interleaved_ratio(reported: tuple[Run, Path, str]) -> None:
    run = reported[0]
    on, off = (
        next(a.id for a in run.arms() if a.codebase == "native" and a.levels["ema"] is level)
        for level in (True, False)
    )
    result = comparison_table(Side(run, off), Side(run, on))
    (pair,) = result.rows
    assert pair.interleaved
    assert pair.ratio == compared(block_times(run.samples(on)), block_times(run.samples(off)))
    assert pair.ratio.value < 1, "EMA costs time"
    assert pair.differences == ("ema: False → True",)


def test_compare_of_two_runs_matches_arms_and_warns_of_what_differs(tmp_path: Path) -> None:
    old = small(tmp_path / "old")
    environment = {"python": "3.11.7", "packages": {"native": "1.3.0"}}
    new = write_run(
        tmp_path / "new" / "run",
        [(arm("native", environment=environment), samples(0.5, seed=2)), (arm("mmdet"), samples(1.0))],
        machine={"host": "other", "cpu": {"model": "Another CPU"}, "load_average": [3.0]},
    )
    result = comparison_table(old, new)
    (pair,) = result.rows
    assert not pair.interleaved
    assert pair.ratio is not None
    assert pair.ratio.value == pytest.approx(2.0, rel=0.03), "above 1: the second run is faster"
    assert (result.only_a, result.only_b) == (("torchvision",), ("mmdet",))
    text = markdown.render(comparison_blocks(result))
    assert "cpu.model: Test CPU @ 2.0 GHz → Another CPU" in text
    assert "native, packages.native: 1.2.3 → 1.3.0" in text
    assert sections.NOT_INTERLEAVED in text
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


def test_compare_of_runs_with_nothing_in_common_is_an_error_that_helps(tmp_path: Path) -> None:
    one = write_run(tmp_path / "one", [(arm("a"), samples(1.0))])
    two = write_run(tmp_path / "two", [(arm("b"), samples(1.0))])
    with pytest.raises(BenchError, match="no arm in common"):
        comparison_table(one, two)


def test_a_side_is_a_run_or_an_arm_of_it_and_a_typo_gets_a_hint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "quick" / "20261122T100000Z-abcd", [(arm("native"), samples(1.0))])
    assert {resolve_side(name, tmp_path).name for name in ("latest", "20261122")} == {run.folder.name}
    side = resolve_side("latest:native", tmp_path)
    assert (side.run.folder, side.arm) == (run.folder, "native")
    with pytest.raises(BenchError, match="did you mean native"):
        resolve_side("latest:nativ", tmp_path)


def test_the_terminal_shows_labels_as_text_and_not_as_markup_or_escape_codes(tmp_path: Path) -> None:
    arms = [
        (arm("torchvision"), samples(1.0, seed=1)),
        (arm("native", label="[red]x[/] \x1b[2J"), samples(1.0, seed=2)),
    ]
    run = write_run(tmp_path / "run", arms)
    output = io.StringIO()
    group = run_report(run).groups[0]
    show([sections.group_table(group)], Console(file=output, width=200))
    assert "[red]x[/]" in output.getvalue()
    assert "\x1b" not in output.getvalue()
