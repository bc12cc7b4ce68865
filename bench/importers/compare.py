"""Logs beside each other: rates, memory and accuracy, each against the first log."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from bench.importers.evaluation import COCO_METRICS
from bench.importers.events import Evaluation
from bench.importers.render import metric_text
from bench.importers.section import Section
from bench.importers.summary import ImportResult
from bench.text_safety import for_terminal

MISSING = "–"


@dataclass(frozen=True)
class LogColumn:
    """What is compared of one log. What the log does not say is None."""

    log: str
    format: str
    section: int
    """From 1, as `bench import` counts them."""
    sections: int
    unit: str
    first: int
    last: int
    cards: int | None
    s_per_step: float | None
    """By the clock; by the printed s/iter where the log has none."""
    error: float
    """Relative, from stamps in whole seconds."""
    by_clock: bool
    images_per_s: float | None
    """Over all cards: from `--images-per-step`, else as printed."""
    images_stated: bool
    per_card: bool
    """The printed images/s are of one card."""
    by_quarters: tuple[float, ...]
    warm_up: int | None
    data_share: float | None
    memory_mb: float | None
    accuracy: Mapping[str, Mapping[str, float | None]]
    """Task → metrics of the last evaluation of the section."""
    window: str
    """Over which window the tool prints its values."""
    speed: float | None = None
    """How many times as fast as the first log: by images where both state them, else by steps."""
    speed_error: float | None = None


def compare_logs(
    results: Sequence[ImportResult],
    images_per_step: Sequence[float] = (),
    sections: Sequence[int] = (),
) -> list[LogColumn]:
    """The longest section of each log, or the one that `sections` names (from 1), beside each other.

    Args:
        results: Two logs or more; the first is what the others are compared with.
        images_per_step: Images of a step over all cards, for every log or one for all.
        sections: The number of a section, for every log or one for all.

    Raises:
        BenchError: A log without training lines, a section that is not there, other counts than logs.
    """
    if len(results) < 2:
        raise BenchError("compare-logs takes two logs or more")
    images = _for_each(images_per_step, len(results), "--images-per-step")
    chosen = _for_each(sections, len(results), "--section")
    if any(value is not None and value <= 0 for value in images):
        raise BenchError("--images-per-step must be above 0")
    columns = list(map(_column, results, images, chosen))
    return [_with_speed(column, columns[0]) for column in columns]


def _for_each(values: Sequence[Any], count: int, option: str) -> list[Any]:
    if len(values) not in (0, 1, count):
        raise BenchError(
            f"{option} is given {len(values)} times for {count} logs", hint="once, or once per log"
        )
    return list(values) if len(values) == count else [values[0] if values else None] * count


def _column(result: ImportResult, images: float | None, number: int | None) -> LogColumn:
    name = ", ".join(path.name for path in result.files)
    sections = result.log.sections
    if not sections:
        raise BenchError("it has no training line", where=name)
    if number is not None and not 1 <= number <= len(sections):
        raise BenchError(
            f"it has no section {number}", where=name, hint=f"it has {len(sections)}: see bench import"
        )
    section = max(sections, key=_length) if number is None else sections[number - 1]
    clock = section.wall_clock
    printed = section.printed
    s_per_step = clock.s_per_iter if clock is not None else None
    if s_per_step is None and "s_per_iter" in printed:
        s_per_step = printed["s_per_iter"].mean
    if images is not None and s_per_step:
        images_per_s: float | None = images / s_per_step
    else:
        cards = (section.cards or 1) if section.per_card else 1
        images_per_s = printed["images_per_s"].mean * cards if "images_per_s" in printed else None
    return LogColumn(
        log=name,
        format=section.format,
        section=section.index + 1,
        sections=len(sections),
        unit="epoch" if section.unit == "epoch" else "step",
        first=section.first,
        last=section.last,
        cards=section.cards,
        s_per_step=s_per_step or None,
        error=clock.relative_error if clock is not None else 0.0,
        by_clock=clock is not None,
        images_per_s=images_per_s or None,
        images_stated=images is not None,
        per_card=section.per_card,
        by_quarters=tuple(segment.s_per_iter for segment in section.segments),
        warm_up=section.warm_up,
        data_share=section.data_share,
        memory_mb=printed["memory_mb"].maximum if "memory_mb" in printed else None,
        accuracy=_accuracy(result, section),
        window=next(iter(result.caveats.get(section.format, ())), ""),
    )


def _with_speed(column: LogColumn, base: LogColumn) -> LogColumn:
    if base.s_per_step is None or column.s_per_step is None:
        return column
    error = base.error + column.error
    if base.images_per_s is not None and column.images_per_s is not None:
        speed = column.images_per_s / base.images_per_s
        error = error if column.images_stated and base.images_stated else 0.0
    else:
        speed = base.s_per_step / column.s_per_step
    return dataclasses.replace(column, speed=speed, speed_error=speed * error)


def _length(section: Section) -> tuple[int, int]:
    return section.last - section.first, section.lines


def _accuracy(result: ImportResult, section: Section) -> dict[str, Mapping[str, float | None]]:
    """The last evaluation of each task that stands within the section, or of a log of one section."""
    found: dict[str, Mapping[str, float | None]] = {}
    for placed in result.log.found:
        inside = placed.section == section.index or (placed.section is None and len(result.log.sections) == 1)
        if isinstance(placed.event, Evaluation) and inside:
            found[placed.event.task] = placed.event.metrics
    return found


def render_comparison(columns: Sequence[LogColumn]) -> str:
    """A table with a column for every log."""
    rows: list[tuple[str, Callable[[LogColumn], str]]] = [
        ("log", lambda one: one.log),
        ("format", lambda one: one.format),
        ("section", lambda one: f"{one.section} of {one.sections}: {one.unit}s {one.first} to {one.last}"),
        ("cards", lambda one: _shown(one.cards, "{}")),
        ("s/step", _time),
        ("step/s", lambda one: _shown(one.s_per_step and 1 / one.s_per_step, "{:.4g}")),
        ("images/s, all cards", lambda one: _shown(one.images_per_s, "{:.4g}", not one.images_stated)),
        ("speed", lambda one: _speed(one, columns[0])),
        ("by quarters, s/step", lambda one: ", ".join(f"{rate:.4g}" for rate in one.by_quarters) or MISSING),
        ("warm-up until", lambda one: _shown(one.warm_up, "{}")),
        ("data, of the step", lambda one: _shown(one.data_share, "{:.1%}")),
        ("max MB allocated", lambda one: _shown(one.memory_mb, "{:g}")),
        *_accuracy_rows(columns),
    ]
    cells = [(title, *(show(column) for column in columns)) for title, show in rows]
    cells = [row for row in cells if any(cell != MISSING for cell in row[1:])]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    return for_terminal("\n".join([*lines, "", *_remarks(columns)]).rstrip()) + "\n"


def _accuracy_rows(columns: Sequence[LogColumn]) -> list[tuple[str, Callable[[LogColumn], str]]]:
    tasks = {task: None for column in columns for task in column.accuracy}
    rows: list[tuple[str, Callable[[LogColumn], str]]] = []
    for task in tasks:
        printed = {name: None for column in columns for name in column.accuracy.get(task, ())}
        names = [name for name in COCO_METRICS[:6] if name in printed] or list(printed)[:6]
        for name in names:
            rows.append((f"{task or 'evaluation'} {name}", _metric(task, name)))
    return rows


def _metric(task: str, name: str) -> Callable[[LogColumn], str]:
    return lambda column: metric_text(column.accuracy.get(task, {}).get(name))


def _shown(value: float | None, form: str, printed: bool = False) -> str:
    return MISSING if value is None else form.format(value) + (" (printed)" if printed else "")


def _time(column: LogColumn) -> str:
    error = f" ± {column.s_per_step * column.error:.2g}" if column.s_per_step and column.error else ""
    return _shown(column.s_per_step, "{:.4g}" + error, not column.by_clock)


def _speed(column: LogColumn, base: LogColumn) -> str:
    if column is base:
        return _shown(column.speed, "1")
    error = f" ± {column.speed_error:.2g}" if column.speed_error else ""
    printed = column.images_per_s is not None and not (column.images_stated and base.images_stated)
    return _shown(column.speed, "{:.3f}" + error + " × the first", printed)


def _remarks(columns: Sequence[LogColumn]) -> list[str]:
    lines = []
    if any(column.images_per_s is None for column in columns):
        lines.append("Speed is of steps, whatever a step holds: give --images-per-step to compare images.")
    if any(column.per_card and column.cards is None and not column.images_stated for column in columns):
        lines.append("images/s are printed of one card, and a log does not say how many there are.")
    if len({column.by_clock for column in columns}) > 1:
        lines.append("One rate is by the clock, the other is printed: they leave out different things.")
    if len({column.unit for column in columns}) > 1:
        lines.append("One log counts steps, the other epochs: their rates cannot be compared.")
    if any(column.memory_mb is not None for column in columns):
        lines.append("Memory is what the allocator gave out, not what nvidia-smi shows.")
    lines += [f"{column.format}: {column.window}." for column in columns if column.window]
    return list(dict.fromkeys(lines))
