"""Numbers and states of a report come from the records."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.gate.history import collect
from bench.judge import numbers, ratio
from bench.judge.audit import Audit, Difference
from bench.record.models import Failure
from bench.record.parts import Memory
from bench.record.run import Run
from bench.record.samples import block_times
from bench.report import text as text_module
from bench.report.build import run_report
from bench.report.text import to_json
from bench.report.trust import trust_texts
from tests.helpers.report_runs import (
    CRASH,
    MARKDOWN,
    RATIO,
    SECONDS,
    arm,
    judged,
    markdown_of,
    ratio_of,
    rows_of,
    samples,
    small,
    write_run,
)

# -- Numbers -----------------------------------------------------------------------------------------------------


def test_the_ratio_in_the_table_is_the_one_statistics_computed(reported: tuple[Run, Path, str]) -> None:
    run, _, text = reported
    arms = {record.id: record for record in run.arms()}
    native = next(a for a in arms.values() if a.codebase == "native" and a.workload.task == "infer")
    base = next(a for a in arms.values() if a.codebase == "torchvision" and a.cell == native.cell)
    expected = ratio_of(block_times(run.samples(native.id)), block_times(run.samples(base.id)))
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


def test_two_ranks_take_the_slower_time_and_larger_memory(tmp_path: Path) -> None:
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
    cost = ratio.cost(ratio_of(block_times(run.samples(on.id)), block_times(run.samples(off.id))))
    row = rows_of(text, "Effects of factors within a codebase")[0]
    assert (row["factor"], row["level"], row["against"], row["interleaved"]) == ("EMA", "on", "off", "yes")
    shown = list(map(float, re.findall(r"-?[\d.]+", row["cost (% of a step) [95 % interval]"])))
    assert shown == pytest.approx([100 * cost.share, 100 * cost.low, 100 * cost.high], abs=0.06)


def test_a_larger_batch_is_judged_by_images_per_second(tmp_path: Path) -> None:
    arms = [
        (arm("native", {"batch_size": size}, baseline=("batch_size",)), samples(seconds, seed=size))
        for size, seconds in ((1, 1.0), (8, 4.0))
    ]
    text = markdown_of(write_run(tmp_path / "run", arms, baseline={"batch_size": 1}))
    ratio = rows_of(text, "Faster R-CNN R-50-FPN, training")[1][RATIO]
    assert float(ratio.split(" ")[0]) == pytest.approx(2.0, rel=0.03)
    effect = rows_of(text, "Effects of factors within a codebase")[0]
    assert ratio.startswith(effect["throughput ratio [95 % interval]"])
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
    assert text_module.NOT_INTERLEAVED in text


def test_gpu_memory_is_the_largest_allocation_over_ranks_and_launches(tmp_path: Path) -> None:
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


def test_memory_of_the_audits_tools_is_not_charged(tmp_path: Path) -> None:
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


def test_one_round_gives_a_ratio_without_an_interval(tmp_path: Path) -> None:
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
def test_interval_text_is_ordered_and_close_to_its_values(value: float, down: float, up: float) -> None:
    low, high = value / down, value * up
    shown = [float(part) for part in re.findall(r"\d+(?:\.\d+)?", numbers.interval_text(value, low, high))]
    assert len(shown) == 3
    assert shown[1] <= shown[0] <= shown[2]
    assert shown[1] > 0, "a positive bound is never rounded to 0"
    assert shown[0] == pytest.approx(value, abs=max((high - low) / 4, value * 0.06))


@settings(deadline=None)  # the machine may be busy
@given(st.floats(1e-6, 1e6), st.integers(2, 5))
def test_significant_digits_are_plain_numbers_near_the_value(value: float, digits: int) -> None:
    shown = numbers.significant(value, digits)
    assert "e" not in shown
    assert float(shown) == pytest.approx(value, rel=0.51 * 10.0 ** (1 - digits))


# -- Status ------------------------------------------------------------------------------------------------------


def test_a_failed_arm_is_a_row_with_its_reason(reported: tuple[Run, Path, str]) -> None:
    _, folder, text = reported
    row = next(row for row in rows_of(text, "Faster R-CNN R-50-FPN, training") if row["codebase"] == "broken")
    assert row["status"] == "failed: crash in run_block: worker exited with signal 11"
    numbers = {SECONDS, "images/s", "max memory (MiB)", RATIO, "detectable effect (%)", "launches × rounds"}
    assert {row[name] for name in numbers - {RATIO}} == {"–"}
    assert row[RATIO] == "✕"
    document = json.loads((folder / "report.json").read_text())
    failed = [r for g in document["runs"][0]["groups"] for r in g["rows"] if r["status"] == "failed"]
    assert len(failed) == 2
    assert all(r["step_s"] is r["ratio"] is r["memory"] is None for r in failed)


def test_the_end_of_a_failed_arms_log_is_shown(
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
    assert [row[RATIO] for row in rows] == ["✕", "baseline failed"]
    assert rows[1][SECONDS] != "–", "the other arm keeps its own numbers"
    assert "No ratios: the baseline torchvision has no result." in text


def test_a_run_without_a_baseline_has_no_ratios(tmp_path: Path) -> None:
    text = markdown_of(small(tmp_path, baseline={}))
    assert {row[RATIO] for row in rows_of(text, "Faster R-CNN R-50-FPN, training")} == {"–"}
    assert "no arm of this group is the baseline" in text


def test_a_group_without_baseline_borrows_none_from_another(tmp_path: Path) -> None:
    arms = [
        (arm(name, {"ema": ema}), samples(1.0, seed=i))
        for i, (name, ema) in enumerate([("torchvision", False), ("native", False), ("native", True)])
    ]
    text = markdown_of(write_run(tmp_path / "run", arms))
    assert rows_of(text, "Faster R-CNN R-50-FPN, training, EMA off")[1][RATIO][0] == "1"
    assert rows_of(text, "Faster R-CNN R-50-FPN, training, EMA on")[0][RATIO] == "–"


def test_a_baseline_with_levels_meets_other_levels_in_one_table(
    reported: tuple[Run, Path, str],
) -> None:
    rows = rows_of(reported[2], "Faster R-CNN R-50-FPN, training")
    assert [(row["codebase"], row["EMA"]) for row in rows] == [
        ("torchvision", "off"), ("native", "off"), ("broken", "off"), ("native", "on"),
    ]  # fmt: skip
    assert rows[0][RATIO] == "1 (baseline)"
    assert rows[3][RATIO] not in ("–", rows[1][RATIO])


def test_labels_tell_two_arms_of_one_codebase_apart(tmp_path: Path) -> None:
    arms = [
        (arm("native"), samples(1.0, seed=1)),
        (arm("native", label="native compiled", options={"compile": True}), samples(0.5, seed=2)),
    ]
    rows = rows_of(markdown_of(write_run(tmp_path / "run", arms, baseline={"codebase": "native"})),
                   "Faster R-CNN R-50-FPN, training")  # fmt: skip
    assert [row["codebase"] for row in rows] == ["native", "native compiled"]
    assert rows[0][RATIO] == "1 (baseline)"
    assert rows[1][RATIO].startswith(("2.0", "1.9"))


def test_an_interrupted_run_names_what_has_no_record(tmp_path: Path) -> None:
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
    assert "Planned but without a record: mmdet_later." in text
    assert "The run is interrupted" in text


def test_an_arm_without_any_measured_block_is_shown_without_numbers(tmp_path: Path) -> None:
    nothing = samples(1.0, rounds=0)
    run = write_run(tmp_path / "run", [(arm("torchvision", status="partial", memory=[], phases={}), nothing)])
    row = rows_of(markdown_of(run), "Faster R-CNN R-50-FPN, training")[0]
    assert (row[SECONDS], row["status"]) == ("–", "partial: no measured step in its samples")


def test_a_run_of_which_nothing_ended_still_makes_a_report(tmp_path: Path) -> None:
    text = markdown_of(write_run(tmp_path / "run", [], planned=["native"], status="interrupted"))
    assert "Planned but without a record: native." in text


def test_an_unequal_verdict_stands_in_table_with_differences(tmp_path: Path) -> None:
    unequal = Audit("native", "torchvision", (Difference("parameters", 41_700_000, 41_750_000, 1e-3),))
    with judged({"native": unequal}):
        text = markdown_of(small(tmp_path))
    native = rows_of(text, "Faster R-CNN R-50-FPN, training")[1]
    assert native["audit"] == "unequal"
    assert native[RATIO].endswith(" ≠")
    facts = rows_of(text, "Equal work: what the audit saw")[0]
    assert (facts["fact"], facts["baseline"], facts["arm"]) == ("parameters", "41,700,000", "41,750,000")


def test_operators_without_a_time_of_the_step_are_left_out(tmp_path: Path) -> None:
    profiles = (
        {"step": [2.0, 4.0], "nms": [1.0, 1.0]},
        {"nms": [1.0]},
        {"step": [1.0, 0.0], "nms": [1.0, 1.0]},
    )
    arms = [(arm(f"arm{at}", operators=found), samples(1.0)) for at, found in enumerate(profiles)]
    first, *others = run_report(write_run(tmp_path / "run", arms)).rows
    assert [(one.name, one.median_s, one.share) for one in first.operators] == [
        ("nms", 1.0, 0.375),
        ("rest", 2.0, 0.625),
    ]
    assert [row.operators for row in others] == [(), ()]


def test_memory_of_no_byte_is_not_known(tmp_path: Path) -> None:
    arms = [(arm(name, peak_mib=size), samples(1.0)) for name, size in (("torchvision", 0), ("native", 7))]
    run = write_run(tmp_path / "run", arms)
    base, native = run_report(run).rows
    assert (base.memory, native.peak_mib) == (None, 7)
    assert [
        row["max memory (MiB)"] for row in rows_of(markdown_of(run), "Faster R-CNN R-50-FPN, training")
    ] == [
        "–",
        "7 (300)",
    ]


def test_disturbed_rounds_and_noise_are_told(tmp_path: Path) -> None:
    disturbed = samples(1.0, noise=0.02).assign(disturbed=lambda found: (found["round"] == 0).astype("int8"))
    run = write_run(
        tmp_path / "run", [(arm("torchvision"), disturbed), (arm("native"), samples(0.5, seed=2))]
    )
    told = list(trust_texts(run_report(run)))
    assert "Other processes disturbed 3 of 36 rounds." in told, "one of six in each of three launches"
    (noise,) = (text for text in told if text.startswith("Noise"))
    assert re.fullmatch(
        r"Noise: half of the ratios would have shown an effect of [\d.]+ %, in 80 % .*", noise
    )
