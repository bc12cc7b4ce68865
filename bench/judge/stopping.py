"""How many launches a ratio needs: planned from the noise seen, and stopped without losing coverage."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError
from bench.judge.ratio import Ratio, levels, ratio
from bench.judge.steady import t_quantile

FIRST_LOOK = 4
GROWTH = 1.5
"""Looks are so much apart: few enough to be cheap, close enough to stop soon."""
MOST_ROUNDS = 50
MOST_LAUNCHES = 100_000


@dataclass(frozen=True)
class Components:
    """Standard deviations of the log-ratio: of a launch's own effect, and of a round within a launch."""

    launch_sd: float
    round_sd: float

    def half_width(self, launches: int, rounds: int, confidence: float) -> float:
        """Half width of the interval that so many launches of so many rounds are expected to give (log-ratio)."""
        error = math.sqrt((self.launch_sd**2 + self.round_sd**2 / rounds) / launches)
        return t_quantile(launches - 1, (1 + confidence) / 2) * error


def components_of(launch: npt.ArrayLike, log_ratio: npt.ArrayLike) -> Components:
    """The noise that the rounds of at least two launches show, by moments.

    Args:
        launch: launch of each round, int [N].
        log_ratio: log-ratio of each round [N].

    Raises:
        BenchError: for fewer than two launches.
    """
    launches, y = np.asarray(launch, dtype=np.int64), np.asarray(log_ratio, dtype=np.float64)
    _, counts = np.unique(launches, return_counts=True)
    if counts.size < 2:
        raise BenchError("the spread between launches needs two of them", hint="use measure.launches >= 2")
    errors = {level.name: level.error for level in levels(np.zeros_like(launches), launches, y)[1]}
    rounds = float(1 / (1 / counts).mean())
    round_variance = errors.get("rounds", 0.0) ** 2 * counts.size * rounds
    launch_variance = errors["launches"] ** 2 * counts.size - round_variance / rounds
    return Components(math.sqrt(max(0.0, launch_variance)), math.sqrt(round_variance))


def best_rounds(noise: Components, launch_s: float, round_s: float) -> int:
    """Rounds per launch that give the narrowest interval for the time spent (Kalibera and Jones, ISMM 2013).

    Args:
        noise: of the ratio.
        launch_s: seconds to start all arms of a launch and to warm them up.
        round_s: seconds of a round.
    """
    if noise.launch_sd == 0:
        return MOST_ROUNDS
    best = noise.round_sd / noise.launch_sd * math.sqrt(launch_s / round_s)
    return min(max(1, round(best)), MOST_ROUNDS)


def launches_needed(noise: Components, rounds: int, half_width: float, confidence: float = 0.95) -> int:
    """The fewest launches whose interval is expected to be so narrow.

    Args:
        noise: of the ratio.
        rounds: in each launch.
        half_width: of the interval, relative (0.03: 3 %).
        confidence: of the interval.

    Returns:
        At least two launches; `MOST_LAUNCHES` where more would be needed.
    """
    wanted = math.log1p(half_width)
    low, high = 1, 2
    while noise.half_width(high, rounds, confidence) > wanted:
        if high >= MOST_LAUNCHES:
            return MOST_LAUNCHES
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (low, middle) if noise.half_width(middle, rounds, confidence) <= wanted else (middle, high)
        )
    return high


def confidence_of(until: float | None, launches: int) -> float:
    """Confidence at which the intervals of a run have to be made so that they hold in 95 % of runs.

    Args:
        until: `measure.until` of the recipe.
        launches: `measure.launches`.
    """
    return Until.within(until, launches).confidence_of_a_look if until else 0.95


@dataclass(frozen=True)
class Progress:
    """Where a ratio stands: ``more_launches`` to measure before asking again, 0 at the end.

    ``planned``: launches that the noise so far asks for.
    """

    ratio: Ratio
    reached: bool
    more_launches: int
    planned: int


@dataclass(frozen=True)
class Until:
    """Add launches until an interval is narrow enough, fixed before anything is measured.

    ``half_width``: wanted, relative (0.03: 3 %). ``looks``: the launch counts at which it is asked. ``confidence``:
    holds whenever the run stops, since every look's interval is made at 1 - (1 - confidence) / looks.
    """

    half_width: float
    looks: tuple[int, ...]
    confidence: float = 0.95

    @classmethod
    def within(cls, half_width: float, launches: int, confidence: float = 0.95) -> Until:
        """Looks for at most so many launches.

        Raises:
            BenchError: for fewer than `FIRST_LOOK`, or a width that is not between 0 and 1.
        """
        if launches < FIRST_LOOK:
            raise BenchError(
                f"a width cannot be reached in {launches} launches", hint=f"allow {FIRST_LOOK} or more"
            )
        if not 0 < half_width < 1:
            raise BenchError(f"half width must be between 0 and 1, got {half_width}", hint="for example 3%")
        looks, look = [], float(FIRST_LOOK)
        while round(look) < launches:
            looks.append(round(look))
            look *= GROWTH
        return cls(half_width, (*looks, launches), confidence)

    @property
    def confidence_of_a_look(self) -> float:
        """What `bench.judge.ratio.ratio` has to be asked for, at every look and in the report of the run."""
        return 1 - (1 - self.confidence) / len(self.looks)

    def ask(self, launch: npt.ArrayLike, log_ratio: npt.ArrayLike) -> Progress:
        """Whether a ratio is known well enough after the launches so far.

        Args:
            launch: launch of each round, int [N].
            log_ratio: log-ratio of each round [N], as of `bench.judge.ratio.pair`.

        Returns:
            The ratio with its interval, and what to measure next.
        """
        found = ratio(launch, log_ratio, self.confidence_of_a_look)
        reached = found.launches >= self.looks[0] and found.high / found.value - 1 <= self.half_width
        next_look = next((look for look in self.looks if look > found.launches), 0)
        planned = found.launches
        if found.launches > 1:
            rounds = max(1, found.rounds // found.launches)
            planned = launches_needed(
                components_of(launch, log_ratio), rounds, self.half_width, self.confidence_of_a_look
            )
        more = 0 if reached or not next_look else next_look - found.launches
        return Progress(found, reached, more, planned)
