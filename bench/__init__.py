"""Benchmark object-detection codebases against each other. See docs/architecture.md for the way data flows."""

import importlib
from typing import Any

__version__ = "0.1.0"


def load(folder: Any) -> Any:
    """Open a run folder in a notebook: `bench.load(folder).ratios()`.

    Args:
        folder: The folder of a run.

    Returns:
        A `bench.report.notebook.LoadedRun`, with its ratios, samples and audit as pandas tables.
    """
    return importlib.import_module("bench.report.notebook").load(
        folder
    )  # not before it is asked for: it is large
