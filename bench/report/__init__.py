"""Reports: records in, markdown, figures, a static page and JSON out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.recipe.codebases import Codebase
from bench.record.run import Run, write_atomic
from bench.report import accuracy_figures, accuracy_sections, figures, sections
from bench.report.comparison import Comparison, Side, comparison_blocks, comparison_table, resolve_side
from bench.report.render import markdown, page
from bench.report.render.terminal import show
from bench.report.values import Report, Verdict, run_report, to_json

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

    ``codebases``: from `bench.recipe.codebases.find_codebases`, for titles and versions. ``verdicts``: the
    equal-work audit by (run id, arm id). Raises BenchError when a record cannot be read, StorageError when
    `output` cannot be written.
    """
    report = Report(tuple(run_report(run, codebases=codebases, verdicts=verdicts) for run in runs))
    folder = output / "figures"
    several = len(report.runs) > 1
    prefixes = [f"{number}-" if several else "" for number in range(1, len(report.runs) + 1)]
    drawn = [figures.draw(run, folder, prefix) for run, prefix in zip(report.runs, prefixes, strict=True)]
    accuracies = [
        accuracy_sections.accuracy_blocks(run, accuracy_figures.draw(run, folder, prefix), shift=int(several))
        for run, prefix in zip(report.runs, prefixes, strict=True)
    ]
    blocks = sections.report_blocks(report, drawn, accuracies)
    path = output / "report.md"
    write_atomic(output / "report.json", json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n")
    write_atomic(output / "index.html", page.render(blocks, folder))
    write_atomic(path, markdown.render(blocks))
    return path
