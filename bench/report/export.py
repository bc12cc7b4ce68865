"""A run's ratios for other tools: tables, and formats of benchmark services, of test reports and of trackers."""

from __future__ import annotations

import importlib
import io
import json
import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any
from xml.etree import ElementTree

from bench.errors import BenchError, did_you_mean
from bench.judge.numbers import ratio_text, significant
from bench.record.machine import fingerprint
from bench.report.answer import pivot_table
from bench.report.notebook import LoadedRun
from bench.report.render import markdown
from bench.report.sections import log_tail
from bench.report.text import marked
from bench.report.values import RunReport
from bench.text_safety import visible

#: What a spreadsheet would run as a formula.
_FORMULA = re.compile(r"^[=+\-@\t\r]")
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "≠": r"$\neq$", "†": r"\dag{}", "‡": r"\ddag{}",
        "✕": r"$\times$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "◇": r"$\diamond$",
    }
)  # fmt: skip


def to_csv(run: LoadedRun) -> str:
    """`LoadedRun.ratios` as CSV. A text that a spreadsheet would run gets an apostrophe."""

    def safe(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value

    return str(run.ratios().map(safe).to_csv(index=False))


def to_latex(run: LoadedRun) -> str:
    """A booktabs table of workload, codebase, s/iter and ratio with interval and marks."""
    lines = [
        r"\begin{tabular}{llrl}",
        r"\toprule",
        r"workload & codebase & s/iter & ratio [95\,\%] \\",
        r"\midrule",
    ]
    for group, row in run.report.placed:
        name, base = group.contrast(row)
        seconds = significant(row.step_s.median_s) if row.step_s else "--"
        ratio = "baseline" if row.is_baseline else ratio_text(row.ratio) if row.ratio else "--"
        cells = (group.title, name if row.is_baseline or not base else f"{name} / {base}", seconds, ratio)
        marks = "".join(row.marks).translate(_LATEX)
        line = " & ".join(cell.translate(_LATEX) for cell in cells)
        lines.append(f"{marked(line, marks)} \\\\")
    return visible("\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]))


def bibtex(run: RunReport) -> str:
    """An entry that cites a run."""
    known = {
        "title": f"Benchmark run {run.id} of {run.name}",
        "year": run.started_utc[:4],
        "howpublished": str(run.git.get("origin") or ""),
        "note": f"bench {run.bench_version}, revision {run.git.get('revision') or 'unknown'}",
    }
    lines = (f"  {key} = {{{{{visible(text).translate(_LATEX)}}}}}," for key, text in known.items() if text)
    return "\n".join([f"@misc{{bench-{run.id},", *lines, "}\n"])


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
        for group, row in run.report.placed
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


def to_parquet(run: LoadedRun) -> bytes:
    """`LoadedRun.ratios` as Parquet."""
    target = io.BytesIO()
    run.ratios().to_parquet(target, index=False)
    return target.getvalue()


def to_asv(run: LoadedRun) -> str:
    """A results file of asv (version 2): `time` (s/iter) and `peakmem` (bytes) of every arm, null where it failed.

    The commit is that of bench, and the date that of the run.
    """
    report = run.report
    started = round(datetime.fromisoformat(report.started_utc).timestamp() * 1000)
    results: dict[str, list[Any]] = {}
    for row in report.rows:
        median_s = row.step_s and row.step_s.median_s
        results[f"{row.arm}.time"] = [[median_s], [], None, started, None, [row.trace.measured_s]]
        if row.memory:
            results[f"{row.arm}.peakmem"] = [[row.memory.peak_bytes], [], None, started]
    cpu, memory = (
        found if isinstance(found := report.machine.get(name), dict) else {} for name in ("cpu", "memory")
    )
    python = ".".join((report.software[0].python if report.software else "").split(".")[:2])
    document = {
        "commit_hash": report.git.get("revision") or report.bench_version,
        "env_name": "bench",
        "date": started,
        "params": {
            "machine": fingerprint(report.machine),
            "cpu": str(cpu.get("model", "")),
            "num_cpu": str(cpu.get("logical_cores", "")),
            "ram": str(memory.get("total_bytes", "")),
            "python": python,
        },
        "python": python,
        "requirements": {},
        "env_vars": {},
        "result_columns": ["result", "params", "version", "started_at", "duration", "samples"],
        "results": results,
        "durations": {},
        "version": 2,
    }
    return json.dumps(document, ensure_ascii=False) + "\n"


def to_junit(run: LoadedRun) -> str:
    """JUnit XML: a test per arm, with its numbers as properties; an arm that failed is an error."""
    report = run.report
    suite = ElementTree.Element("testsuite", name=visible(report.name), timestamp=report.started_utc)
    for row in report.rows:
        case = ElementTree.SubElement(suite, "testcase", classname=visible(report.name), name=row.arm)
        case.set("time", f"{row.step_s.median_s if row.step_s else 0:.6g}")
        values = {
            "equal work": "baseline" if row.is_baseline else row.verdict,
            "ratio": ratio_text(row.ratio) if row.ratio else "",
            "marks": "".join(row.marks),
        }
        properties = ElementTree.SubElement(case, "properties")
        for name, value in values.items():
            if value:
                ElementTree.SubElement(properties, "property", name=name, value=value)
        if row.step_s is None:
            fault = ElementTree.SubElement(case, "error", message=visible(row.reason or row.status))
            fault.text = visible(log_tail(row))
    suite.set("tests", str(len(report.rows)))
    suite.set("errors", str(sum(row.step_s is None for row in report.rows)))
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def to_mlflow(run: LoadedRun) -> str:
    """Log every measured arm as a run of MLflow, where MLFLOW_TRACKING_URI says; the ids of these runs.

    Raises:
        BenchError: MLflow is not installed.
    """
    try:
        mlflow: Any = importlib.import_module("mlflow")
    except ImportError:
        raise BenchError("mlflow is not installed", hint="pip install 'detection-bench[mlflow]'") from None
    report, lines = run.report, []
    mlflow.set_experiment(report.name)
    for group, row in report.placed:
        if row.step_s is None:
            continue
        numbers = {
            "s_per_iter": row.step_s.median_s,
            "images_per_s": row.step_s.images_per_s,
            "ratio": row.ratio.value if row.ratio else math.nan,
            "ratio_low": row.ratio.low if row.ratio else math.nan,
            "ratio_high": row.ratio.high if row.ratio else math.nan,
            "max_memory_mib": row.peak_mib or math.nan,
            "ap": math.nan if row.headline_ap is None else row.headline_ap,
        }
        with mlflow.start_run(run_name=f"{report.id} {row.arm}") as one:
            mlflow.log_params({"codebase": row.codebase, "model": group.model, "task": group.task})
            mlflow.set_tags({"bench.run": report.id, "equal_work": row.verdict, "marks": "".join(row.marks)})
            mlflow.log_metrics({key: value for key, value in numbers.items() if math.isfinite(value)})
        lines.append(f"{row.arm} {one.info.run_id}\n")
    return "".join(lines)


FORMATS: dict[str, Callable[[LoadedRun], str | bytes]] = {
    "csv": to_csv,
    "parquet": to_parquet,
    "markdown": lambda run: markdown.render([pivot_table(run.report, ends=10_000)]),
    "latex": to_latex,
    "bibtex": lambda run: bibtex(run.report),
    "asv": to_asv,
    "junit": to_junit,
    "mlflow": to_mlflow,
    "github-action-benchmark": to_github_action,
    "bencher": to_bencher,
}


def export(run: LoadedRun, name: str) -> str | bytes:
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
