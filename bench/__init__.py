"""Benchmark object-detection codebases against each other. See docs/explanation/architecture.md for the way data flows.

import bench
run = bench.run("quickstart")  # or bench.load("latest")
run.ratios()
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import load, run

__version__ = "0.1.0"
__all__ = ["__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    """`bench.load` and `bench.run`, imported when they are asked for: workers import this package too."""
    if name in ("load", "run"):
        return getattr(importlib.import_module("bench.api"), name)
    raise AttributeError(f"module 'bench' has no attribute '{name}'")
