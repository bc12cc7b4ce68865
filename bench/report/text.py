"""Numbers to text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import BaseModel

from bench.judge.numbers import MISSING, ratio_text, round_to_interval, significant
from bench.report.document import Cell, Column, Table

if TYPE_CHECKING:  # lists are written without scipy, which takes a second to import
    from bench.judge.ratio import Ratio, Summary

Item = TypeVar("Item")

TASKS = {
    "train": "training",
    "infer": "inference",
    "eval": "evaluation",
    "serve": "serving",
    "train_eval": "training and evaluation",
}
PHASE_TITLES = {"ema": "EMA", "post": "post-processing"}
NOT_INTERLEAVED = (
    "Where 'interleaved' says no, the two arms were measured one after the other. A drift of the machine between them "
    "is in the ratio and not in its interval."
)


def counted(number: int, thing: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number} {thing}{'' if number == 1 else 'es' if thing.endswith('ch') else 's'}"


def marked(text: str, marks: Iterable[str]) -> str:
    """`1.9 [1.8, 2.0] ≠†`: a ratio is never shown without its marks."""
    return " ".join(part for part in (text, "".join(marks)) if part)


def spread_text(summary: Summary, scale: Callable[[float], float] = lambda seconds: seconds) -> str:
    """`median (p5–p95)` of s/iter, or of what `scale` makes of it, in the digits that the spread supports."""
    low, high = sorted((scale(summary.p5_s), scale(summary.p95_s)))
    median = scale(summary.median_s)
    if summary.n < 2:
        return significant(median)
    if high - low > abs(median):
        return f"{significant(median, 2)} ({significant(low, 2)}–{significant(high, 2)})"
    supported = len(round_to_interval(median, low, high).partition(".")[2])
    fewest, most = (len(significant(median, digits).partition(".")[2]) for digits in (2, 4))
    decimals = min(max(supported, fewest), most)
    return f"{median:.{decimals}f} ({low:.{decimals}f}–{high:.{decimals}f})"


def mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.0f}"


def value_text(value: Any) -> str:
    """A fact as it was recorded: numbers in a readable form."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def size_text(size_bytes: float) -> str:
    """`48 KiB`, `23.5 GiB`: three significant digits at most."""
    unit = next((unit for unit in SIZE_UNITS if size_bytes < 999.5 * SIZE_UNITS[unit]), "TiB")
    return f"{size_bytes / SIZE_UNITS[unit]:.3g} {unit}"


SIZE_UNITS = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

# -- Tables --------------------------------------------------------------------------------------------------


def cell(value: Any, *, sort: float | None = None, tone: str = "") -> Cell:
    """A cell of plain text; `None` and the empty string are missing values."""
    text = MISSING if value is None or value == "" else str(value)
    return Cell(text, sort, tone)  # type: ignore[arg-type]


def number(value: float | None, digits: int = 3) -> Cell:
    """A number with so many significant digits."""
    return cell(None if value is None else significant(value, digits), sort=value)


def percent(share: float | None) -> Cell:
    """Per cent with one decimal, as COCO's AP is written."""
    return cell(None if share is None else f"{100 * share:.1f}", sort=share)


def yes_no(value: bool) -> Cell:
    return cell("yes" if value else "no")


def table_of(
    items: Iterable[Item], columns: Mapping[Column, Callable[[Item], Any]], caption: str = ""
) -> Table:
    """A table with a row for each item.

    Args:
        items: What the rows are of.
        columns: What each column shows of an item: a cell, or a plain value.
        caption: Stands above the table.
    """
    shown = ([show(item) for show in columns.values()] for item in items)
    rows = tuple(tuple(one if isinstance(one, Cell) else cell(one) for one in row) for row in shown)
    return Table(tuple(columns), rows, caption)


def ratio_cell(ratio: Ratio | None, marks: Sequence[str] = (), missing: str = "") -> Cell:
    """With the marks of its row. Bold where the interval excludes 1 and no mark speaks against the ratio.

    Args:
        ratio: Of throughput.
        marks: Of the row.
        missing: What stands in place of a ratio that there is not.
    """
    if ratio is None:
        return cell(marked(missing, marks))
    sure = ratio.differs and not set(marks) & {"≠", "?"}
    return cell(marked(ratio_text(ratio), marks), sort=ratio.value, tone="strong" if sure else "")


def detectable_cell(ratio: Ratio | None) -> Cell:
    """The smallest effect that the design could have seen, in per cent."""
    if ratio is None or not math.isfinite(ratio.detectable):
        return cell(None)
    percent = 100 * ratio.detectable
    return cell(significant(percent, 2) if percent <= 100 else "> 100", sort=ratio.detectable)


def seconds_cell(summary: Summary | None) -> Cell:
    """Median s/iter, in the digits its spread supports."""
    return (
        cell(None) if summary is None else cell(spread_text(summary).partition(" ")[0], sort=summary.median_s)
    )


def design_text(launches: int, rounds: int, sessions: int = 1) -> str:
    """`3 × 6`, or `3, 17 rounds` when launches have different numbers of rounds; `9 × 6 in 3 sessions`."""
    each, rest = divmod(rounds, launches)
    text = f"{launches} × {each}" if rest == 0 else f"{launches}, {rounds} rounds"
    return f"{text} in {sessions} sessions" if sessions > 1 else text


def to_json(value: Any) -> Any:
    """Plain JSON values of a report: dataclasses become objects, what is not a number becomes null."""
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value):
        fields = (one for one in dataclasses.fields(value) if one.metadata.get("json", True))
        return {one.name: to_json(getattr(value, one.name)) for one in fields}
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, np.generic):
        return to_json(value.item())
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [to_json(item) for item in value]
    return str(value)
