"""The samples of one arm, read once, and ratios of two of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.judge.ratio import Ratio, pair, pooled
from bench.record.samples import block_times, columns_of, problem_of, step_times
from bench.report.values import Trace


@dataclass(frozen=True)
class Measured:
    """The samples of one arm, read once. Empty when the arm failed: its ratio would be of half a measurement."""

    samples: pd.DataFrame
    error: str = ""
    """Why the samples could not be read."""

    @cached_property
    def blocks(self) -> pd.DataFrame:
        """`block_times`: those that count."""
        return block_times(self.samples)

    @cached_property
    def session(self) -> pd.Series:
        """Launch → session, of pooled runs; empty for one run."""
        if "session" not in self.samples:
            return pd.Series(dtype=np.int64)
        return self.samples.groupby("launch")["session"].first()

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per step in order of time, warm-up included: the slowest rank's."""
        steps = pd.DataFrame(step_times(columns_of(self.samples)))
        return steps.sort_values(["launch", "round", "step"], kind="stable")

    @property
    def seconds(self) -> Any:
        """Of each measured step [N]."""
        measured = self.steps[self.steps["round"] >= 0]
        return measured["duration_ns"].to_numpy(dtype=np.float64) / 1e9

    @cached_property
    def problem(self) -> str:
        """Why these samples give no numbers; empty when they do."""
        if self.error:
            return self.error
        return problem_of(columns_of(self.samples)) or (
            "" if len(self.blocks) else "no measured step in its samples"
        )

    @property
    def trace(self) -> Trace:
        steps = self.steps
        return Trace(
            seconds=tuple((steps["duration_ns"] / 1e9).tolist()),
            launch=tuple(steps["launch"].tolist()),
            round=tuple(steps["round"].tolist()),
            batch=tuple(steps["batch"].tolist()) if (steps["batch"] >= 0).any() else (),
            disturbed=tuple(steps["disturbed"].astype(bool).tolist()) if steps["disturbed"].any() else (),
        )


def throughput_ratio(
    arm: Measured, baseline: Measured, images: float = 1.0, confidence: float = 0.95
) -> Ratio | None:
    """Images/s of `arm` over those of `baseline`, paired by round; None without a common round or a usable time.

    Of pooled runs every session counts alike, and its interval is that of a further session.

    Args:
        arm: Samples of the arm.
        baseline: Samples of what it is compared with.
        images: Images per step of the arm over those of the baseline, where batch size or ranks differ.
        confidence: Of the interval; more than 0.95 where the run was stopped at a width.
    """
    if arm.problem or baseline.problem:
        return None
    found = [pair(*blocks) for blocks in _by_session(arm, baseline)]
    found = [
        replace(pairs, log_ratio=pairs.log_ratio + math.log(images))
        for pairs in found
        if pairs.log_ratio.size
    ]
    return pooled(found, confidence) if found else None


def _by_session(arm: Measured, baseline: Measured) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The blocks of both arms, session by session."""
    if not len(arm.session) or not len(baseline.session):
        yield arm.blocks, baseline.blocks
        return
    for number in sorted({*arm.session} & {*baseline.session}):
        one, two = (
            side.blocks[side.blocks["launch"].map(side.session) == number] for side in (arm, baseline)
        )
        yield one, two
