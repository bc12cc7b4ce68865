"""Latency of inference: percentiles of single steps, where enough of them were measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bench.report.document import Block, Cell, Column, Table, Text
from bench.report.text import cell, number
from bench.report.values import Group, Row, RunReport, trains

PERCENTILES = (50, 90, 99)


def percentile_ms(seconds: Sequence[float], percentile: int) -> float | None:
    """A percentile in milliseconds.

    Args:
        seconds: Of single steps.
        percentile: Above 0, below 100.

    Returns:
        None where the steps are too few for one of them to be expected above it.
    """
    if len(seconds) * (100 - percentile) < 100:
        return None
    return 1e3 * float(np.percentile(seconds, percentile))


def latency_blocks(run: RunReport) -> Iterator[Block]:
    """A row of percentiles for every arm that infers."""
    rows = [_cells(group, row) for group, row in run.placed if not trains(group.task)]
    found = tuple(row for row in rows if row)
    if not found:
        return
    yield Text(
        "Milliseconds of single steps, each of a whole batch from the loaded images to the final detections. All "
        "measured steps count, those too in which other processes took processors. One step follows the other: "
        "no request waits in a queue. A percentile that fewer steps were measured for than it needs is –."
    )
    titles = [Column(f"p{one} (ms)", True) for one in PERCENTILES]
    first = (Column("workload"), Column("codebase"), Column("images", True), Column("steps", True))
    yield Table((*first, *titles, Column("longest (ms)", True)), found)


def _cells(group: Group, row: Row) -> tuple[Cell, ...]:
    seconds = [one for one, warm in zip(row.trace.seconds, row.trace.warmup, strict=True) if not warm]
    if not seconds:
        return ()
    values = [*(percentile_ms(seconds, one) for one in PERCENTILES), 1e3 * max(seconds)]
    counts = (cell(row.images_per_step), cell(len(seconds)))
    return (cell(group.title), cell(group.row_name(row)), *counts, *(number(one, 4) for one in values))
