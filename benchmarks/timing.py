"""What benchmarks of single operators share: their options, and times of functions that take turns."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence

import torch


def repeats_from(arguments: list[str] | None, doc: str | None) -> int:
    """Read --threads, which are set, and --repeats, which are returned. ``doc``: whose first line --help shows."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    repeats: int = chosen.repeats
    return repeats


def best_ms(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Of each function; they take turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for seconds, function in zip(times, functions, strict=True):
            begin = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - begin)
    return [1e3 * min(seconds) for seconds in times]
