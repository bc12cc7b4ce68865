"""Throughput over batch sizes and resolutions, and from where on it stays flat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.recipe.schema import level_text
from bench.recipe.workload import Workload
from bench.report.document import Block, Column, Table, Text
from bench.report.text import TASKS, cell, number
from bench.report.values import RunReport, model_title

#: Factor → what its points are called, what is plotted over what, and how the flat point is told.
SWEEPS = {
    "batch_size": ("batch", "images of a step", "images/s", "Images/s by batch size."),
    "size": (
        "size", "megapixels of an image", "megapixels/s",
        "Megapixels/s (images/s times pixels of an image) by resolution.",
    ),
}  # fmt: skip
#: Curves of a figure.
MOST_CURVES = 30
SWEPT = "Batch sizes and resolutions"
#: A rate is flat within this share of the highest one measured.
FLAT = 0.95


@dataclass(frozen=True)
class Curve:
    """One arm at several levels of a factor. ``points``: place on the axis, level, rate; ascending."""

    title: str
    label: str
    codebase: str
    points: tuple[tuple[float, Any, float], ...]

    @property
    def flat(self) -> int | None:
        """The first point from which on no rate is below `FLAT` of the highest; None where the last one is."""
        least = FLAT * max(rate for *_, rate in self.points)
        first = 1 + max((at for at, (*_, rate) in enumerate(self.points) if rate < least), default=-1)
        return first if first < len(self.points) else None


def _place(factor: str, workload: Workload) -> float:
    if factor == "batch_size":
        return workload.images_per_step
    size = workload.input.size
    return (size[0] * size[1] if isinstance(size, tuple) else size.short * size.long) / 1e6


def curves(run: RunReport, factor: str) -> list[Curve]:
    """Every arm that was measured at several levels of a factor of `SWEEPS`."""
    found: dict[tuple[str, str, str], list[tuple[float, Any, float]]] = {}
    for row in run.rows:
        if row.step_s is None or factor not in row.levels:
            continue
        others = (f"{name} {level_text(one)}" for name, one in row.levels.items() if name != factor)
        named = [model_title(row.workload.model, [row.options]), TASKS[row.workload.task], *others]
        place = _place(factor, row.workload)
        rate = row.step_s.images_per_s * (place if factor == "size" else 1)
        point = (place, level_text(row.levels[factor]), rate)
        found.setdefault((", ".join(named), row.label, row.codebase), []).append(point)
    return [Curve(*key, tuple(sorted(points))) for key, points in found.items() if len(points) > 1]


def sweep_blocks(run: RunReport) -> Iterator[Block]:
    """The rates of every arm that was measured with several batch sizes, or resolutions."""
    for factor, (level, _, _, text) in SWEEPS.items():
        if not (found := curves(run, factor)):
            continue
        yield Text(
            f"{text} Flat: from this {level} on every rate is within 5 % of the highest one measured; if it is the "
            "last one, the rate may rise further. –: the rate falls again."
        )
        levels = [name for _, name in sorted({point[:2] for curve in found for point in curve.points})]
        columns = (
            Column("workload"),
            Column("codebase"),
            *(Column(f"{level} {one}", True) for one in levels),
        )
        rows = []
        for curve in found:
            rates = {name: rate for _, name, rate in curve.points}
            flat = None if curve.flat is None else curve.points[curve.flat][1]
            values = (number(rates.get(one), 4) for one in levels)
            rows.append((cell(curve.title), cell(curve.label), *values, cell(flat)))
        yield Table((*columns, Column(f"flat from {level}", True)), tuple(rows))
