"""Figures of published numbers: speed and memory against accuracy, the codebases, the SOLOv2 log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from bench.reference.published import Published, number
from bench.reference.solov2 import Solov2Log
from bench.report.figures import PALETTE, WIDTH_IN, pareto_front, plain, style

_INK = "#374151"
_GRID = "#e5e7eb"


@dataclass(frozen=True)
class Scatter:
    """A figure of the model zoo: two columns of its tables against each other."""

    name: str
    alt: str
    x: str
    y: str
    x_title: str
    higher_x_is_better: bool
    methods: Sequence[str]
    """Those that have both of its numbers."""


_METHODS = {
    "faster_rcnn": "Faster R-CNN",
    "mask_rcnn": "Mask R-CNN",
    "retinanet": "RetinaNet",
    "cascade_rcnn": "Cascade R-CNN",
    "cascade_mask_rcnn": "Cascade Mask R-CNN",
    "htc": "HTC",
    "ssd": "SSD",
}
_BOX, _MASK = tuple(_METHODS), ("mask_rcnn", "cascade_mask_rcnn", "htc")
_SPEED = ("Inf time (fps)", "inference speed (fps, one V100)", True)
_MEMORY = ("Mem (GB)", "training memory (GB per GPU)", False)
SCATTERS = tuple(
    Scatter(
        name=f"{what}-{y.split()[0]}-ap",
        alt=f"{y} on COCO val2017 against {title}, with the Pareto front of each method",
        x=x,
        y=y,
        x_title=title,
        higher_x_is_better=better,
        methods=methods,
    )
    for y, methods in (("box AP", _BOX), ("mask AP", _MASK))
    for what, (x, title, better) in (("speed", _SPEED), ("memory", _MEMORY))
)

_MARKERS = {
    "R-50-C4": "P",
    "R-50-FPN": "o",
    "R-101-FPN": "s",
    "X-101-32x4d-FPN": "^",
    "X-101-64x4d-FPN": "D",
    "VGG16": "X",
}


def _points(table: Published, scatter: Scatter) -> list[tuple[str, float, float]]:
    """(backbone, x, y) of the rows that have both; of two speeds (SSD) the first, at batch 1."""
    found = []
    for row in table.rows:
        x, y = number(row[scatter.x].split(" / ")[0]), number(row[scatter.y])
        if x is not None and y is not None:
            found.append((row["Backbone"], x, y))
    return found


def _draw_scatter(zoo: Mapping[str, Published], scatter: Scatter) -> Canvas:
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, 5.2))
    colour = dict(zip(_METHODS, PALETTE, strict=True))
    backbones: set[str] = set()
    for method in scatter.methods:
        points = _points(zoo[method], scatter)
        front = pareto_front(((x, y) for _, x, y in points), higher_x_is_better=scatter.higher_x_is_better)
        ax.plot(*zip(*front, strict=True), color=colour[method], lw=1.4, alpha=0.75, zorder=1)
        for backbone, x, y in points:
            backbones.add(backbone)
            on_front = (x, y) in front
            ax.scatter(
                x,
                y,
                s=42,
                marker=_MARKERS[backbone],
                facecolor=colour[method] if on_front else "white",
                edgecolor=colour[method],
                linewidth=1.2,
                zorder=2,
            )
    better = "log scale, higher is better" if scatter.higher_x_is_better else "lower is better"
    ax.set_xlabel(f"{scatter.x_title}, {better}")
    ax.set_ylabel(f"{scatter.y} (%), higher is better")
    if scatter.higher_x_is_better:  # from 3.5 fps (HTC) to 26 (SSD)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator([3, 4, 5, 6, 8, 10, 12, 15, 20, 25]))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(ScalarFormatter())
    ax.grid(color=_GRID, lw=0.6)
    ax.set_axisbelow(True)
    first = [
        Line2D([], [], color=colour[method], lw=2.5, label=_METHODS[method]) for method in scatter.methods
    ]
    shapes = [
        Line2D([], [], color=_INK, marker=marker, ls="", ms=6, label=backbone)
        for backbone, marker in _MARKERS.items()
        if backbone in backbones
    ]
    hollow = Line2D([], [], color=_INK, marker="o", mfc="white", ls="", ms=6, label="not on the front")
    canvas.legend(handles=[*first, *shapes, hollow], loc="outside right center")
    ax.set_title(
        f"mmdetection model zoo: {scatter.y} and {'speed' if scatter.higher_x_is_better else 'memory'}"
    )
    return canvas


def _bars(ax: Axes, names: Sequence[str], series: Mapping[str, Sequence[float | None]], form: str) -> None:
    """Horizontal bars, one group per name, first name on top; a missing value leaves a gap."""
    height = 0.8 / len(series)
    longest = max(value for values in series.values() for value in values if value is not None)
    for index, (label, values) in enumerate(series.items()):
        places = [row + (index - (len(series) - 1) / 2) * height for row in range(len(names))]
        widths = [value or 0.0 for value in values]
        bars = ax.barh(places, widths, height * 0.9, color=PALETTE[index], label=label)
        texts = ["not published" if value is None else form.format(value) for value in values]
        ax.bar_label(bars, texts, padding=4, fontsize=8)
    ax.set_yticks(range(len(names)), [plain(name, 22) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, longest * 1.14)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)


def _draw_codebases(zoo: Mapping[str, Published]) -> Canvas:
    panels = (
        ("comparison_training_speed", "training, s/iter (lower is better)", "{:.3f}"),
        ("comparison_inference_speed", "inference, fps (higher is better)", "{:.1f}"),
        ("comparison_training_memory", "training memory, GB (lower is better)", "{:.1f}"),
    )
    canvas, axes = plt.subplots(len(panels), 1, figsize=(WIDTH_IN, 10.0))
    for ax, (name, title, form) in zip(axes, panels, strict=True):
        rows = zoo[name].rows
        series = {
            label: [number(row[codebase]) for row in rows]
            for codebase, label in (
                ("Detectron", "Detectron (P100)"),
                ("maskrcnn-benchmark", "maskrcnn-benchmark (V100)"),
                ("mmdetection", "mmdetection (V100)"),
            )
        }
        _bars(ax, [row["Type"] for row in rows], series, form)
        ax.set_title(f"R-50-FPN, {title}")
    canvas.legend(*ax.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return canvas


def _draw_throughput(table: Published) -> Canvas:
    rows = table.rows
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, 3.4))
    names = [f"{row['Implementation']} ({row['Framework']})" for row in rows]
    _bars(ax, names, {"img/s": [float(row["Throughput (img/s)"]) for row in rows]}, "{:.0f}")
    ax.set_yticks(range(len(names)), names)
    ax.set_title("Mask R-CNN R-50-FPN on 8 V100: training throughput, img/s")
    return canvas


def _draw_solov2(log: Solov2Log) -> Canvas:
    canvas, ax = plt.subplots(figsize=(WIDTH_IN, 2.6))
    series = {
        name: [codebase.clock(ema).s_per_iter for ema in (False, True)]
        for name, codebase in (("PaddleDetection", log.paddle), ("own implementation", log.own))
    }
    _bars(ax, ["EMA off", "EMA on"], series, "{:.3f}")
    ax.set_title("SOLOv2-light R50-vd DCN, batch 12: s/iter by the log's clock (lower is better)")
    canvas.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return canvas


def draw(
    zoo: Mapping[str, Published], throughput: Published, solov2: Solov2Log
) -> Iterator[tuple[str, Canvas]]:
    """(name, figure) of every figure."""
    with style():
        for scatter in SCATTERS:
            yield scatter.name, _draw_scatter(zoo, scatter)
        yield "codebases", _draw_codebases(zoo)
        yield "throughput", _draw_throughput(throughput)
        yield "solov2", _draw_solov2(solov2)
