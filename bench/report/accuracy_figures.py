"""Accuracy in a report: its tables, and figures of losses, of AP by step and time, of AP against speed and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from bench.report.accuracy_sections import title_of
from bench.report.accuracy_values import TITLES, ArmAccuracy, CellAccuracy
from bench.report.colours import look
from bench.report.document import Figure
from bench.report.figures import GRID, MUTED, PAPER, WIDTH_IN, pareto_front, plain, save, style
from bench.report.text import marked
from bench.report.values import Row, RunReport

# -- Figures -------------------------------------------------------------------------------------------------


def draw(run: RunReport, folder: Path, prefix: str = "") -> dict[str, list[Figure]]:
    """Figures of a run's accuracy: by cell, and `tradeoff` for all."""
    drawn: dict[str, list[Figure]] = {}
    colour = {row.label: look(row.codebase)[0] for row in run.rows}

    def emit(kind: str, name: str, canvas: Canvas, alt: str) -> None:
        save(canvas, folder, f"{prefix}{name}")
        drawn.setdefault(kind, []).append(Figure(f"{prefix}{name}", alt, dark=True))

    with style():
        if any(row.headline_ap is not None and row.step_s for row in run.rows):
            alt = "AP against speed and against max memory; dashed: the arms of a model that no other one beats."
            emit("tradeoff", "accuracy-tradeoff", _tradeoff(run), alt)
        for number, one in enumerate(run.accuracy, 1):
            name = title_of(run, one)
            if any(len(arm.evaluations) > 1 for arm in one.arms):
                canvas = _ap_curves(one, name, colour)
                emit(one.cell, f"ap-{number}", canvas, f"AP by step and by seconds of training: {name}.")
    return drawn


def _lines(ax: Axes, arms: Iterable[tuple[ArmAccuracy, Sequence[float], Sequence[float]]],
           colour: Mapping[str, str], *, marks: bool) -> None:  # fmt: skip
    """A line per arm: the codebase's colour, dashed with EMA."""
    for arm, x, y in arms:
        ax.plot(
            x,
            y,
            color=colour[arm.label],
            linestyle=(0, (4, 2)) if arm.ema else "-",
            marker=("s" if arm.ema else "o") if marks else None,
            markerfacecolor=PAPER if arm.ema else None,
            markersize=5,
            linewidth=1.4,
            label=plain(arm.name),
        )
    ax.grid(color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)


def _ap_curves(one: CellAccuracy, title: str, colour: Mapping[str, str]) -> Canvas:
    canvas, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 3.8), sharey=True)
    canvas.suptitle(plain(title, 88), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    x_of: tuple[tuple[str, Callable[[ArmAccuracy], list[float]]], ...] = (
        ("step", lambda arm: [float(e.step or 0) for e in arm.evaluations]),
        ("seconds of training", lambda arm: [e.train_s or 0.0 for e in arm.evaluations]),
    )
    for ax, (name, x) in zip(axes, x_of, strict=True):
        curves = (
            (arm, x(arm), [100 * (e.ap[arm.headline] or 0) for e in arm.evaluations]) for arm in one.arms
        )
        _lines(ax, curves, colour, marks=True)
        ax.set_xlabel(name)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        ax.margins(y=0.08)
        ax.set_ylim(bottom=0)
    if one.target_ap is not None:
        axes[1].axhline(100 * one.target_ap, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    axes[0].set_ylabel(f"{TITLES[one.arms[0].headline]} (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    canvas.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return canvas


def _tradeoff(run: RunReport) -> Canvas:
    """AP against images/s and max memory, with the arms of each model that no other one beats in both."""
    panels: tuple[tuple[str, bool, Callable[[Row], float | None]], ...] = (
        ("images/s, higher is better", True, lambda row: row.step_s.images_per_s if row.step_s else None),
        ("max memory (MiB), lower is better", False, lambda row: row.peak_mib),
    )
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
            name = plain(marked(group.row_name(row), row.marks))
            ax.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize=7.5)
        ax.set_xlabel(title)
        ax.grid(color=GRID, linewidth=0.8)
        ax.margins(x=0.25, y=0.12)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("AP (%): of masks where there are any")
    return canvas
