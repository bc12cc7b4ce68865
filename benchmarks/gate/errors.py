"""False alarms, false passes and power of the gate on simulated machines, rough ones included, before and after.

    python -m benchmarks.gate.errors                       # 2,000 checks of each: some minutes
    python -m benchmarks.gate.errors --checks 300 --before ''
    python -m benchmarks.gate.errors --phases              # of phases (three steps a launch) and operators (one)

*Before* is the gate of the commit named by `--before`, run from `git archive`. Every check may take 24 launches of ten
rounds at a tolerance of 2 %. Shares are in per cent.
"""

from __future__ import annotations

import argparse
import itertools
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.gate import decide, metrics, simulate, summaries
from bench.gate.values import growth_of_phase

Floats = npt.NDArray[np.float64]
Shape = tuple[int, int, int]
Draw = Callable[[np.random.Generator, Shape], Floats]

TOLERANCE = 0.02
LAUNCHES = 24
ROUNDS = 10
BEFORE = "4cc097a"
BLOCK_SD = 0.018
"""Of one block: 2.5 % of the ratio of two."""


# -- machines: log seconds of the blocks of one side [checks, launches, rounds] -------------------------------


def normal(rng: np.random.Generator, shape: Shape) -> Floats:
    """Half a per cent between launches, normal rounds."""
    noise: Floats = rng.normal(0, 0.0035, (*shape[:2], 1)) + rng.normal(0, BLOCK_SD, shape)
    return noise


def skewed(rng: np.random.Generator, shape: Shape) -> Floats:
    noise: Floats = np.log1p(0.02 * rng.lognormal(0, 1, shape))
    return noise


def bursts(rng: np.random.Generator, shape: Shape) -> Floats:
    """One block of twenty takes a fifth longer on average."""
    return rng.normal(0, 0.01, shape) + (rng.random(shape) < 0.05) * rng.gamma(1, 0.2, shape)


def heavy_tails(rng: np.random.Generator, shape: Shape) -> Floats:
    return 0.01 * rng.standard_t(2.5, shape)


def autocorrelated(rng: np.random.Generator, shape: Shape) -> Floats:
    """Rounds of a launch that depend on each other: AR(1) with 0.8."""
    noise = rng.normal(0, BLOCK_SD * 0.6, shape)
    noise[..., 0] /= 0.6
    for index in range(1, shape[-1]):
        noise[..., index] += 0.8 * noise[..., index - 1]
    return noise


def two_modes(share: float, gap: float) -> Draw:
    """A launch of either side is slow with a probability."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        return normal(rng, shape) + (rng.random((*shape[:2], 1)) < share) * gap

    return draw


MACHINES: dict[str, Draw] = {
    "normal": normal,
    "skewed": skewed,
    "bursts": bursts,
    "heavy tails": heavy_tails,
    "AR(1) 0.8": autocorrelated,
    "two modes, 3 % apart, 1 : 1": two_modes(0.5, 0.03),
    "two modes, 5 % apart, 1 : 3": two_modes(0.25, 0.05),
}


# -- what the head revision does ------------------------------------------------------------------------------


def slower(share: float) -> Draw:
    return lambda _, shape: np.full(shape, math.log1p(share))


def slow_launches(share: float, mean: float) -> Draw:
    """Some launches are slower, so that the mean time grows by ``mean``."""

    def draw(rng: np.random.Generator, shape: Shape) -> Floats:
        slow = rng.random((*shape[:2], 1)) < share
        return np.broadcast_to(slow * math.log1p(mean / share), shape)

    return draw


def stalls(rng: np.random.Generator, shape: Shape) -> Floats:  # noqa: ARG001
    """Every tenth round takes 30 % longer: 3 % in the mean."""
    return np.broadcast_to((np.arange(shape[-1]) % 10 == 4) * math.log(1.3), shape)


HEADS: dict[str, Draw] = {
    "equal": slower(0.0),
    "slower by the tolerance": slower(TOLERANCE),
    "slower by 5 %": slower(0.05),
    "every tenth round 30 % slower": stalls,
    "half of the launches slow, mean +2.5 %": slow_launches(0.5, 0.025),
    "three of ten launches slow, mean +2.5 %": slow_launches(0.3, 0.025),
    "one of six launches slow, mean +2.5 %": slow_launches(1 / 6, 0.025),
}


def sides(
    machine: str, head: str, checks: int, seed: int = 0, launches: int = LAUNCHES
) -> tuple[Floats, Floats]:
    """Log seconds of base and head [checks, launches, rounds]."""
    rng = np.random.default_rng([seed, list(MACHINES).index(machine), list(HEADS).index(head)])
    shape = (checks, launches, ROUNDS)
    return MACHINES[machine](rng, shape), MACHINES[machine](rng, shape) + HEADS[head](rng, shape)


PHASES: dict[str, tuple[float, float]] = {
    "equal": (0.0, 0.0),
    "10 % of the step moved to the phase": (0.1, -0.1),
    "slower by the tolerance": (TOLERANCE, 0.0),
    "slower by 2.5 % of the step": (0.025, 0.0),
    "slower by 5 % of the step": (0.05, 0.0),
    "slower by 10 % of the step, the rest faster by 7 %": (0.1, -0.07),
}
"""By how much of the base's step head's phase and the rest of its step grew."""


def of_phase(machine: str, head: str, checks: int, steps: int, seed: int = 0) -> list[decide.Launches]:
    """Growth, in each launch of each check, of a phase of half the step; phase and rest have noise of their own."""
    rng = np.random.default_rng([seed, list(MACHINES).index(machine), list(PHASES).index(head), steps])

    def seconds(*grown: float) -> Floats:
        parts = [(0.5 + more) * np.exp(MACHINES[machine](rng, (checks, LAUNCHES, steps))) for more in grown]
        return np.stack([parts[0], sum(parts)], axis=-1)

    return [*map(growth_of_phase, seconds(0.0, 0.0), seconds(*PHASES[head]))]


# -- outcomes -------------------------------------------------------------------------------------------------

Outcomes = list[tuple[str, int]]


def after(base: Floats, head: Floats) -> Outcomes:
    """State and launches used of each check, by the gate as it is."""
    plan = decide.Schedule.within(base.shape[1])
    settings = metrics.Settings({}, 60).metrics_of("train")
    return [simulate.run_check(comparisons(b, h, settings), plan) for b, h in zip(base, head, strict=True)]


def of_phases(growths: list[decide.Launches]) -> Outcomes:
    """The same of a phase alone."""
    plan, target = decide.Schedule.within(LAUNCHES), metrics.metric("phase forward", TOLERANCE)
    return [simulate.run_check({target.name: (target, one)}, plan) for one in growths]


def comparisons(
    base: Floats, head: Floats, targets: list[metrics.Metric]
) -> dict[str, tuple[metrics.Metric, decide.Launches]]:
    """What `bench check` judges of log seconds [launches, rounds]: the trimmed and the plain mean."""
    found = {}
    for target in targets:
        each = [
            summaries.mean_of(b, h) if target.statistic == "mean" else summaries.trimmed(h - b)
            for b, h in zip(base, head, strict=True)
        ]
        columns = (np.array([getattr(one, name) for one in each]) for name in ("value", "error", "freedom"))
        found[target.name] = target, decide.Launches(*columns)
    return found


OLD_GATE = """
import sys, numpy as np
from scipy.stats import trim_mean
from bench.gate import decide, metrics, simulate
plan, target = decide.Plan.within({launches}), metrics.metric("s/iter", {tolerance})
for rounds in np.load(sys.argv[1]):
    print(*simulate.run_check(list(trim_mean(rounds, metrics.TRIMMED, axis=1)), target, plan))
"""


def before(folder: Path, base: Floats, head: Floats) -> Outcomes:
    """The same by the gate in ``folder``, a checkout of an earlier revision."""
    data = folder / "rounds.npy"
    np.save(data, head - base)
    script = OLD_GATE.format(launches=base.shape[1], tolerance=TOLERANCE)
    done = subprocess.run([sys.executable, "-c", script, str(data)], cwd=folder, check=True, capture_output=True,
                          text=True)  # fmt: skip
    return [(state, int(used)) for state, used in map(str.split, done.stdout.splitlines())]


def row(outcomes: Outcomes) -> str:
    """`failed | passed | median launches`."""
    states = [state for state, _ in outcomes]
    shares = (f"{100 * states.count(state) / len(states):.1f}" for state in ("fail", "pass"))
    return " | ".join([*shares, f"{np.median([used for _, used in outcomes]):.0f}"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checks", type=int, default=2000)
    parser.add_argument("--launches", type=int, default=LAUNCHES, help="budget of a check")
    parser.add_argument("--before", default=BEFORE, help="revision of the old gate; empty: not at all")
    parser.add_argument("--phases", action="store_true", help="of phases and operators instead of steps")
    chosen = parser.parse_args(arguments)
    if chosen.phases:
        print("| machine | head | what | failed | passed | launches, median |\n|---|---|---|---:|---:|---:|")
        for machine, head in itertools.product(MACHINES, PHASES):
            for what, steps in (("phase", 3), ("operator", 1)):
                found = of_phases(of_phase(machine, head, chosen.checks, steps))
                print(f"| {machine} | {head} | {what} | {row(found)} |", flush=True)
        return
    print("| machine | head | gate | failed | passed | launches, median |\n|---|---|---|---:|---:|---:|")
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as name:
        folder = Path(name)
        if chosen.before:
            root = Path(__file__).resolve().parents[2]
            archive = subprocess.run(["git", "-C", str(root), "archive", chosen.before, "bench"], check=True,
                                     capture_output=True).stdout  # fmt: skip
            subprocess.run(["tar", "-x", "-C", name], input=archive, check=True)
        for machine in MACHINES:
            for head in HEADS:
                data = sides(machine, head, chosen.checks, launches=chosen.launches)
                if chosen.before:
                    print(f"| {machine} | {head} | before | {row(before(folder, *data))} |", flush=True)
                print(f"| {machine} | {head} | after | {row(after(*data))} |", flush=True)


if __name__ == "__main__":
    main()
