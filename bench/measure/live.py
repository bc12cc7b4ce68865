"""What a run has found so far: blocks done, time left, and the ratio of each arm to its baseline."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable
from statistics import median

import numpy as np

from bench.judge.ratio import Ratio, pair, ratio
from bench.recipe.plan import Plan
from bench.record.models import Block
from bench.record.samples import Columns


class SoFar:
    """Of a plan and the blocks of earlier sessions."""

    def __init__(self, plan: Plan, done: Iterable[Block] = ()) -> None:
        self.arms = {arm.id: arm for arm in plan.arms}
        measure = plan.measure
        self.planned = {
            arm.id: len(arm.workload.turns())
            if arm.workload.task == "train_eval"
            else measure.launches * (measure.rounds + 1)  # + 1: the warm-up
            for arm in plan.arms
        }
        self.rounds = measure.rounds
        self.measured: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        """Blocks of rounds that took the place of disturbed ones; no plan has them."""
        self.seconds: dict[str, dict[tuple[int, int], float]] = {}
        self.failed: set[str] = set()
        for block in done:
            self.add(block.arm, block.launch, block.round, seconds_of(block))
        self.before, self.begin = self.done, time.monotonic()

    def add(self, arm: str, launch: int, round_: int, s_per_step: float) -> None:
        """One more block."""
        self.measured[arm] += 1
        self.again[arm] += self.arms[arm].workload.task != "train_eval" and round_ >= self.rounds
        if round_ >= 0:
            self.seconds.setdefault(arm, {})[launch, round_] = s_per_step

    @property
    def done(self) -> int:
        """Blocks that were measured."""
        return self.measured.total()

    @property
    def total(self) -> int:
        """Blocks of the plan; what a failed arm did not measure is no part of it."""
        return sum(
            self.measured[arm]
            if arm in self.failed
            else max(self.planned[arm] + self.again[arm], self.measured[arm])
            for arm in self.arms
        )

    @property
    def left_s(self) -> float | None:
        """Seconds until the end, if blocks take as long as those of this session did; None before the first."""
        fresh = self.done - self.before
        return (time.monotonic() - self.begin) / fresh * (self.total - self.done) if fresh else None

    def median_s(self, arm: str) -> float | None:
        """Seconds per step."""
        found = self.seconds.get(arm)
        return median(found.values()) if found else None

    def ratio(self, arm: str) -> Ratio | None:
        """Throughput over that of the baseline; None for a baseline, and without a common round."""
        base = self.arms[arm].baseline
        if base is None or base == arm or base not in self.arms:
            return None
        pairs = pair(*(self._blocks(one) for one in (arm, base)))
        if not pairs.log_ratio.size:
            return None
        images, others = (self.arms[one].workload.images_per_step for one in (arm, base))
        return ratio(pairs.launch, pairs.log_ratio + math.log(images / others))

    def _blocks(self, arm: str) -> Columns:
        found = self.seconds.get(arm, {})
        launch, round_ = np.array(list(found), dtype=np.int64).reshape(-1, 2).T
        return {"launch": launch, "round": round_, "s_per_step": np.array(list(found.values()))}


def seconds_of(block: Block) -> float:
    """Per step, the slowest rank's."""
    return max((one.end_ns - one.start_ns[0]) / len(one.start_ns) for one in block.ranks) / 1e9
