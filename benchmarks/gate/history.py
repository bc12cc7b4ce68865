"""False and found change points of `bench history` in series with noise that wanders, before and after.

    python -m benchmarks.gate.history

*Before* is the search of the commit named by `--before`, executed from git: a rank test on each side of a candidate.
Apache Otava's takes part where the package apache-otava is installed.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.gate.changes import change_points
from benchmarks.gate.annotated import otava

Floats = npt.NDArray[np.float64]

BEFORE = "4cc097a"
SD = 0.03


def autocorrelated(
    rng: np.random.Generator, series: int, runs: int, coefficient: float = 0.5, sd: float = SD
) -> Floats:
    """Seconds of a run [series, runs] around 1: AR(1) noise and no change."""
    fresh = math.sqrt(1 - coefficient**2)
    noise = rng.normal(0, sd * fresh, (series, runs))
    noise[:, 0] /= fresh
    for index in range(1, runs):
        noise[:, index] += coefficient * noise[:, index - 1]
    return np.exp(noise)


def old_search(revision: str) -> Any:
    """`change_points` of `bench/gate/changes.py` as it was at a revision."""
    name = f"{revision}:bench/gate/changes.py"
    folder = Path(__file__).resolve().parent
    text = subprocess.run(
        ["git", "show", name], cwd=folder, check=True, capture_output=True, text=True
    ).stdout
    module = types.ModuleType("changes_before")
    sys.modules[module.__name__] = module
    text = text.replace("from bench.judge.ratio import Floats", "from bench.judge.steady import Floats")
    exec(compile(text, name, "exec"), module.__dict__)  # noqa: S102
    return module.change_points


def shares(search: Any, runs: int, coefficient: float, step: float, series: int, seed: int = 0) -> float:
    """Share of series in which a change is found; with a step of 0 every one of them is false."""
    rng = np.random.default_rng([seed, runs, round(100 * coefficient)])
    values = autocorrelated(rng, series, runs, coefficient)
    values[:, runs // 2 :] *= 1 + step
    return sum(bool(search(one, "lower")) for one in values) / series


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--series", type=int, default=1000)
    parser.add_argument("--before", default=BEFORE, help="revision of the old search; empty: not at all")
    chosen = parser.parse_args(arguments)
    searches = {"before": old_search(chosen.before)} if chosen.before else {}
    searches["after"] = change_points
    searches |= {name: lambda values, _, search=search: search(values) for name, search in otava().items()}
    lengths = (16, 30, 60, 120)
    print(f"| correlation | step in the middle | search | {' | '.join(f'{n} runs' for n in lengths)} |")
    print("|---|---|---|" + "---:|" * len(lengths))
    for coefficient, step in ((0.0, 0.0), (0.3, 0.0), (0.5, 0.0), (0.0, 0.1), (0.5, 0.1)):
        for name, search in searches.items():
            found = [100 * shares(search, runs, coefficient, step, chosen.series) for runs in lengths]
            cells = " | ".join(f"{share:.1f}" for share in found)
            print(f"| {coefficient:g} | {step:.0%} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
