"""How long a plan is expected to take, from past runs where they tell."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.recipe.models import MODELS
from bench.recipe.plan import Arm, Plan, work_key
from bench.recipe.schema import Measure
from bench.record.run import Run, find_runs

#: What two idle cores and what a V100 reach on convolutions, for estimates only; past runs replace these guesses.
ROUGH_FLOPS_PER_S = {"cpu": 100e9, "cuda": 5e12}


def median_s(run: Run, arm: str) -> float | None:
    seconds = run.block_seconds(arm)
    return float(np.median(seconds)) if seconds.size else None


def past_s_per_step(results: Path) -> dict[str, float]:
    """Median seconds per step of the work that past runs of this results folder measured; later runs win."""
    past: dict[str, float] = {}
    for folder in find_runs(results)[-20:]:
        run = Run(folder)
        with contextlib.suppress(BenchError):  # a broken record tells nothing about time
            for arm in run.arms():
                seconds = median_s(run, arm.id)
                if seconds is not None:
                    past[work_key(arm.codebase, arm.workload, arm.options)] = seconds
    return past


def estimate_s_per_step(arm: Arm, past: Mapping[str, float]) -> tuple[float, bool]:
    """Seconds of one step, and whether they come from a past run of the same work (else a rough count of FLOPs)."""
    key = work_key(arm.codebase, arm.workload, arm.options)
    if key in past:
        return past[key], True
    size = arm.workload.input.size
    area = size[0] * size[1] if isinstance(size, tuple) else size.short * size.long
    model = MODELS.get(arm.workload.model)
    flops = (model.gflops if model else 120.0) * 1e9 * area / 512**2 * arm.workload.batch_size
    passes = 3.0 if arm.workload.trains else 1.0
    sharing = arm.workload.ranks if arm.workload.device == "cpu" else 1  # ranks on a CPU share its cores
    return flops * passes * sharing / ROUGH_FLOPS_PER_S[arm.workload.device], False


def steps_of(arm: Arm, measure: Measure) -> int:
    """Steps an arm runs in all launches, every pass counted; of a train_eval arm those of training, and as many more as
    its evaluations take at a third of the work for each image."""
    workload = arm.workload
    if workload.task == "train_eval":
        evaluations = sum(workload.evaluated_after(step) for step in (0, *workload.turns()))
        images = evaluations * (workload.eval_images or workload.input.wanted)
        return workload.steps + images // (3 * workload.batch_size)
    extra = measure.warmup + measure.phase_steps + measure.memory_steps + 1
    return measure.launches * (extra + measure.rounds * (measure.settle + measure.steps))


def estimates_of(plan: Plan, results: Path) -> dict[str, float]:
    """Arm → seconds that it is expected to take."""
    return {arm["id"]: arm["estimate_s"] for arm in planned(plan, results)["arms"]}


def planned(plan: Plan, results: Path) -> dict[str, Any]:
    """The plan as data, with an estimate of its time."""
    past = past_s_per_step(results)
    arms, total_s, measured = [], 0.0, True
    for arm in plan.arms:
        seconds, known = estimate_s_per_step(arm, past)
        steps = steps_of(arm, plan.measure)
        launches = 1 if arm.workload.task == "train_eval" else plan.measure.launches
        arm_s = seconds * steps + launches * 10.0  # starting a worker takes some seconds
        total_s, measured = total_s + arm_s, measured and known
        arms.append(
            {
                "id": arm.id,
                "codebase": arm.codebase,
                "cell": arm.cell,
                "levels": dict(arm.levels),
                "model": arm.workload.model,
                "task": arm.workload.task,
                "ranks": arm.workload.ranks,
                "variables": dict(arm.variables),
                "steps": steps,
                "estimate_s": round(arm_s, 1),
                "estimate_from": "a past run" if known else "a rough count of operations",
            }
        )
    return {
        "recipe": plan.name,
        "cells": len(plan.cells),
        "arms": arms,
        "measure": plan.measure.model_dump(),
        "baseline": dict(plan.baseline),
        "estimate_s": round(total_s, 1),
        "estimate_from": "past runs" if measured else "rough counts of operations where no past run tells",
    }
