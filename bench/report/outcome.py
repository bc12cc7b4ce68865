"""What a run found, for the end of `bench run`."""

from __future__ import annotations

from collections.abc import Iterator

from bench.record.run import Run
from bench.report.answer import headline, legend, pivot_table
from bench.report.build import run_report
from bench.report.document import Block, Bullets, Text

#: Rows at each end of the table: a terminal is no page.
ENDS = 20


def outcome_blocks(run: Run) -> Iterator[Block]:
    """The headline, the pivot table and what its marks mean.

    Args:
        run: A finished or interrupted run.

    Raises:
        BenchError: A record cannot be read.
    """
    report = run_report(run)
    if not report.rows:
        return
    yield pivot_table(report, ENDS)
    marks = tuple(legend(report.rows))
    if marks:
        yield Text(f"Marks: {'; '.join(marks)}.")
    yield Bullets(headline(report))
