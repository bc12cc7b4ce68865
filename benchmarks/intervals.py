"""How often a 95 % interval holds the true ratio, under smooth and rough noise, before and after issue 19.

    python -m benchmarks.intervals                    # 4,000 runs of each design: about a minute for each method
    python -m benchmarks.intervals --runs 500

*Before* is the method of the commit named by `--before`, executed from git: a studentised bootstrap over launches.
*Width* is the median half width of the interval, in per cent.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

from bench.judge.ratio import ratio
from benchmarks.noises import NOISES, Draw

DESIGNS = ((2, 3), (3, 3), (3, 5), (4, 3), (6, 5), (12, 5))
BEFORE = "4cc097a"


def old_method(revision: str) -> Any:
    """`ratio` of `bench/judge/ratio.py` as it was at a revision."""
    name = f"{revision}:bench/judge/ratio.py"
    folder = Path(__file__).resolve().parent
    text = subprocess.run(
        ["git", "show", name], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    module = types.ModuleType("ratio_before")
    sys.modules[module.__name__] = module
    exec(compile(text, name, "exec"), module.__dict__)  # noqa: S102
    return lambda launch, y: module.ratio(launch, y, resamples=1000)


def coverage(
    method: Any, draw: Draw, design: tuple[int, int], runs: int, seed: int = 0
) -> tuple[float, float]:
    """Share of runs whose interval holds the truth, and the median half width in per cent.

    Args:
        method: function of launch [N] and log-ratio [N].
        draw: noise of `benchmarks.noises`.
        design: launches and rounds.
        runs: how many are simulated.
        seed: of the noise; the same for every method.
    """
    launches, rounds = design
    noise = draw(np.random.default_rng([seed, launches, rounds]), (runs, launches, rounds))
    launch = np.repeat(np.arange(launches), rounds)
    found = [method(launch, run.ravel()) for run in noise]
    held = np.mean([one.low <= 1 <= one.high for one in found])
    return float(held), 50 * float(np.median([np.log(one.high / one.low) for one in found]))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--before", default=BEFORE, help="revision of the old method; empty: not at all")
    chosen = parser.parse_args(arguments)
    methods = {"before": old_method(chosen.before)} if chosen.before else {}
    methods["after"] = ratio
    heads = [f"{launches} × {rounds}" for launches, rounds in DESIGNS]
    print(f"| noise | method | {' | '.join(heads)} |\n|---|---|{'---:|' * len(heads)}")
    for name, draw in NOISES.items():
        for method, function in methods.items():
            found = [coverage(function, draw, design, chosen.runs) for design in DESIGNS]
            cells = [f"{100 * held:.1f} (±{width:.1f})" for held, width in found]
            print(f"| {name} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
