"""Noise of paired rounds as machines make it, for tests and benchmarks of intervals and of the gate.

Each draws log-ratios [runs, launches, rounds] whose expected value over launches and rounds is zero. A spread of 2 %
between rounds is what a quiet machine shows; the rough ones were asked for by a reviewer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
Draw = Callable[[np.random.Generator, Shape], Floats]

SD = 0.02


def normal(launch_sd: float = 0.0) -> Draw:
    """Launches and rounds are normal."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        noise: Floats = rng.normal(0, launch_sd, (*shape[:2], 1)) + rng.normal(0, SD, shape)
        return noise

    return draw


def autocorrelated(coefficient: float = 0.8) -> Draw:
    """The rounds of a launch depend on each other: a first-order process."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        fresh = math.sqrt(1 - coefficient**2)
        noise = rng.normal(0, SD * fresh, shape)
        noise[..., 0] /= fresh
        for index in range(1, shape[-1]):
            noise[..., index] += coefficient * noise[..., index - 1]
        return noise

    return draw


def bursts(share: float = 0.05, size: float = 0.2, one_arm: bool = False) -> Draw:
    """Now and then a block takes longer, by ``size`` on average; in one arm only or in both."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        noise = rng.normal(0, SD, shape) + (rng.random(shape) < share) * rng.gamma(1, size, shape)
        if one_arm:
            return noise - share * size
        burst: Floats = noise - (rng.random(shape) < share) * rng.gamma(1, size, shape)
        return burst

    return draw


def heavy_tails(freedom: float = 2.5) -> Draw:
    """Rounds of Student's t distribution."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        return SD * rng.standard_t(freedom, shape)

    return draw


def skewed(rng: np.random.Generator, shape: Shape) -> Floats:
    """The difference of two skewed blocks."""
    first, second = (np.log1p(SD * rng.lognormal(0, 1, shape)) for _ in range(2))
    difference: Floats = first - second
    return difference


def two_modes(share: float = 0.5, gap: float = 0.05) -> Draw:
    """A launch of one arm is slow with probability ``share``, in all of its rounds: memory layout."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        slow = (rng.random((*shape[:2], 1)) < share) * gap - share * gap
        noise: Floats = slow + rng.normal(0, SD / 2, shape)
        return noise

    return draw


def drift(change: float = 0.1) -> Draw:
    """The machine slows down over a launch while two arms alternate in flipping order."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        blocks = 2 * shape[-1]
        walk = np.cumsum(rng.normal(0, change / math.sqrt(blocks), (*shape[:2], blocks)), axis=-1)
        log_s = (change * np.linspace(0, 1, blocks) + walk) / 2 + rng.normal(
            0, SD / math.sqrt(2), (*shape[:2], blocks)
        )
        sign = np.where(np.arange(shape[-1]) % 2 == rng.integers(0, 2, (*shape[:2], 1)), 1, -1)
        difference: Floats = sign * (log_s[..., 1::2] - log_s[..., 0::2])
        return difference

    return draw


NOISES: dict[str, Draw] = {
    "normal": normal(),
    "normal, 1 % between launches": normal(0.01),
    "drift of 10 % in a launch": drift(),
    "skewed": skewed,
    "AR(1) 0.8 in a launch": autocorrelated(),
    "bursts in both arms": bursts(),
    "bursts in one arm": bursts(one_arm=True),
    "heavy tails": heavy_tails(),
    "two modes of launches, 5 % apart, 1 : 1": two_modes(),
    "two modes of launches, 5 % apart, 1 : 3": two_modes(0.25),
}
