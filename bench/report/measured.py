"""The samples of one arm, read once, and ratios of two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from bench.judge.ratio import Ratio, Rounds, pair_rounds, pooled, rounds_of
from bench.judge.steady import Floats
from bench.record.samples import Columns, block_columns, problem_of, step_times
from bench.report.values import Trace


@dataclass(frozen=True)
class Measured:
    """The samples of one arm, read once. Empty when the arm failed: its ratio would be of half a measurement."""

    samples: Columns
    error: str = ""
    """Why the samples could not be read."""

    @cached_property
    def blocks(self) -> Columns:
        """`block_columns`: those that count."""
        return block_columns(self.samples)

    @cached_property
    def sessions(self) -> dict[int, Columns]:
        """The blocks of each session; of one run, all of them."""
        if "session" not in self.samples:
            return {0: self.blocks}
        launches, first = np.unique(self.samples["launch"], return_index=True)
        of_launch = self.samples["session"][first]
        session = of_launch[np.searchsorted(launches, self.blocks["launch"])]
        return {
            int(number): {name: column[session == number] for name, column in self.blocks.items()}
            for number in np.unique(of_launch)
        }

    @cached_property
    def rounds(self) -> dict[int, Rounds]:
        """The rounds of each session."""
        return {number: rounds_of(blocks) for number, blocks in self.sessions.items()}

    @cached_property
    def steps(self) -> Columns:
        """One row per step in order of time, warm-up included: the slowest rank's."""
        steps = step_times(self.samples)
        order = np.lexsort([steps[name] for name in ("step", "round", "launch")])
        return {name: column[order] for name, column in steps.items()}

    @property
    def seconds(self) -> Floats:
        """Of each measured step [N]."""
        return np.asarray(self.steps["duration_ns"][self.steps["round"] >= 0] / 1e9, dtype=np.float64)

    @cached_property
    def problem(self) -> str:
        """Why these samples give no numbers; empty when they do."""
        if self.error:
            return self.error
        return problem_of(self.samples) or (
            "" if self.blocks["round"].size else "no measured step in its samples"
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
            start_s=tuple((steps["start_ns"] / 1e9).tolist()),
            position=tuple(steps["position"].tolist()),
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
    both = sorted(arm.sessions.keys() & baseline.sessions)
    found = [pair_rounds(arm.rounds[number], baseline.rounds[number]) for number in both]
    found = [
        replace(pairs, log_ratio=pairs.log_ratio + math.log(images))
        for pairs in found
        if pairs.log_ratio.size
    ]
    return pooled(found, confidence) if found else None
