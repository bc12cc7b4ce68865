"""Run folders with simulated samples, for the tests of reports. They are written through `bench.record` only."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from bench.judge.audit import Audit
from bench.judge.ratio import Ratio, pair, ratio
from bench.recipe.plan import baseline_ids
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord, Failure, RunRecord
from bench.record.parts import Memory
from bench.record.run import Run
from bench.record.samples import SAMPLE_COLUMNS
from bench.report import build, sections
from bench.report.build import run_report
from bench.report.render import markdown
from bench.report.values import Report

MACHINE = {
    "host": "box",
    "os": {"system": "Linux", "release": "6.1"},
    "cpu": {
        "model": "Test CPU @ 2.0 GHz",
        "logical_cores": 2,
        "affinity": [0, 1],
        "caches_bytes": {"L1d": 48 * 2**10, "L3": 480 * 2**20},
        "smt": False,
        "clock_mhz": 2600,
    },
    "memory": {"total_bytes": 25276063744, "swap_used_bytes": 0},
    "gpu": {
        "driver": "570.1",
        "devices": [
            {
                "index": 0,
                "model": "V100",
                "memory_total_bytes": 16 * 2**30,
                "temperature_c": 41,
                "power_w": 55.5,
            }
        ],
    },
    "load_average": [8.4, 9.3, 6.7],
}


def samples(
    s_per_step: float,
    *,
    launches: int = 3,
    rounds: int = 6,
    steps: int = 4,
    warmup: int = 3,
    ranks: int = 1,
    noise: float = 0.02,
    seed: int = 0,
) -> pd.DataFrame:
    """Steps of `s_per_step` seconds with lognormal noise; warm-up steps are slower; rank 1 is 10 % slower."""
    rng = np.random.default_rng(seed)
    rows = []
    for launch in range(launches):
        clock = 1_000_000_000
        for round_ in range(-1, rounds):
            for step in range(warmup if round_ < 0 else steps):
                base = (
                    s_per_step
                    * (1.6 - 0.2 * step if round_ < 0 else 1.0)
                    * np.exp(noise * rng.standard_normal())
                )
                for rank in range(ranks):
                    duration = int(base * (1 + 0.1 * rank) * 1e9)
                    rows.append((launch, round_, 0, rank, step, clock, duration, -1, 0))
                clock += duration
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)).astype(SAMPLE_COLUMNS)


def arm(
    codebase: str,
    levels: dict[str, Any] | None = None,
    *,
    label: str | None = None,
    baseline: tuple[str, ...] = ("codebase",),
    status: str = "ok",
    failure: Failure | None = None,
    peak_mib: int = 1500,
    workload: dict[str, Any] | None = None,
    **more: Any,
) -> ArmRecord:
    levels = levels or {}
    fields = {"model": "faster_rcnn_r50_fpn", **levels, **(workload or {})}
    fields = {key: value for key, value in fields.items() if key in Workload.model_fields}
    work = Workload.model_validate(fields)
    phases = (
        {
            "data": 0.01,
            "forward": 0.4,
            "backward": 0.8,
            "optimizer": 0.05,
            **({"ema": 0.04} if work.ema else {}),
        }
        if work.task == "train"
        else {"data": 0.02, "network": 0.4, "post": 0.06}
    )
    name = label or codebase
    ident = "_".join([name, *(f"{key}-{value}" for key, value in levels.items())])
    ok = status != "failed"
    values: dict[str, Any] = {
        "id": "".join(char if char.isalnum() else "-" for char in ident).lower().strip("-"),
        "codebase": codebase,
        "label": name,
        "levels": levels,
        "cell": "_".join(f"{key}-{value}" for key, value in levels.items() if key not in baseline) or "all",
        "workload": work,
        "status": status,
        "failure": failure,
        "launches": 3,
        "description": {"kernels": f"{codebase}'s own"},
        "environment": {
            "python": "3.11.7",
            "packages": {codebase: "1.2.3", "torch": "2.14.1", "numpy": "2.4.6", "yaml": "6"},
            "variables": {"OMP_NUM_THREADS": "2"},
        },
        "phases": {key: [value, value * 1.02, value * 0.98] for key, value in phases.items()} if ok else {},
        "memory": [
            Memory(rank=rank, host_baseline_bytes=300 * 2**20, host_peak_bytes=(peak_mib + 7 * rank) * 2**20)
            for rank in range(work.ranks)
        ]
        if ok
        else [],
    }
    return ArmRecord(**{**values, **more})


CRASH = Failure(
    reason="crash",
    message="worker exited with signal 11",
    stage="run_block",
    log="logs/broken-0.log",
    log_tail=["loading weights", "Segmentation fault `core dumped` <at> | 0x00"],
)


def write_run(
    folder: Path,
    arms: list[tuple[ArmRecord, pd.DataFrame]],
    *,
    baseline: dict[str, Any] | None = None,
    planned: list[str] | None = None,
    **more: Any,
) -> Run:
    run = Run(folder)
    values: dict[str, Any] = {
        "id": folder.name,
        "recipe": {
            "name": "quickstart",
            "description": "Two codebases on generated images.",
            "measure": {"launches": 3, "rounds": 6, "steps": 4, "warmup": 3, "interleave": True},
            "environment": {"threads": 2},
        },
        "recipe_path": "recipes/quickstart.yaml",
        "command": ["bench", "run", "recipes/quickstart.yaml", "--set", "measure.rounds=6"],
        "started_utc": "2026-11-22T10:00:00Z",
        "ended_utc": "2026-11-22T10:20:00Z",
        "status": "complete",
        "bench_version": "0.1.0",
        "git": {"revision": "0123456789abcdef0123", "dirty": False},
        "machine": MACHINE,
        "load_before": [0.1, 0.2, 0.3],
        "load_after": [1.9, 1.5, 0.9],
        "dataset": {"shapes": {"path": "data/shapes", "images": 16, "checksum": "abc"}},
        "arms": planned or [record.id for record, _ in arms],
        "baseline": {"codebase": "torchvision"} if baseline is None else baseline,
    }
    record = RunRecord(**{**values, **more})
    run.write_record(record)
    baselines = baseline_ids([one for one, _ in arms], record.baseline)
    for one, frame in arms:
        run.write_arm(one.model_copy(update={"baseline": baselines.get(one.id)}), frame)
    return run


def quickstart(folder: Path, **more: Any) -> Run:
    """Two codebases and a third that fails, two models, training and inference, EMA on and off in `native`."""
    arms = []
    seconds = {"torchvision": 1.30, "native": 1.12, "broken": 1.0}
    for number, (model, task, ema) in enumerate(
        itertools.product(("faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"), ("train", "infer"), (False, True))
    ):
        for index, codebase in enumerate(seconds):
            if ema and (task == "infer" or codebase != "native"):
                continue
            if codebase == "broken" and task == "infer":
                continue
            failed = codebase == "broken"
            record = arm(
                codebase,
                {"model": model, "task": task, "ema": ema},
                baseline=("codebase", "ema"),
                status="failed" if failed else "ok",
                failure=CRASH if failed else None,
                peak_mib=1500 + 200 * number + 90 * index,
            )
            time = seconds[codebase] * (1.1 if "mask" in model else 1) * (0.4 if task == "infer" else 1)
            arms.append((record, samples(time * (1.03 if ema else 1), seed=10 * number + index)))
    return write_run(folder, arms, baseline={"codebase": "torchvision", "ema": False}, **more)


def equal_audits(run: Run) -> dict[str, Audit]:
    """Verdicts that say of every arm that it does its baseline's work."""
    return {arm.id: Audit(arm.id, "baseline") for arm in run.arms()}


@contextmanager
def judged(audits: Mapping[str, Audit]) -> Iterator[None]:
    """Reports show these verdicts, by arm id, in place of those that the records give."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "audit_sessions", lambda _: audits)
        yield


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
    """Rows of the first table below a heading or a summary, with the parts that follow it, by column title."""
    section = re.split(rf"[ >]{re.escape(title)}(?:</summary>)?\n", text, maxsplit=1)[1]
    first, *others = tables_of(re.split(r"\n#|</details>", section)[0])
    parts = [first, *(one for one in others if len(one) == len(first) and one[0][0] == first[0][0])]
    return [
        {name: cell for part in parts for name, cell in zip(part[0], part[at], strict=True)}
        for at in range(1, len(first))
    ]


RATIO = "ratio to baseline [95 % interval]"
SECONDS = "s/iter, median (p5–p95)"


def small(folder: Path, **more: object) -> Run:
    """Two arms, one group."""
    arms = [(arm("torchvision"), samples(1.3, seed=1)), (arm("native"), samples(1.0, seed=2))]
    return write_run(folder / "run", arms, **more)  # type: ignore[arg-type]


def markdown_of(run: Run, **more: Any) -> str:
    """The markdown of one run, without drawing its figures."""
    return markdown.render(sections.report_blocks(Report((run_report(run, **more),)), [{}]))


def ratio_of(arm: pd.DataFrame, baseline: pd.DataFrame) -> Ratio:
    """What the statistics say of two tables of block times."""
    pairs = pair(arm, baseline)
    return ratio(pairs.launch, pairs.log_ratio)
