"""The figure of accuracy in a report: AP against speed and against memory. The page has curves too."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure as Canvas

from bench.report.colours import look
from bench.report.document import Figure
from bench.report.figures import GRID, MUTED, WIDTH_IN, pareto_front, plain, save, style
from bench.report.text import marked
from bench.report.values import Row, RunReport

ALT = (
    "AP against speed and against max memory. Dashed: the arms of a model that no other one beats. Bars: 95 % "
    "intervals for other images."
)


def draw(run: RunReport, folder: Path, prefix: str = "") -> list[Figure]:
    """The figure of a run's accuracy; none without an AP and a time."""
    if not any(row.headline_ap is not None and row.step_s for row in run.rows):
        return []
    name = f"{prefix}accuracy-tradeoff"
    with style():
        save(_tradeoff(run), folder, name)
    return [Figure(name, ALT, dark=True)]


def _tradeoff(run: RunReport) -> Canvas:
    """AP against images/s and max memory, with the arms of each model that no other one beats in both."""
    panels: tuple[tuple[str, bool, Callable[[Row], float | None]], ...] = (
        ("images/s, higher is better", True, lambda row: row.step_s.images_per_s if row.step_s else None),
        ("max memory (MiB), lower is better", False, lambda row: row.peak_mib),
    )
    found = {arm.arm: arm.interval for cell in run.accuracy for arm in cell.arms}
    canvas, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 4.2), sharey=True)
    for ax, (title, higher, value) in zip(axes, panels, strict=True):
        placed = [
            (x, 100 * row.headline_ap, group, row)
            for group, row in run.placed
            if row.headline_ap is not None and (x := value(row)) is not None
        ]
        for model in dict.fromkeys(group.model for _, _, group, _ in placed):
            points = ((x, y) for x, y, group, _ in placed if group.model == model)
            front = pareto_front(points, higher_x_is_better=higher)
            ax.plot(*zip(*front, strict=True), color=MUTED, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        for x, y, group, row in placed:
            hue, marker = look(row.codebase)
            ax.plot(x, y, marker, color=hue, markersize=7)
            if (sure := found.get(row.arm)) and math.isfinite(sure.high):
                ax.vlines(x, 100 * sure.low, 100 * sure.high, color=hue, linewidth=1)
            name = plain(marked(group.row_name(row), row.marks))
            ax.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=7.5)
        ax.set_xlabel(title)
        ax.grid(color=GRID, linewidth=0.8)
        ax.margins(x=0.25, y=0.12)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("AP (%): of masks where there are any")
    return canvas
