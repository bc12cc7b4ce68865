"""The samples of one arm, read once, and ratios of two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from bench.judge.ratio import Ratio, pair
from bench.judge.ratio import ratio as ratio_of
from bench.record.samples import block_times
from bench.report.values import Trace


@dataclass(frozen=True)
class Measured:
    """The samples of one arm, read once. Empty when the arm failed: its ratio would be of half a measurement."""

    samples: pd.DataFrame

    @cached_property
    def blocks(self) -> pd.DataFrame:
        """`block_times` of the blocks that took a positive time."""
        blocks = block_times(self.samples)
        return blocks[blocks["s_per_step"] > 0]

    @cached_property
    def steps(self) -> pd.DataFrame:
        """One row per step in order of time, warm-up included: the slowest rank's."""
        keys = [name for name in ("launch", "round", "position", "step", "batch") if name in self.samples]
        slowest = self.samples.groupby(keys, sort=False)["duration_ns"].max().reset_index()
        return slowest.sort_values(["launch", "round", "step"], kind="stable")

    @property
    def seconds(self) -> Any:
        """Of each measured step [N]."""
        measured = self.steps[self.steps["round"] >= 0]
        return measured["duration_ns"].to_numpy(dtype=np.float64) / 1e9

    @property
    def problem(self) -> str:
        """Why these samples give no numbers; empty when they do."""
        measured = self.samples[self.samples["round"] >= 0]
        bad = int((measured["duration_ns"] <= 0).sum())
        if bad:
            return f"{bad} of {len(measured)} step times are not positive: the samples are damaged"
        return "" if len(measured) else "no measured step in its samples"

    @property
    def trace(self) -> Trace:
        steps = self.steps
        return Trace(
            seconds=tuple((steps["duration_ns"] / 1e9).tolist()),
            launch=tuple(steps["launch"].tolist()),
            round=tuple(steps["round"].tolist()),
            batch=tuple(steps["batch"].tolist()) if "batch" in steps else (),
        )


def throughput_ratio(arm: Measured, baseline: Measured, images: float = 1.0) -> Ratio | None:
    """Images/s of `arm` over those of `baseline`, paired by round; None without a common round or a usable time.

    Args:
        arm: Samples of the arm.
        baseline: Samples of what it is compared with.
        images: Images per step of the arm over those of the baseline, where batch size or ranks differ.
    """
    if arm.problem or baseline.problem:
        return None
    pairs = pair(arm.blocks, baseline.blocks)
    return ratio_of(pairs.launch, pairs.log_ratio + math.log(images)) if pairs.log_ratio.size else None
