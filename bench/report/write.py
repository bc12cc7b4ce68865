"""A report on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from bench.recipe.codebases import Codebase
from bench.record.run import Run, write_atomic
from bench.report import figures, sections
from bench.report.app.page import render_page
from bench.report.build import run_report
from bench.report.render import markdown
from bench.report.text import to_json
from bench.report.values import Report

#: Bytes of report.md, whatever the number of arms.
MARKDOWN_LIMIT = 100_000


def generate(
    runs: Sequence[Run],
    output: Path,
    *,
    codebases: Mapping[str, Codebase] | None = None,
    every_figure: bool = False,
    history: Markup | str = "",
) -> Path:
    """Write `report.md`, `index.html`, `report.json` and `figures/`.

    Args:
        runs: Run folders; no ratio crosses them.
        output: The folder to write to.
        codebases: `bench.recipe.codebases.find_codebases`, for titles and versions.
        every_figure: Also draw the steps of every workload.
        history: A section of the page on other runs of the recipe.

    Returns:
        The path of `report.md`.

    Raises:
        BenchError: A record cannot be read, or `output` cannot be written.
    """
    report = Report(tuple(run_report(run, codebases=codebases) for run in runs))
    folder = output / "figures"
    several = len(report.runs) > 1
    prefixes = [f"{number}-" if several else "" for number in range(1, len(report.runs) + 1)]
    drawn = [
        figures.draw(run, folder, prefix, steps=every_figure)
        for run, prefix in zip(report.runs, prefixes, strict=True)
    ]
    blocks = sections.report_blocks(report, drawn)
    path = output / "report.md"
    write_atomic(output / "report.json", json.dumps(to_json(report), ensure_ascii=False) + "\n")
    write_atomic(output / "index.html", render_page(report, history))
    write_atomic(path, markdown.render(blocks, MARKDOWN_LIMIT))
    return path
