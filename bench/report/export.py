"""A run's ratios for other tools: CSV, Markdown, LaTeX, and two formats of benchmark services."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from bench.errors import BenchError, did_you_mean
from bench.report.answer import pivot_table
from bench.report.notebook import LoadedRun
from bench.report.render import markdown
from bench.report.text import ratio_text, significant

#: What a spreadsheet would run as a formula.
_FORMULA = re.compile(r"^[=+\-@\t\r]")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "≠": r"$\neq$", "†": r"\dag{}", "‡": r"\ddag{}",
        "✕": r"$\times$",
    }
)  # fmt: skip


def to_csv(run: LoadedRun) -> str:
    """`LoadedRun.ratios` as CSV. A text that a spreadsheet would run gets an apostrophe."""

    def safe(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    frame: pd.DataFrame = run.ratios().map(safe)
    return str(frame.to_csv(index=False))


def to_markdown(run: LoadedRun) -> str:
    """The pivot table of the report, with its marks."""
    return markdown.render([pivot_table(run.report, ends=10_000)])


def to_latex(run: LoadedRun) -> str:
    """A booktabs table of workload, codebase, s/iter and ratio with interval and marks."""
    lines = [
        r"\begin{tabular}{llrl}",
        r"\toprule",
        r"workload & codebase & s/iter & ratio [95\,\%] \\",
        r"\midrule",
    ]
    for group in run.report.groups:
        for row in group.rows:
            name, base = group.contrast(row)
            seconds = significant(row.step_s.median_s) if row.step_s else "--"
            ratio = "baseline" if row.is_baseline else ratio_text(row.ratio) if row.ratio else "--"
            cells = (group.title, name if row.is_baseline or not base else f"{name} / {base}", seconds, ratio)
            marks = "".join(row.marks).translate(_LATEX)
            lines.append(
                " & ".join(cell.translate(_LATEX) for cell in cells) + (f" {marks}" if marks else "") + r" \\"
            )
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def to_github_action(run: LoadedRun) -> str:
    """For github-action-benchmark, `customSmallerIsBetter`: seconds per step of every arm."""
    found = [
        {
            "name": f"{group.title} / {group.row_name(row)}",
            "unit": "s/iter",
            "value": row.step_s.median_s,
            "range": f"{significant(row.step_s.p5_s)}-{significant(row.step_s.p95_s)}",
            "extra": f"arm {row.arm}; equal work: {'baseline' if row.is_baseline else row.verdict}",
        }
        for group in run.report.groups
        for row in group.rows
        if row.step_s
    ]
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def to_bencher(run: LoadedRun) -> str:
    """Bencher's metric format: latency in nanoseconds with the spread of the steps."""
    found = {
        row.arm: {
            "latency": {
                "value": row.step_s.median_s * 1e9,
                "lower_value": row.step_s.p5_s * 1e9,
                "upper_value": row.step_s.p95_s * 1e9,
            }
        }
        for row in run.report.rows
        if row.step_s
    }
    return json.dumps(found, indent=1) + "\n"


FORMATS: dict[str, Callable[[LoadedRun], str]] = {
    "csv": to_csv,
    "markdown": to_markdown,
    "latex": to_latex,
    "github-action-benchmark": to_github_action,
    "bencher": to_bencher,
}


def export(run: LoadedRun, name: str) -> str:
    """The run in a format.

    Args:
        run: A loaded run.
        name: A key of `FORMATS`.

    Raises:
        BenchError: The format is unknown.
    """
    if name not in FORMATS:
        raise BenchError(f"unknown format '{name}'", hint=did_you_mean(name, FORMATS))
    return FORMATS[name](run)
