"""How the learning rate changes while training: linear warm-up, then steps."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

from detectors.config import ScheduleConfig

#: Name → (epochs, epochs after which the rate is divided by ten), as configs/_base_/schedules of mmdetection; 3x: its
#: configs/common/ms-poly_3x; 120e: configs/ssd/ssd300_coco.py, 24 epochs of the images five times over.
NAMED = {
    "1x": (12, (8, 11)),
    "2x": (24, (16, 22)),
    "20e": (20, (16, 19)),
    "3x": (36, (27, 33)),
    "120e": (120, (80, 110)),
}


class Schedule(NamedTuple):
    """The rate of every step. Nothing here has state: resuming needs only the number of the iteration.

    ``steps``: iterations before which the rate is divided by ten. ``decay``: "step", or how the rate falls to 0 at the
    last iteration: "cosine", half a period of it, or "poly", the share of what is left to the power of ``power``.
    """

    lr: float
    iterations: int
    steps: tuple[int, ...]
    warmup: int
    warmup_factor: float
    decay: str = "step"
    power: float = 0.9

    def lr_at(self, iteration: int) -> float:
        """The rate of a step, of which the first is number 0.

        In the warm-up the rate grows from ``warmup_factor`` on, by the same amount each time (detectron2's
        ``WarmupMultiStepLR``).
        """
        lr = self.lr * self._left(iteration)
        if iteration >= self.warmup:
            return lr
        return lr * (self.warmup_factor + (1 - self.warmup_factor) * iteration / self.warmup)

    def _left(self, iteration: int) -> float:
        """The share of the rate that is left, without the warm-up."""
        done = iteration / self.iterations
        if self.decay == "cosine":
            return (1 + math.cos(math.pi * done)) / 2
        if self.decay == "poly":
            return (1 - done) ** self.power
        return 0.1 ** bisect_right(self.steps, iteration)


def make_schedule(config: ScheduleConfig, *, lr: float, iterations_per_epoch: int) -> Schedule:
    """The schedule of a config. ``lr``: the rate after the warm-up."""
    iterations, steps = config.iterations, config.steps
    if iterations is None:
        assert config.name is not None
        epochs, after = NAMED[config.name]
        iterations = epochs * iterations_per_epoch
        steps = tuple(step * iterations_per_epoch for step in after)
    return Schedule(lr, iterations, steps, config.warmup, config.warmup_factor, config.decay, config.power)
