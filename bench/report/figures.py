"""Figures of a run as SVG, light and dark. The same values give the same files, byte for byte."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter, NullLocator

from bench.judge.numbers import ratio_text, significant
from bench.record.run import write_atomic
from bench.report.colours import CODEBASES, look, luminance, phase_colour
from bench.report.document import Figure
from bench.report.sweeps import MOST_CURVES, SWEEPS, Curve, curves
from bench.report.text import PHASE_TITLES, marked
from bench.report.values import Group, Row, RunReport

matplotlib.use("Agg")  # before pyplot: no display is needed, and none is asked for

WIDTH_IN = 9.0
DPI = 100
INK, GRID, MUTED, PAPER = "#1f2328", "#e5e7eb", "#6b7280", "#ffffff"
#: What each colour of the light theme is in the dark one.
DARK = {INK: "#e6edf3", GRID: "#30363d", MUTED: "#8b949e", PAPER: "#0d1117"}
#: For things that are no codebase: series of a history, columns of a published table.
PALETTE = (*(colour for colour, _ in CODEBASES.values()), MUTED)
#: Rows of a figure: 22 px each, so that none is higher than a screen.
MOST_ROWS = 30
ROW_IN = 0.22
#: Above this many points an SVG keeps them as an image: as paths they would make it slow to show.
MAX_VECTOR_POINTS = 4000
ACCURACY_ALT = (
    "AP against speed and against max memory. Dashed: the arms of a model that no other one beats. Bars: 95 % "
    "intervals for other images."
)

STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": False,
    "axes.axisbelow": True,
    "figure.constrained_layout.use": True,
    "legend.frameon": False,
    "svg.hashsalt": "bench",
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "text.parse_math": False,  # a dollar sign in a label is a dollar sign
}


# -- Shared by all figures -----------------------------------------------------------------------------------


@contextmanager
def style() -> Iterator[None]:
    """Our style, and matplotlib's own untouched afterwards."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font|constrained_layout not applied")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def save(canvas: Canvas, folder: Path, name: str) -> None:
    """Write `<name>.svg` and `<name>-dark.svg` without anything that changes from one time to the next."""
    drawn = io.StringIO()
    canvas.savefig(drawn, format="svg", dpi=DPI, metadata={"Date": None, "Creator": None})
    plt.close(canvas)
    # Verdana is as wide as DejaVu Sans, and is there where DejaVu is not.
    light = drawn.getvalue().replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    write_atomic(folder / f"{name}.svg", light)
    for colour, dark in DARK.items():
        light = light.replace(colour, dark)
    write_atomic(folder / f"{name}-dark.svg", light)


def plain(text: str, width: int = 34) -> str:
    """A label on lines of at most `width` characters, without characters that cannot be drawn."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return "\n".join(textwrap.wrap(printable, width, break_long_words=True, max_lines=3, placeholder=" …"))


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


def log_ticks(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis of ratios; a narrow range gets evenly spaced ones."""
    if high / low < 4:
        ticks = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
        return [float(tick) for tick in ticks if low <= tick <= high]
    steps = (1, 1.5, 2, 3, 5, 7) if high / low < 8 else (1, 2, 5) if high / low < 200 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]


Placed = tuple[Group, Row]


def _one_line(text: str, width: int) -> str:
    return plain(text, 10_000) if len(text) <= width else f"{plain(text, 10_000)[: width - 1]}…"


def _rows(rows: Sequence[Placed], *, legend: bool = False) -> tuple[Canvas, Axes]:
    """One axes with a line per row: workload, where it changes, and codebase on the left."""
    height = ROW_IN * len(rows) + 0.75 + (0.3 if legend else 0)
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, height))
    names, before = [], None
    for group, row in rows:
        workload = _one_line(group.title, 48) if group is not before else ""
        names.append(" · ".join(filter(None, (workload, _one_line(group.row_name(row), 26)))))
        before = group
    ax.set_yticks(range(len(rows)), names)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x", color=GRID, linewidth=0.8)
    return canvas, ax


# -- The figures ---------------------------------------------------------------------------------------------


def ratios(rows: Sequence[Placed]) -> Canvas:
    """Forest plot: the ratio to the baseline, its interval and its marks, on one logarithmic axis."""
    canvas, ax = _rows(rows)
    found = [row.ratio for _, row in rows if row.ratio]
    edges = [edge for ratio in found for edge in (ratio.low, ratio.high, ratio.value)]
    finite = [edge for edge in [*edges, 1.0] if math.isfinite(edge) and edge > 0]
    low, high = min(finite), max(finite)
    pad = max((high / low) ** 0.06, 1.01)
    ax.set_xscale("log")
    ax.set_xlim(low / pad, high * pad)
    ax.axvline(1.0, color=MUTED, linewidth=1.2, zorder=1)
    for index, (_, row) in enumerate(rows):
        if row.ratio is None:
            continue
        colour, marker = look(row.codebase)
        if math.isfinite(row.ratio.detectable):
            edge = 1 + row.ratio.detectable
            ax.barh(index, edge - 1 / edge, left=1 / edge, height=0.8, color=MUTED, alpha=0.12, zorder=0)
        ax.hlines(
            index, max(row.ratio.low, low / pad), min(row.ratio.high, high * pad), color=colour, linewidth=2
        )
        fill = colour if row.ratio.differs else PAPER
        ax.plot(row.ratio.value, index, marker, color=colour, markerfacecolor=fill, markersize=6.5)
        text = marked(ratio_text(row.ratio), row.marks)
        ax.annotate(text, (1.01, index), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    ax.xaxis.set_major_locator(FixedLocator(log_ticks(low / pad, high * pad)))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel(
        "throughput ÷ baseline's, 95 % interval; grey: too small to be seen; left: slower, right: faster"
    )
    return canvas


def memory(rows: Sequence[Placed]) -> Canvas:
    """Max memory: a dot per arm, and a tick for what was there before the model was built."""
    canvas, ax = _rows(rows)
    top = max(row.peak_mib or 0 for _, row in rows)
    ax.set_xlim(0, top * 1.15)
    for index, (_, row) in enumerate(rows):
        if row.memory is None:
            continue
        colour, marker = look(row.codebase)
        peak, before = row.memory.peak_bytes / 2**20, (row.memory.baseline_bytes or 0) / 2**20
        ax.hlines(index, before, peak, color=colour, linewidth=1.2, alpha=0.6)
        ax.plot(before, index, "|", color=colour, markersize=8)
        ax.plot(peak, index, marker, color=colour, markersize=6.5)
        ax.annotate(f"{peak:,.0f}", (peak, index), xytext=(7, 0), textcoords="offset points", va="center")
    kinds = {row.memory.kind for _, row in rows if row.memory}
    what = {
        "allocated": "allocated on the device",
        "resident": "peak resident set; tick: without model",
    }
    ax.set_xlabel(f"max memory (MiB): {' / '.join(what[kind] for kind in sorted(kinds))}")
    return canvas


def phases(rows: Sequence[Placed]) -> Canvas:
    """The phases of a step one after another, in seconds, with their shares."""
    canvas, ax = _rows(rows, legend=True)
    names = list(dict.fromkeys(phase.name for _, row in rows for phase in row.phases))
    longest = max(sum(phase.median_s for phase in row.phases) for _, row in rows)
    ax.set_xlim(0, longest * 1.12)
    for index, (_, row) in enumerate(rows):
        left = 0.0
        for phase in row.phases:
            hue = phase_colour(phase.name)
            ax.barh(index, phase.median_s, left=left, height=0.7, color=hue, edgecolor=PAPER, linewidth=0.6)
            if phase.median_s > 0.06 * longest:
                ax.text(
                    left + phase.median_s / 2, index, f"{100 * phase.share:.3g} %",
                    ha="center", va="center", fontsize=8.5, color="white" if luminance(hue) < 0.3 else "black",
                )  # fmt: skip
            left += phase.median_s
        ax.annotate(significant(left), (left, index), xytext=(4, 0), textcoords="offset points", va="center")
    ax.set_xlabel("s per step, median of each phase (measured in a pass of its own)")
    handles = [Patch(color=phase_colour(name), label=PHASE_TITLES.get(name, name)) for name in names]
    canvas.legend(handles=handles, loc="outside upper right", ncols=len(handles), fontsize=9)
    return canvas


def step_times(group: Group) -> Canvas:
    """Per-step times in the order they happened, all arms on one scale that starts at 0."""
    rows = [row for row in group.rows if row.trace.seconds]
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, 3.8))
    steps = [(row, *one) for row in rows for one in zip(row.trace.seconds, row.trace.warmup, strict=True)]
    # Warm-up never sets the scale.
    top = max([seconds for _, seconds, warm in steps if not warm] or [seconds for _, seconds, _ in steps])
    for row, marker in zip(
        rows, itertools.cycle("osD^vPX")
    ):  # a codebase may have several arms, of one colour
        hue, _ = look(row.codebase)
        for warmup in (True, False):
            chosen = [index for index, warm in enumerate(row.trace.warmup) if warm is warmup]
            ax.plot(
                chosen, [min(row.trace.seconds[index], top * 1.1) for index in chosen], marker,
                markersize=4 if len(steps) < 400 else 2.5, markerfacecolor=PAPER if warmup else hue,
                markeredgecolor=hue, rasterized=len(steps) > MAX_VECTOR_POINTS,
                label=None if warmup else _one_line(group.row_name(row), 40),
            )  # fmt: skip
    launches = rows[0].trace.launch
    for index in range(1, len(launches)):
        if launches[index] != launches[index - 1]:
            ax.axvline(index - 0.5, color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0)
    ax.set_title(_one_line(group.title, 88))
    ax.set_ylabel("s/iter")
    ax.set_ylim(0, top * 1.15)
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.set_xlabel("step, in the order measured (dashed: a fresh launch; hollow: warm-up)")
    canvas.legend(loc="outside lower center", ncols=3, fontsize=9)
    return canvas


def sweep(found: Sequence[Curve], factor: str) -> Canvas:
    """Rates over batch sizes or resolutions; a ring marks the point from which on a curve is flat."""
    _, across, rate, _ = SWEEPS[factor]
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, 3.8))
    for curve, style_ in zip(found, itertools.cycle(("-", "--", ":", "-."))):
        hue, marker = look(curve.codebase)
        places, rates = [point[0] for point in curve.points], [point[2] for point in curve.points]
        title = _one_line(f"{curve.label}: {curve.title}", 70)
        ax.plot(places, rates, marker, linestyle=style_, color=hue, markersize=5, label=title)
        if curve.flat is not None:
            ax.plot(places[curve.flat], rates[curve.flat], "o", color=hue, markersize=12, fillstyle="none")
    named = sorted({point[:2] for curve in found for point in curve.points})
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator([place for place, _ in named]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda place, _: dict(named).get(place, f"{place:g}")))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylim(0, 1.08 * max(rate for curve in found for *_, rate in curve.points))
    ax.set_xlabel(f"{across} (ring: flat from here on, within 5 % of the highest rate)")
    ax.set_ylabel(rate)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    canvas.legend(loc="outside lower center", ncols=1, fontsize=9)
    return canvas


def accuracy(run: RunReport) -> Canvas:
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


# -- All of a run ----------------------------------------------------------------------------------------------


def draw(run: RunReport, folder: Path, prefix: str = "", *, steps: bool = False) -> dict[str, list[Figure]]:
    """Draw the figures that a run has values for.

    Args:
        run: The values.
        folder: Where the SVG files go.
        prefix: Of their names, where a report has several runs.
        steps: Also one figure of single steps per workload.

    Returns:
        By kind: ratios, memory, phases, accuracy, sweep, steps.
    """
    drawn: dict[str, list[Figure]] = {}

    def emit(kind: str, name: str, canvas: Canvas, alt: str) -> None:
        save(canvas, folder, f"{prefix}{name}")
        drawn.setdefault(kind, []).append(Figure(f"{prefix}{name}", alt, dark=True))

    def having(value: Callable[[Row], Any]) -> list[Placed]:
        return [one for one in run.placed if value(one[1])]

    kinds: tuple[tuple[str, list[Placed], Callable[[Sequence[Placed]], Canvas], str], ...] = (
        ("ratios", having(lambda row: row.ratio), ratios,
         "Throughput of each arm over its baseline's with 95 % intervals; a hollow mark: the interval contains 1."),
        ("memory", having(lambda row: row.memory), memory, "Max memory of each arm."),
        ("phases", having(lambda row: row.phases), phases, "Phases of a step: median seconds and share of each."),
    )  # fmt: skip
    with style():
        for kind, rows, make, alt in kinds:
            if rows:
                shown = _shown(rows)
                left = len(rows) - len(shown)
                emit(kind, kind, make(shown), f"{alt}{f' {left} more rows are in the page.' if left else ''}")
        if any(row.headline_ap is not None and row.step_s for row in run.rows):
            emit("accuracy", "accuracy-tradeoff", accuracy(run), ACCURACY_ALT)
        for factor, (_, across, rate, _) in SWEEPS.items():
            if found := curves(run, factor)[:MOST_CURVES]:
                emit("sweep", f"sweep-{factor}", sweep(found, factor), f"{rate} of each arm by {across}.")
        for number, group in enumerate(run.groups if steps else (), 1):
            if any(row.trace.seconds for row in group.rows):
                alt = f"Times of single steps in the order measured: {group.title}."
                emit("steps", f"steps-{number}", step_times(group), alt)
    return drawn


def _shown(rows: Sequence[Placed]) -> list[Placed]:
    """All rows, or the ends by ratio when they are more than a figure holds."""
    if len(rows) <= MOST_ROWS:
        return list(rows)
    ordered = sorted(rows, key=lambda one: -(one[1].ratio.value if one[1].ratio else 0))
    kept = {id(row) for _, row in (*ordered[: MOST_ROWS // 2], *ordered[-MOST_ROWS // 2 :])}
    return [one for one in rows if id(one[1]) in kept]
