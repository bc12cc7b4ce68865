"""Reports: records in, markdown, figures, a static page and JSON out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.codebases import Codebase
from bench.record import Run, write_atomic
from bench.report import curves, figures, layout, markdown, page
from bench.report.comparison import Comparison, Side, comparison_blocks, comparison_table, resolve_side
from bench.report.tables import Report, Verdict, run_report, to_json
from bench.report.terminal import show

__all__ = [
    "Comparison",
    "Side",
    "Verdict",
    "comparison_blocks",
    "comparison_table",
    "generate",
    "resolve_side",
    "run_report",
    "show",
    "to_json",
]


def generate(
    runs: Sequence[Run],
    output: Path,
    *,
    codebases: Mapping[str, Codebase] | None = None,
    verdicts: Mapping[tuple[str, str], Verdict] | None = None,
) -> Path:
    """Write `report.md`, `index.html`, `report.json` and `figures/` into `output`; the path of `report.md`.

    ``codebases``: from `bench.codebases.find_codebases`, for titles and versions. ``verdicts``: the
    equal-work audit by (run id, arm id). Raises BenchError when a record cannot be read, StorageError when
    `output` cannot be written.
    """
    report = Report(tuple(run_report(run, codebases=codebases, verdicts=verdicts) for run in runs))
    folder = output / "figures"
    several = len(report.runs) > 1
    prefixes = [f"{number}-" if several else "" for number in range(1, len(report.runs) + 1)]
    drawn = [figures.draw(run, folder, prefix) for run, prefix in zip(report.runs, prefixes, strict=True)]
    accuracies = [
        curves.accuracy_blocks(run, curves.draw(run, folder, prefix), shift=int(several))
        for run, prefix in zip(report.runs, prefixes, strict=True)
    ]
    blocks = layout.report_blocks(report, drawn, accuracies)
    path = output / "report.md"
    write_atomic(output / "report.json", json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n")
    write_atomic(output / "index.html", page.render(blocks, folder))
    write_atomic(path, markdown.render(blocks))
    return path
