"""How long a plan is expected to take, from past runs where they tell."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.recipe.plan import Plan, estimate_s_per_step, steps_of, work_key
from bench.record.run import Run, find_runs


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
