"""The tables of a report."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

from bench.judge.numbers import interval_text, ratio_text, significant
from bench.judge.ratio import Cost
from bench.recipe.schema import level_text
from bench.report import accuracy_values
from bench.report.document import Cell, Column, Table, Tone
from bench.report.text import (
    PHASE_TITLES,
    cell,
    design_text,
    detectable_cell,
    mebibytes,
    number,
    percent,
    ratio_cell,
    spread_text,
    table_of,
    yes_no,
)
from bench.report.values import Group, MemoryUse, Row, RunReport, Software, factor_name, trains


def _memory_cell(memory: MemoryUse | None) -> Cell:
    if memory is None:
        return cell(None)
    base = f" ({mebibytes(memory.baseline_bytes)})" if memory.baseline_bytes is not None else ""
    return cell(mebibytes(memory.peak_bytes) + base, sort=memory.peak_bytes)


#: Characters of a failure's reason in a table; the whole of a longer one stands below it.
LONGEST_REASON = 120


def group_table(group: Group) -> Table:
    """The table of one group: one row per arm, a failed one with its reason in place of numbers."""
    training = trains(group.task)
    factors = [name for name in group.factors if name != "ema"]
    different = any(row.verdict == "different models" for row in group.rows)
    seconds, rate = Column("s/iter, median (p5–p95)", True), "images/s" if training else "FPS (images/s)"
    columns = (
        Column("codebase"),
        *(Column(factor_name(name)) for name in factors),
        Column("EMA", optional=True),
        *((seconds, Column(rate, True)) if training else (Column(f"{rate}, median (p5–p95)", True), seconds)),
        Column("max memory (MiB)", True, optional=True),
        Column("ratio to baseline [95 % interval]", True),
        Column("status"),
        Column("version", optional=True),
        *(Column(title, True) for title in (("parameters (M)", "GFLOPs / image") if different else ())),
        *(Column(title, True, optional=True) for title in accuracy_values.TITLES.values()),
        Column("GFLOP/s (% of peak)", True, optional=True),
        Column("detectable effect (%)", True, optional=True),
        Column("launches × rounds", True),
        Column("audit", optional=True),
    )
    rows = []
    for row in group.rows:
        levels = (level_text(row.levels[name]) if name in row.levels else None for name in factors)
        sizes = (row.parameters, 1e6), (row.forward_flops, 1e9)
        rows.append(
            (
                cell(row.label, tone="strong" if row.is_baseline else ""),
                *map(cell, levels),
                cell(None if row.ema is None else level_text(row.ema)),
                *_timing_cells(row, training),
                _memory_cell(row.memory),
                cell("1 (baseline)", sort=1.0)
                if row.is_baseline and row.step_s
                else ratio_cell(row.ratio, row.marks, group.no_ratio(row)),
                _status_cell(row),
                cell(", kernels: ".join(part for part in (row.version, row.kernels) if part)),
                *(number(one and one / unit) for one, unit in (sizes if different else ())),
                *(percent(row.ap.get(kind)) for kind in accuracy_values.TITLES),
                _flops_cell(row),
                detectable_cell(row.ratio),
                cell(design_text(row.launches, row.rounds, row.sessions) if row.step_s else None),
                cell(row.verdict if row.audit else None, tone="bad" if row.verdict == "unequal" else ""),
            )
        )
    return Table(columns, tuple(rows)).compact()


def _timing_cells(row: Row, training: bool) -> tuple[Cell, Cell]:
    """s/iter and images/s for training; for inference FPS comes first and carries the spread as well."""
    if row.step_s is None:
        return cell(None), cell(None)
    summary, images = row.step_s, row.images_per_step
    seconds = cell(spread_text(summary), sort=summary.median_s)
    rate = spread_text(summary, lambda one: images / one)
    if training:
        return seconds, cell(rate.partition(" ")[0], sort=summary.images_per_s)
    return cell(rate, sort=summary.images_per_s), seconds


def _flops_cell(row: Row) -> Cell:
    """FLOP/s of the step, and their share of what the machine can do."""
    if row.flops_per_step is None or row.step_s is None:
        return cell(None)
    rate = row.flops_per_step / row.step_s.median_s / 1e9
    share = f" ({100 * row.peak_share:.0f})" if row.peak_share is not None else ""
    if row.peak_share is not None and row.peak_share > 1:
        share = f" ({100 * row.peak_share:.0f}: fewer multiplications than counted)"
    return cell(f"{significant(rate)}{share}", sort=rate)


def _status_cell(row: Row) -> Cell:
    """An arm without a usable time is no success, whatever its record says."""
    tone: Tone = "bad" if row.step_s is None else "muted" if row.status == "ok" else ""
    status = "no time" if row.step_s is None and row.status == "ok" else row.status
    text = (
        f"{status}: {textwrap.shorten(row.reason, LONGEST_REASON, placeholder=' …')}"
        if row.reason
        else status
    )
    return cell(text, tone=tone)


def phase_table(groups: Iterable[Group], task: str) -> Table | None:
    """Seconds and share of each phase, a row per arm of this task; None when no arm has phases."""
    chosen = [(group, row) for group in groups if group.task == task for row in group.rows if row.phases]
    names = dict.fromkeys(phase.name for _, row in chosen for phase in row.phases)
    if not chosen:
        return None
    titles = (Column(f"{PHASE_TITLES.get(name, name)}, s (%)", True) for name in names)
    rows = []
    for group, row in chosen:
        phases = {phase.name: phase for phase in row.phases}
        whole_s = sum(phase.median_s for phase in row.phases)
        cells = [
            cell(f"{_phase_text(one.median_s, whole_s)} ({100 * one.share:.1f})", sort=one.median_s)
            if one
            else cell(None)
            for one in map(phases.get, names)
        ]
        rows.append((cell(group.title), cell(group.row_name(row)), *cells))
    return Table((Column("workload"), Column("codebase"), *titles), tuple(rows))


def _phase_text(part_s: float, whole_s: float) -> str:
    """A part in the decimals that show the whole with four digits; less than the last of them is said so."""
    decimals = len(significant(whole_s, 4).partition(".")[2])
    return f"{part_s:.{decimals}f}" if part_s >= 10**-decimals else f"< {10**-decimals:.{decimals}f}"


def effect_table(run: RunReport) -> Table:
    return table_of(
        run.effects,
        {
            Column("workload"): lambda one: one.group,
            Column("codebase"): lambda one: one.label,
            Column("factor"): lambda one: factor_name(one.factor),
            Column("level"): lambda one: level_text(one.level),
            Column("against"): lambda one: level_text(one.reference),
            Column("cost (% of a step) [95 % interval]", True): lambda one: _cost_cell(one.cost),
            Column("throughput ratio [95 % interval]", True): lambda one: cell(
                ratio_text(one.ratio), sort=one.ratio.value
            ),
            Column("interleaved"): lambda one: yes_no(one.interleaved),
        },
    )


def _cost_cell(cost: Cost | None) -> Cell:
    if cost is None or not math.isfinite(cost.low):
        return cell(None)
    return cell(interval_text(100 * cost.share, 100 * cost.low, 100 * cost.high), sort=cost.share)


def package_table(software: Sequence[Software]) -> Table:
    """The distributions whose versions differ between environments; those that most of them have come first."""
    names = sorted({name for one in software for name in one.installed}, key=str.lower)
    differing = [name for name in names if len({one.installed.get(name) for one in software}) > 1]
    differing.sort(key=lambda name: sum(name not in one.installed for one in software))
    rows = ((cell(name), *(cell(one.installed.get(name)) for one in software)) for name in differing)
    caption = f"{len(differing)} of {len(names)} packages differ. –: not installed."
    return Table((Column("package"), *(Column(one.title) for one in software)), tuple(rows), caption)


def software_table(software: Sequence[Software]) -> Table:
    def packages(one: Software) -> str:
        named = [f"{name} {version}" for name, version in one.packages.items()]
        others = len(one.installed) - len(one.packages)
        return ", ".join([*named, *([f"{others} more"] if others > 0 else [])])

    def variables(one: Software) -> str:
        return ", ".join(f"{name}={value}" for name, value in sorted(one.variables.items()))

    return table_of(
        software,
        {
            Column("codebase"): lambda one: (
                one.title if one.title == one.codebase else f"{one.codebase} ({one.title})"
            ),
            Column("version", optional=True): lambda one: one.version,
            Column("python", optional=True): lambda one: one.python.split(" ")[0],
            Column("packages", optional=True): packages,
            Column("variables", optional=True): variables,
        },
    ).compact()
