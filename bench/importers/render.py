"""A log's summary for people (text) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from typing import Any

from bench.importers.clock import ASSUMED_YEAR
from bench.importers.evaluation import COCO_METRICS
from bench.importers.events import BestMetric, Evaluation, Inference
from bench.importers.foreign import remedy
from bench.importers.section import Section, WallClock
from bench.importers.summary import ImportResult, Placed
from bench.text_safety import for_terminal

_SHOWN = 10
#: No log without years runs for longer than this; none with years is from so long ago.
_ASSUMED_YEARS = 5


def render(result: ImportResult) -> str:
    """The summary as text, a paragraph per section."""
    lines = [
        f"{', '.join(path.name for path in result.files)}: {result.lines} lines, {result.size_bytes / 1e6:.1f} MB",
        "formats: "
        + (", ".join(f"{name} ({n} training lines)" for name, n in result.train_lines.items()) or "-"),
    ]
    for section in result.log.sections:
        lines += ["", *_section(section)]
    lines += _totals(result.log.sections)
    for placed in result.log.found:
        lines += ["", *_placed(placed)]
    lines += ["", *_problems(result)]
    for name, caveats in result.caveats.items():
        lines += [f"note on {name}: {caveat}" for caveat in caveats]
    return for_terminal("\n".join(lines).rstrip()) + "\n"


def _section(section: Section) -> list[str]:
    title = f"[{section.index + 1}] {section.format}"
    title += f" - {section.heading}" if section.heading else ""
    title += f" - rank {section.rank}" if section.rank is not None else ""
    title += f" - {section.cards} cards" if section.cards is not None and section.cards > 1 else ""
    title += " - mixed with another rank's lines" if section.parallel else ""
    title += " - restarted" if section.restart else ""
    lines = [
        title,
        f"  {section.unit}s {section.first} to {section.last}, {section.lines} lines{_span(section)}",
    ]
    settings = {key: value for key, value in section.settings.items() if key != "heading"}
    if settings:
        lines.append("  " + ", ".join(f"{key} = {value}" for key, value in settings.items()))
    lines.append("  wall clock: " + wall_clock_text(section))
    lines += [
        f"  excluded: {section.unit}s {part.first} to {part.last}, {part.seconds:.0f} s: {part.reason}"
        for part in section.excluded[:_SHOWN]
    ]
    if len(section.excluded) > _SHOWN:
        lines.append(f"  excluded: {len(section.excluded) - _SHOWN} more")
    lines += [*_segments(section), *_printed(section), *_curve(section)]
    lines += [f"  note: {note}" for note in section.notes]
    return lines


def _totals(sections: tuple[Section, ...]) -> list[str]:
    """The printed rates of all ranks that wrote into one log, where each prints its own."""
    lines = []
    for group in sorted({section.group for section in sections}):
        rates = {
            section.rank: section.printed["images_per_s"].mean
            for section in sections
            if section.group == group
            and section.parallel
            and section.per_card
            and section.rank is not None
            and "images_per_s" in section.printed
        }
        if len(rates) > 1:
            lines += ["", f"printed by all: {sum(rates.values()):.6g} images/s over {len(rates)} ranks"]
    return lines


def _curve(section: Section) -> list[str]:
    first, last = section.curve[0], section.curve[-1]
    lines = []
    losses = ", ".join(
        f"{key} {first.fields.losses[key]:g} → {value:g}"
        for key, value in last.fields.losses.items()
        if key in first.fields.losses
    )
    if losses:
        lines.append(f"  losses: {losses}")
    if first.fields.lr is not None and last.fields.lr is not None:
        lines.append(f"  lr: {first.fields.lr:g} → {last.fields.lr:g}")
    return lines


def wall_clock_text(section: Section) -> str:
    """`180 step / 154 s = 1.1688 ± 0.0076 step/s`, or why there is no such rate."""
    clock = section.wall_clock
    if clock is None:
        return f"none: {section.no_wall_clock}"
    unit = "epoch" if section.unit == "epoch" else "step"
    seconds = f"{clock.exact_seconds:.3f}" if clock.milliseconds else str(clock.seconds)
    error = f" ± {clock.steps_per_s * clock.relative_error:.4f}" if clock.relative_error else ""
    return (
        f"{clock.steps} {unit} / {seconds} s = {clock.steps_per_s:.4f}{error} {unit}/s, "
        f"{clock.s_per_iter:.4f} s/{unit} ({section.unit}s {clock.first} to {clock.last})"
    )


def _segments(section: Section) -> list[str]:
    if len(section.segments) < 2:
        return []
    first, last = section.segments[0].s_per_iter, section.segments[-1].s_per_iter
    change = last / first - 1
    word = "slower" if change > 0 else "faster"
    rates = ", ".join(f"{segment.s_per_iter:.4f}" for segment in section.segments)
    unit = "epoch" if section.unit == "epoch" else "step"
    return [f"  by quarters: {rates} s/{unit}: the last is {abs(change):.1%} {word} than the first"]


def _printed(section: Section) -> list[str]:
    units = {"s_per_iter": "s/iter", "data_s": "s data", "images_per_s": "images/s"}
    parts = [
        f"{units[name]} mean {value.mean:.6g}, median {value.median:.6g} ({value.lines} lines)"
        for name, value in section.printed.items()
        if name in units
    ]
    if section.data_share is not None:
        parts.append(f"data is {section.data_share:.1%} of the step")
    images = section.printed.get("images_per_s")
    if images is not None and section.per_card:
        cards = section.cards or 1
        of_all = f"; {images.mean * cards:.6g} images/s over {cards} cards" if cards > 1 else ""
        parts.append(f"images/s of one card{of_all}")
    memory = section.printed.get("memory_mb")
    if memory is not None:
        parts.append(f"max {memory.maximum:g} MB allocated, not what nvidia-smi shows ({memory.lines} lines)")
    if section.warm_up is not None:
        parts.append(f"warm-up up to {section.unit} {section.warm_up}: its lines are in the means")
    return [f"  printed: {part}" for part in parts]


def _span(section: Section) -> str:
    if section.first_time_ms is None or section.last_time_ms is None:
        return ""
    return f", {_time(section.first_time_ms)} to {_time(section.last_time_ms)}"


def _time(time_ms: int) -> str:
    moment = datetime.fromtimestamp(time_ms / 1000, tz=UTC)
    known = moment.year > ASSUMED_YEAR + _ASSUMED_YEARS
    return moment.strftime("%Y-%m-%d %H:%M:%S" if known else "%m-%d %H:%M:%S")


def _placed(placed: Placed) -> list[str]:
    where = f" - {placed.heading}" if placed.heading else ""
    where += f", after {placed.unit} {placed.after_iteration}" if placed.after_iteration is not None else ""
    event = placed.event
    if isinstance(event, Evaluation):
        known = [name for name in COCO_METRICS if name in event.metrics]
        names = known + [name for name in event.metrics if name not in known]
        values = "  ".join(f"{name} {metric_text(event.metrics[name])}" for name in names)
        kind = f"evaluation of {event.task or 'an unnamed task'}"
        if not known:
            kind = f"evaluation that is not COCO's, at line {event.line}"
        return [f"{kind} ({placed.format or 'unknown tool'}{where})", f"  {values}"]
    if isinstance(event, BestMetric):
        at = f" at iteration {event.iteration}" if event.iteration is not None else ""
        return [f"printed best '{event.label}' ({placed.format}{where}): {event.value:.4f}{at}"]
    return [f"{event.what} ({placed.format}{where}): {inference_text(event)}"]


def metric_text(value: float | None) -> str:
    """Three decimals, or four; `–` where it is undefined."""
    if value is None:
        return "–"
    return f"{value:.3f}" if round(value, 3) == round(value, 4) else f"{value:.4f}"


def inference_text(event: Inference) -> str:
    """The values that the line states, in its own units."""
    parts = (
        (event.images, "{} images"),
        (event.batches, "{} batches"),
        (event.total_s, "{:g} s"),
        (event.s_per_image, "{:g} s/image"),
        (event.s_per_batch, "{:g} s/batch"),
        (event.batches_per_s, "{:.3f} batch/s"),
        (event.fps, "{:g} FPS"),
    )
    return ", ".join(text.format(value) for value, text in parts if value is not None)


def _problems(result: ImportResult) -> list[str]:
    log = result.log
    lines = [f"broken lines: {log.broken_lines}"]
    lines += [f"  line {one.line or '?'}: {one.reason}: {one.text!r}" for one in log.broken[:_SHOWN]]
    lines += [f"not read: {n} lines of {tool}: {remedy(tool)}" for tool, n in result.not_read.items()]
    lines += [f"interrupted at line {one.line}: {one.text}" for one in log.interruptions[:_SHOWN]]
    if log.repeated_lines:
        lines.append(f"lines said twice, counted once: {log.repeated_lines}")
    if log.dropped_sections or log.dropped_found:
        lines.append(f"not kept: {log.dropped_sections} sections, {log.dropped_found} evaluations and rates")
    return lines


def to_json(result: ImportResult) -> dict[str, Any]:
    """Everything, as plain JSON values; a number that is not finite becomes its name."""
    return {part.name: _plain(getattr(result, part.name)) for part in dataclasses.fields(result)}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [part.name for part in dataclasses.fields(value)]
        if isinstance(value, WallClock):
            names += ["steps_per_s", "s_per_iter", "relative_error"]
        kind = type(value).__name__ if isinstance(value, Evaluation | Inference | BestMetric) else None
        return ({"type": kind} if kind else {}) | {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
