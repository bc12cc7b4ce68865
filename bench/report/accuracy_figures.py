"""Accuracy in a report: its tables, and figures of losses, of AP by step and time, of AP against speed and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bench.report.accuracy_sections import title_of
from bench.report.accuracy_values import TITLES, ArmAccuracy, CellAccuracy
from bench.report.colours import look
from bench.report.document import Figure
from bench.report.figures import GRID, MUTED, PALETTE, PAPER, WIDTH_IN, pareto_front, plain, save, style
from bench.report.values import Row, RunReport

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


# -- Figures -------------------------------------------------------------------------------------------------


def draw(run: RunReport, folder: Path, prefix: str = "") -> dict[str, list[Figure]]:
    """Figures of a run's accuracy: by cell, and `tradeoff` for all."""
    drawn: dict[str, list[Figure]] = {}
    colour = {row.label: look(row.codebase)[0] for row in run.rows}

    def emit(kind: str, name: str, canvas: Canvas, alt: str) -> None:
        save(canvas, folder, f"{prefix}{name}")
        drawn.setdefault(kind, []).append(Figure(f"{prefix}{name}", alt, dark=True))

    with style():
        rows = {row.arm: row for row in run.rows}
        points = list(_points(run.accuracy, rows))
        if points:
            alt = "AP against training or inference speed and against max memory, with the Pareto fronts."
            emit("tradeoff", "accuracy-tradeoff", _tradeoff(run, points, colour), alt)
        for number, one in enumerate(run.accuracy, 1):
            name = title_of(run, one)
            if any(arm.losses for arm in one.arms):
                canvas = _losses(one, name, colour)
                emit(one.cell, f"losses-{number}", canvas, f"Total loss of each step: {name}.")
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


def _losses(one: CellAccuracy, title: str, colour: Mapping[str, str]) -> Canvas:
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, 3.8))
    arms = [arm for arm in one.arms if arm.losses]
    _lines(ax, ((arm, range(1, len(arm.losses) + 1), arm.losses) for arm in arms), colour, marks=False)
    steps = sorted({parting.step for parting in one.partings if parting.step})
    for step in steps:
        ax.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    ax.set_title(plain(title, 88))
    ax.set_xlabel("step" + (" (dotted: where the losses of two codebases part)" if steps else ""))
    ax.set_ylabel("total loss")
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    canvas.legend(loc="outside right upper", fontsize=9)
    return canvas


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


@dataclass(frozen=True)
class Placed:
    """An arm among the others."""

    cell: str
    label: str
    ema: bool
    ap: float
    images_per_s: float
    memory_mib: float | None


def _points(cells: Iterable[CellAccuracy], rows: Mapping[str, Row]) -> Iterator[Placed]:
    for one in cells:
        for arm in one.arms:
            row = rows.get(arm.arm)
            if row is not None and row.step_s is not None and arm.ap is not None:
                rate = row.step_s.images_per_s
                yield Placed(one.cell, arm.label, arm.ema, 100 * arm.ap, rate, row.peak_mib)


def _tradeoff(run: RunReport, points: Sequence[Placed], colour: Mapping[str, str]) -> Canvas:
    """AP against images/s and max memory: a marker per cell, filled where no other arm of it is better in both."""
    panels: tuple[tuple[str, bool, Callable[[Placed], float | None]], ...] = (
        ("images/s, higher is better", True, lambda point: point.images_per_s),
        ("max memory (MiB), lower is better", False, lambda point: point.memory_mib),
    )
    canvas, axes = plt.subplots(1, 2, figsize=(WIDTH_IN, 4.2), sharey=True)
    cells = list(dict.fromkeys(point.cell for point in points))
    for ax, (title, higher, value) in zip(axes, panels, strict=True):
        for index, name in enumerate(cells):
            placed = [
                (x, point) for point in points if point.cell == name and (x := value(point)) is not None
            ]
            front = pareto_front(((x, point.ap) for x, point in placed), higher_x_is_better=higher)
            hue = PALETTE[-1 - index % len(PALETTE)]
            if front:
                ax.plot(*zip(*front, strict=True), color=hue, linewidth=1, alpha=0.4, zorder=1)
            for x, point in placed:
                ax.scatter(
                    x,
                    point.ap,
                    s=54,
                    marker=MARKERS[index % len(MARKERS)],
                    facecolor=colour[point.label] if (x, point.ap) in front else PAPER,
                    edgecolor=colour[point.label],
                    linewidth=1.5,
                    zorder=2,
                )
                if point.ema:
                    ax.annotate("EMA", (x, point.ap), xytext=(6, 4), textcoords="offset points", fontsize=7.5)
        ax.set_xlabel(title)
        ax.grid(color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
        ax.margins(x=0.12, y=0.12)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("AP (%): of masks where there are any")
    labels = dict.fromkeys(point.label for point in points)
    handles = [Line2D([], [], color=colour[name], linewidth=2.5, label=name) for name in labels]
    titles = {one.cell: title_of(run, one) for one in run.accuracy}
    handles += [
        Line2D([], [], linestyle="", marker=MARKERS[i % len(MARKERS)], color=MUTED, label=plain(titles[name], 44))
        for i, name in enumerate(cells)
    ]  # fmt: skip
    handles.append(
        Line2D([], [], linestyle="", marker="o", color=MUTED, markerfacecolor=PAPER, label="not on the front")
    )
    canvas.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return canvas
