"""Runs in progress."""

from __future__ import annotations

import time
from pathlib import Path

from bench.record.run import Run
from tests.conftest import Cli


def wait_for_blocks(cli: Cli, count: int, deadline_s: float = 60.0) -> Path:
    """Until the journal of the newest run has so many lines."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        for folder in cli.runs():
            if len(Run(folder).journal()) >= count:
                return folder
        time.sleep(0.02)
    raise AssertionError("no blocks were measured")
