"""Recorded noise replayed: false alarms and misses of our gate and of the rules users have today, on the same blocks.

    python -m benchmarks.gate.replay RUN            # RUN: the folder of a `bench run --aa` with many launches
    python -m benchmarks.gate.replay                # a made-up machine instead, for a first look

An A/A run measures one arm twice, interleaved, so every difference it shows is noise. A check is replayed by drawing
its launches from the recorded ones, with replacement, swapping the arms at random, and multiplying the times of
"head" by the planted slowdown. Each rule judges two kinds of data:

- *interleaved*: the blocks of both arms from the same launches;
- *sequential*: what most users have: one process measures the baseline, later another one the current revision.

Our gate refuses sequential data of this kind; its row there shows what happens to it when launches are paired with
launches of another time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from bench.gate import metrics, simulate
from bench.gate.decide import Schedule
from bench.record.run import Run
from bench.record.samples import block_times
from benchmarks.gate import errors, rules

Floats = npt.NDArray[np.float64]

CHECKS = 300
SLOWDOWNS = (0.0, 0.03, 0.05, 0.10)
SEQUENTIAL_LAUNCHES = 6


@dataclass(frozen=True)
class Recording:
    """Blocks of an A/A run: ``seconds`` per step [launches, 2 arms, rounds], launches in order of time."""

    seconds: Floats

    @classmethod
    def of_run(cls, folder: Path) -> Recording:
        """The first two arms of a run; launches that lack a round of either arm are left out."""
        run = Run(folder)
        first, second = run.record().arms[:2]
        tables = [
            block_times(run.samples(arm)).pivot(index="launch", columns="round", values="s_per_step").dropna()
            for arm in (first, second)
        ]
        launches = tables[0].index.intersection(tables[1].index)
        return cls(np.stack([table.loc[launches].to_numpy(dtype=np.float64) for table in tables], axis=1))

    @classmethod
    def made_up(cls, launches: int = 60, rounds: int = 10, seed: int = 0) -> Recording:
        """A machine whose speed wanders by 3 % from launch to launch, with bursts, and 2 % noise of each block."""
        rng = np.random.default_rng(seed)
        speed = np.zeros(launches)
        for index in range(1, launches):
            speed[index] = 0.9 * speed[index - 1] + rng.normal(0, 0.03 * np.sqrt(1 - 0.9**2))
        bursts = (rng.random((launches, 1, rounds)) < 0.05) * rng.gamma(1, 0.2, (launches, 1, rounds))
        own = rng.normal(0, 0.005, (launches, 2, 1)) + rng.normal(0, 0.018, (launches, 2, rounds))
        return cls(0.1 * np.exp(speed[:, None, None] + bursts + own))


@dataclass(frozen=True)
class Check:
    """The data of one replayed check, base and head [launches, rounds] each, in both kinds."""

    interleaved: tuple[Floats, Floats]
    sequential: tuple[Floats, Floats]


def replay(recording: Recording, slowdown: float, plan: Schedule, rng: np.random.Generator) -> Check:
    """Draw one check. Sequential data keep the order of time: base is a stretch of launches, head the next one."""
    count = len(recording.seconds)
    drawn = recording.seconds[rng.integers(0, count, plan.launches)].copy()
    swap = rng.random(plan.launches) < 0.5
    drawn[swap] = drawn[swap][:, ::-1]
    start, stretch = int(rng.integers(0, count)), min(SEQUENTIAL_LAUNCHES, count // 2)
    before = recording.seconds[np.arange(start, start + stretch) % count, 0]
    after = recording.seconds[np.arange(start + stretch, start + 2 * stretch) % count, 1]
    return Check((drawn[:, 0], drawn[:, 1] * (1 + slowdown)), (before, after * (1 + slowdown)))


def ours(base: Floats, head: Floats, plan: Schedule, tolerance: float) -> bool:
    """Whether our gate fails the change. Launches beyond those recorded are out of budget."""
    settings = metrics.read_settings([f"s/iter={tolerance}"], budget_s=60)
    found = errors.comparisons(np.log(base), np.log(head), settings.metrics_of("train"))
    return simulate.run_check(found, plan)[0] == "fail"


def judges(plan: Schedule, tolerance: float) -> dict[str, Callable[[Floats, Floats], bool]]:
    """Name → function of base and head [launches, rounds]. Other tools see blocks without their structure.

    A launch of ours is a run of theirs: pytest-benchmark and github-action-benchmark compare a run with a run, asv
    pools the samples of its `rounds` processes (2 by default).
    """
    return {
        f"bench check (tolerance {tolerance:.1%})": lambda a, b: ours(a, b, plan, tolerance),
        "pytest-benchmark `mean:5%`": lambda a, b: rules.pytest_benchmark(a[0], b[0], 5),
        "pytest-benchmark `mean:2%`": lambda a, b: rules.pytest_benchmark(a[0], b[0], 2),
        f"the same `mean:2%` over {SEQUENTIAL_LAUNCHES} launches": lambda a, b: rules.pytest_benchmark(
            a[:SEQUENTIAL_LAUNCHES], b[:SEQUENTIAL_LAUNCHES], 2
        ),
        "github-action-benchmark 200 % (default)": lambda a, b: rules.github_action_benchmark(
            a[0], b[0], 2.0
        ),
        "github-action-benchmark 105 %": lambda a, b: rules.github_action_benchmark(a[0], b[0], 1.05),
        "asv Mann–Whitney + factor 1.1 (default)": lambda a, b: rules.asv(a[:2].ravel(), b[:2].ravel(), 1.1),
        "asv Mann–Whitney + factor 1.02": lambda a, b: rules.asv(a[:2].ravel(), b[:2].ravel(), 1.02),
    }


def alarms(
    recording: Recording, plan: Schedule, tolerance: float, checks: int = CHECKS, seed: int = 0
) -> dict[tuple[str, str], list[int]]:
    """(rule, kind of data) → number of failed checks for each of `SLOWDOWNS`."""
    rng = np.random.default_rng(seed)
    counts: dict[tuple[str, str], list[int]] = {}
    for slowdown in SLOWDOWNS:
        replayed = [replay(recording, slowdown, plan, rng) for _ in range(checks)]
        for name, judge in judges(plan, tolerance).items():
            for kind in ("interleaved", "sequential"):
                failed = sum(judge(*getattr(check, kind)) for check in replayed)
                counts.setdefault((name, kind), []).append(failed)
    return counts


def table(counts: dict[tuple[str, str], list[int]], checks: int) -> str:
    """Markdown: false alarms with their 95 % interval (Clopper and Pearson), and misses of planted slowdowns."""
    planted = [f"{slowdown:.0%}" for slowdown in SLOWDOWNS[1:]]
    lines = [
        "| rule | data | false alarms, % | " + " | ".join(f"missed {name}, %" for name in planted) + " |",
        "|---|---|---|" + "---|" * len(planted),
    ]
    for (name, kind), (false, *found) in counts.items():
        interval = binomtest(false, checks).proportion_ci()
        rate = f"{100 * false / checks:.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
        misses = " | ".join(f"{100 * (checks - hits) / checks:.1f}" for hits in found)
        lines.append(f"| {name} | {kind} | {rate} | {misses} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path, help="folder of a `bench run --aa`")
    parser.add_argument("--tolerance", type=float, default=0.015)
    parser.add_argument("--checks", type=int, default=CHECKS)
    chosen = parser.parse_args(arguments)
    recording = Recording.of_run(chosen.run) if chosen.run else Recording.made_up()
    launches, _, rounds = recording.seconds.shape
    source = chosen.run or "a made-up machine, no measurement"
    print(f"{chosen.checks} checks replayed from {launches} launches of {rounds} rounds ({source})\n")
    plan = Schedule()
    print(table(alarms(recording, plan, chosen.tolerance, chosen.checks), chosen.checks))


if __name__ == "__main__":
    main(sys.argv[1:])
