"""Figures of a run, as PNG and SVG. The same values give the same files, byte for byte (no date, no random id)."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from bench.report.document import Figure
from bench.report.sections import PHASE_TITLES, TASKS
from bench.report.text import ratio_text, seconds_text
from bench.report.values import Group, Row, RunReport


def pareto_front(
    points: Iterable[tuple[float, float]], *, higher_x_is_better: bool
) -> list[tuple[float, float]]:
    """Points (x, y) that no other one beats in both, from the lowest y to the highest; a higher y is better."""
    sign = 1 if higher_x_is_better else -1
    front: list[tuple[float, float]] = []
    for x, y in sorted(set(points), key=lambda point: (-sign * point[0], -point[1])):
        if not front or y > front[-1][1]:
            front.append((x, y))
    return front


matplotlib.use("Agg")  # before pyplot: no display is needed, and none is asked for

T = TypeVar("T")

WIDTH_IN = 9.0
DPI = 130
#: Okabe and Ito's palette (2008), told apart with every common colour blindness; yellow is left out on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
PHASE_COLOURS = {
    "data": "#999999",
    "forward": "#0072B2",
    "backward": "#56B4E9",
    "optimizer": "#E69F00",
    "ema": "#D55E00",
    "network": "#0072B2",
    "post": "#E69F00",
}
OTHER_PHASES = ("#009E73", "#CC79A7", "#000000")
MUTED = "#6b7280"
BAD = "#b3261e"
#: Rows that fit one figure before the rest goes to the next.
MAX_ROWS = 40
#: Above this many points an SVG keeps them as an image: as paths they would make it slow to show.
MAX_VECTOR_POINTS = 4000

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # shipped with matplotlib, so the same everywhere
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": False,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "svg.hashsalt": "bench",
    "svg.fonttype": "path",
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}


# -- Shared by all figures -----------------------------------------------------------------------------------


@contextmanager
def style() -> Iterator[None]:
    """Our style, and matplotlib's own untouched afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # drawn as a box
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save(canvas: Canvas, folder: Path, name: str) -> None:
    """Write `<name>.png` and `<name>.svg` without anything that changes from one time to the next."""
    folder.mkdir(parents=True, exist_ok=True)
    canvas.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
    canvas.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None})
    plt.close(canvas)


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour per name, in order of appearance."""
    return {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(dict.fromkeys(names))}


def plain(text: str, width: int = 34) -> str:
    """A label on lines of at most `width` characters, without characters that cannot be drawn."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return "\n".join(textwrap.wrap(printable, width, break_long_words=True, max_lines=3, placeholder=" …"))


def _panels(groups: Sequence[Group], *, legend: bool, sharex: bool = False) -> tuple[Canvas, list[Axes]]:
    """One axes per group, as high as it has rows, first row on top, its rows named on the left."""
    names = [[plain(group.row_name(row)) for row in group.rows] for group in groups]
    heights = [sum(0.17 + 0.17 * (1 + name.count("\n")) for name in column) + 0.1 for column in names]
    canvas, grid = plt.subplots(
        len(groups),
        1,
        figsize=(WIDTH_IN, sum(heights) + 0.55 * len(groups) + (0.75 if not legend else 1.1)),
        height_ratios=heights,
        sharex=sharex,
        squeeze=False,
    )
    axes = list(grid[:, 0])
    for ax, group, labels in zip(axes, groups, names, strict=True):
        ax.set_title(plain(group.title, 88))
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    for ax in axes[:-1] if sharex else []:
        ax.spines["bottom"].set_visible(False)
        ax.tick_params(axis="x", length=0)
    return canvas, axes


def _say_why(ax: Axes, index: int, row: Row, otherwise: str = "no value") -> None:
    """What stands in the place of a value that is missing."""
    text = f"{row.status}: {row.reason}" if row.status == "failed" else otherwise
    colour = BAD if row.status == "failed" else MUTED
    ax.annotate(
        textwrap.shorten(text, 80, placeholder=" …"),
        (0, index),
        xycoords=("axes fraction", "data"),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=9,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": "white", "edgecolor": "none"},
    )


def _parts(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups in parts of at most MAX_ROWS rows (a group is never split)."""
    part: list[Group] = []
    for group in groups:
        if part and sum(len(one.rows) for one in part) + len(group.rows) > MAX_ROWS:
            yield part
            part = []
        part.append(group)
    if part:
        yield part


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis of ratios; a narrow range gets evenly spaced ones."""
    if high / low < 4:
        return [
            float(tick)
            for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
            if low <= tick <= high
        ]
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 200 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


# -- The figures ---------------------------------------------------------------------------------------------


def ratios(groups: Sequence[Group], colour: Mapping[str, str]) -> Canvas:
    """Forest plot: the ratio to the baseline and its interval per arm, on one axis for all groups."""
    canvas, axes = _panels(groups, legend=False, sharex=True)
    edges = [
        edge
        for group in groups
        for row in group.rows
        if row.ratio
        for edge in (row.ratio.low, row.ratio.high)
    ]
    finite = [edge for edge in [*edges, 1.0] if math.isfinite(edge) and edge > 0]
    low, high = min(finite), max(finite)
    pad = max((high / low) ** 0.06, 1.01)
    low, high = low / pad, high * pad
    for ax, group in zip(axes, groups, strict=True):
        ax.set_xscale("log")
        ax.set_xlim(low, high)
        ax.axvline(1.0, color=MUTED, linewidth=1, zorder=0)
        for index, row in enumerate(group.rows):
            if row.ratio is not None:
                ax.hlines(index, row.ratio.low, row.ratio.high, color=colour[row.codebase], linewidth=2.4)
                fill = colour[row.codebase] if row.ratio.differs else "white"
                ax.plot(
                    row.ratio.value, index, "o", color=colour[row.codebase],
                    markerfacecolor=fill, markersize=7, markeredgewidth=1.8,
                )  # fmt: skip
                text = ratio_text(row.ratio)
            elif row.is_baseline and row.step_s is not None:
                ax.plot(1.0, index, "D", color=MUTED, markersize=6, zorder=3)
                text = "baseline"
            else:
                _say_why(ax, index, row, "no ratio")
                continue
            ax.annotate(text, (1.015, index), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    ticks = log_ticks(low, high)
    for ax in axes:
        ax.xaxis.set_major_locator(FixedLocator(ticks))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.grid(axis="x", color="#e5e7eb", linewidth=0.8)
        ax.set_axisbelow(True)
    axes[-1].set_xlabel("throughput ÷ baseline's, 95 % interval (log scale)     ← slower   faster →")
    return canvas


def steps(group: Group, colour: Mapping[str, str]) -> Canvas:
    """Per-step times in the order they happened, one panel per arm, launch after launch."""
    rows = [row for row in group.rows if row.trace.seconds]
    canvas, grid = plt.subplots(
        len(rows), 1, figsize=(WIDTH_IN, 1.45 * len(rows) + 1.0), sharex=True, squeeze=False
    )
    canvas.suptitle(plain(group.title, 88), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    for ax, row in zip(grid[:, 0], rows, strict=True):
        trace, hue = row.trace, colour[row.codebase]
        order = range(len(trace.seconds))
        raster = len(trace.seconds) > MAX_VECTOR_POINTS
        for warmup in (True, False):
            chosen = [i for i in order if trace.warmup[i] is warmup]
            ax.plot(
                chosen,
                [trace.seconds[i] for i in chosen],
                linestyle="none",
                marker="o",
                markersize=4 if len(order) < 200 else 2.5,
                markerfacecolor="white" if warmup else hue,
                markeredgecolor=hue,
                markeredgewidth=1,
                rasterized=raster,
            )
        for i in order:
            if i and trace.launch[i] != trace.launch[i - 1]:
                ax.axvline(i - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
        if row.step_s is not None:
            ax.axhline(row.step_s.median_s, color=hue, linewidth=1, alpha=0.6, zorder=0)
        ax.set_title(plain(group.row_name(row), 70), fontsize=9.5, fontweight="normal")
        ax.set_ylabel("s/iter")
        ax.yaxis.set_major_locator(MaxNLocator(4))
        ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
        ax.margins(x=0.01, y=0.12)
    grid[-1, 0].set_xlabel("step, in the order measured (dashed: a fresh launch)")
    handles = [
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            markerfacecolor="white",
            markeredgecolor=MUTED,
            label="warm-up",
        ),
        Line2D([], [], linestyle="none", marker="o", color=MUTED, label="measured"),
        Line2D([], [], color=MUTED, alpha=0.6, label="median"),
    ]
    canvas.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=9)
    return canvas


def memory(groups: Sequence[Group], colour: Mapping[str, str]) -> Canvas:
    """Max memory per arm; on a CPU the lighter part was there before the model was built."""
    resident = any(row.memory and row.memory.baseline_bytes for group in groups for row in group.rows)
    canvas, axes = _panels(groups, legend=resident, sharex=True)
    top = max(row.memory.peak_bytes for group in groups for row in group.rows if row.memory) / 2**20
    for ax, group in zip(axes, groups, strict=True):
        ax.set_xlim(0, top * 1.12)
        for index, row in enumerate(group.rows):
            if row.memory is None:
                _say_why(ax, index, row)
                continue
            peak, base = row.memory.peak_bytes / 2**20, (row.memory.baseline_bytes or 0) / 2**20
            ax.barh(index, base, height=0.62, color=colour[row.codebase], alpha=0.35, linewidth=0)
            ax.barh(index, peak - base, left=base, height=0.62, color=colour[row.codebase], linewidth=0)
            ax.annotate(
                f"{peak:,.0f}",
                (peak, index),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    kinds = {row.memory.kind for group in groups for row in group.rows if row.memory}
    what = {"allocated": "allocated on the device", "resident": "peak resident set"}
    axes[-1].set_xlabel(f"max memory (MiB): {' / '.join(what[kind] for kind in sorted(kinds))}")
    if resident:
        handles = [
            Patch(color=MUTED, alpha=0.35, label="before the model was built"),
            Patch(color=MUTED, label="model, data and step"),
        ]
        canvas.legend(handles=handles, loc="outside upper right", ncols=2, fontsize=9)
    return canvas


def phases(groups: Sequence[Group]) -> Canvas:
    """The phases of a step one after another, with their shares. Each group has its own scale."""
    canvas, axes = _panels(groups, legend=True)
    names = dict.fromkeys(phase.name for group in groups for row in group.rows for phase in row.phases)
    others = [name for name in names if name not in PHASE_COLOURS]
    hue = {**PHASE_COLOURS, **dict(zip(others, OTHER_PHASES * len(others), strict=False))}
    for ax, group in zip(axes, groups, strict=True):
        longest = max(sum(phase.median_s for phase in row.phases) for row in group.rows)
        ax.set_xlim(0, longest * 1.12)
        for index, row in enumerate(group.rows):
            if not row.phases:
                _say_why(ax, index, row)
                continue
            left = 0.0
            for phase in row.phases:
                ax.barh(
                    index, phase.median_s, left=left, height=0.62, color=hue[phase.name],
                    edgecolor="white", linewidth=0.6,
                )  # fmt: skip
                if phase.median_s > 0.07 * longest:
                    ax.text(
                        left + phase.median_s / 2, index, f"{100 * phase.share:.3g} %",
                        ha="center", va="center", fontsize=9, color=_ink(hue[phase.name]),
                    )  # fmt: skip
                left += phase.median_s
            ax.annotate(
                seconds_text(left),
                (left, index),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
            )
    axes[-1].set_xlabel("s per step, median of each phase (measured in a pass of its own)")
    handles = [Patch(color=hue[name], label=PHASE_TITLES.get(name, name)) for name in names]
    canvas.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=9)
    return canvas


def _ink(background: str) -> str:
    """Black or white, whichever is read more easily on a colour (relative luminance of WCAG 2)."""
    channels = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
                for value in matplotlib.colors.to_rgb(background)]  # fmt: skip
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    return "white" if luminance < 0.3 else "black"


# -- All of a run ----------------------------------------------------------------------------------------------


def draw(run: RunReport, folder: Path, prefix: str = "") -> dict[str, list[Figure]]:
    """Draw the figures that a run has values for; by kind: ratios, steps, memory, phases."""
    colour = colours([row.codebase for row in run.rows])
    drawn: dict[str, list[Figure]] = {}

    def emit(kind: str, name: str, canvas: Canvas, alt: str) -> None:
        save(canvas, folder, f"{prefix}{name}")
        drawn.setdefault(kind, []).append(Figure(f"{prefix}{name}", alt))

    def having(value: Callable[[Row], Any], task: str = "") -> list[Group]:
        groups = [group for group in run.groups if task in ("", group.task)]
        return [group for group in groups if any(value(row) for row in group.rows)]

    with style():
        for name, part in _numbered("ratios", _parts(having(lambda row: row.ratio))):
            alt = (
                "Throughput of each arm over its baseline's, with 95 % intervals. Right of the line at 1 is faster; "
                "a hollow mark says that the interval contains 1."
            )
            emit("ratios", name, ratios(part, colour), alt)
        for name, part in _numbered("memory", _parts(having(lambda row: row.memory))):
            emit("memory", name, memory(part, colour), "Max memory of each arm.")
        for task in TASKS:
            for name, part in _numbered(f"phases-{task}", _parts(having(lambda row: row.phases, task))):
                alt = f"Phases of a step in {TASKS[task]}: median seconds of each, and its share."
                emit("phases", name, phases(part), alt)
        for name, group in _numbered("steps", having(lambda row: row.trace.seconds)):
            alt = f"Per-step times in the order measured, with warm-up and fresh launches: {group.title}."
            emit("steps", name, steps(group, colour), alt)
    return drawn


def _numbered(name: str, items: Iterable[T]) -> Iterator[tuple[str, T]]:
    """Names for figures: numbered when there are several."""
    several = list(items)
    for number, item in enumerate(several, 1):
        yield name if len(several) == 1 else f"{name}-{number}", item
