"""A series of runs as an SVG drawing: dots, the level between changes, and a mark at each change."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from bench.gate.history import Series, blocks, change_text
from bench.judge.numbers import significant
from bench.record.run import write_atomic
from bench.report.render import markdown
from bench.text_safety import visible

#: Of a drawing on a desk, and on a phone: text has one size on both.
WIDTHS = (860, 350)
HEIGHT = 150
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 20, 22
#: More runs than this are drawn as the least and the most of each stretch.
MOST_DOTS = 600


@dataclass(frozen=True)
class Shape:
    """A part of a drawing. ``kind``: a class of the style sheet. ``path``: of SVG; or ``text`` at (x, y)."""

    kind: str
    path: str = ""
    text: str = ""
    x: float = 0.0
    y: float = 0.0
    anchor: str = "start"
    title: str = ""


def shapes(series: Series, width: int) -> list[Shape]:
    """The drawing of a series, `width` × `HEIGHT`; it needs one run at least."""
    values = np.array(series.values)
    low, high = float(values.min()), float(values.max())
    pad = 0.06 * (high - low) or 0.05 * high
    low, high = low - pad, high + pad

    def across(index: float) -> float:
        return LEFT + (width - LEFT - RIGHT) * (index + 0.5) / len(values)

    def down(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

    def grid() -> Iterator[Shape]:
        for value in (low + pad, (low + high) / 2, high - pad):
            yield Shape("rule", f"M{LEFT},{down(value):.1f}H{width - RIGHT}")
            yield Shape(
                "tick", text=significant(value), x=LEFT - 6, y=round(down(value) + 4, 1), anchor="end"
            )
        for index, anchor in ((0, "start"), (len(values) - 1, "end")):
            date = series.points[index].started_utc[:10]
            yield Shape("tick", text=date, x=round(across(index), 1), y=HEIGHT - 5, anchor=anchor)

    def marks() -> Iterator[Shape]:
        for change in series.changes:
            first, last = (across(edge) for edge in (change.suspects[0] - 0.5, change.suspects[1] + 0.5))
            wide = f"M{first:.1f},{TOP}H{last:.1f}V{HEIGHT - BOTTOM}H{first:.1f}z"
            title = change_text(series, change)
            x = across(change.index - 0.5)
            yield Shape(f"suspects {change.direction}", wide, title=title)
            yield Shape(f"change {change.direction}", f"M{x:.1f},{TOP}V{HEIGHT - BOTTOM}", title=title)
            yield Shape(
                "tick", text=f"{100 * change.change:+.1f} %", x=round(x, 1), y=TOP - 6, anchor="middle"
            )

    dots = "".join(f"M{across(at):.1f},{down(value):.1f}h0" for at, value in _thinned(values.tolist()))
    return [*grid(), *marks(), Shape("dots", dots), Shape("level", _levels(series, across, down))]


def _thinned(values: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Places and values; of long series the least and the most of each stretch."""
    if len(values) <= MOST_DOTS:
        yield from enumerate(values)
        return
    size = -(-2 * len(values) // MOST_DOTS)
    for start in range(0, len(values), size):
        stretch = values[start : start + size]
        middle = start + (len(stretch) - 1) / 2
        yield middle, min(stretch)
        yield middle, max(stretch)


def _levels(series: Series, across: Callable[[float], float], down: Callable[[float], float]) -> str:
    edges = [0, *(change.index for change in series.changes), len(series.values)]
    parts = []
    for start, end in itertools.pairwise(edges):
        level = float(np.median(series.values[start:end]))
        parts.append(f"M{across(start - 0.5):.1f},{down(level):.1f}H{across(end - 0.5):.1f}")
    return "".join(parts)


#: Of a drawing that is a file of its own; the pages have their style sheet.
STYLE = """text { font: 12px Verdana, sans-serif; fill: #59636e; } path { fill: none; stroke: #d0d7de; }
.dots { stroke: #2f86c6; stroke-width: 4; stroke-linecap: round; } .level { stroke: #6b7280; stroke-width: 1.5; }
.regression { stroke: #cf4a3f; } .improvement { stroke: #009070; }
.suspects { stroke: none; opacity: .16; }
.suspects.regression { fill: #cf4a3f; } .suspects.improvement { fill: #009070; }
@media (prefers-color-scheme: dark) { text { fill: #9da7b1; } .rule { stroke: #30363d; } }"""


def svg(series: Series) -> str:
    """The drawing as a file."""
    width, parts = WIDTHS[0], []
    for one in shapes(series, width):
        if one.text:
            place = f'x="{one.x}" y="{one.y}" text-anchor="{one.anchor}"'
            parts.append(f"<text {place}>{escape(one.text)}</text>")
        else:
            title = f"<title>{escape(visible(one.title))}</title>" if one.title else ""
            parts.append(f'<path class="{one.kind}" d="{one.path}">{title}</path>')
    frame = (
        f'xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}"'
    )
    return f"<svg {frame}>\n<style>{STYLE}</style>\n{chr(10).join(parts)}\n</svg>\n"


def write(found: Sequence[Series], notes: Sequence[str], output: Path) -> Path:
    """`history.md`, `history.json` and a figure per series; the path of the first."""
    for series in found:
        write_atomic(output / "figures" / f"{series.name}.svg", svg(series))
    path = output / "history.md"
    write_atomic(output / "history.json", json.dumps([one.as_json() for one in found], indent=1) + "\n")
    write_atomic(path, markdown.render(blocks(found, notes, bisect=True, figures=True)))
    return path
