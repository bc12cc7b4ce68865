"""A log's summary for people (text) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, datetime
from typing import Any

from bench.importers.clock import ASSUMED_YEAR
from bench.importers.evaluation import COCO_METRICS
from bench.importers.events import BestMetric, Evaluation, Inference
from bench.importers.section import Section
from bench.importers.summary import ImportResult, Placed

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
    for placed in result.log.found:
        lines += ["", *_placed(placed)]
    lines += ["", *_problems(result)]
    for name, caveats in result.caveats.items():
        lines += [f"note on {name}: {caveat}" for caveat in caveats]
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> list[str]:
    title = f"[{section.index + 1}] {section.format}"
    title += f" - {section.heading}" if section.heading else ""
    title += f" - rank {section.rank}" if section.rank is not None else ""
    title += " - mixed with another rank's lines" if section.parallel else ""
    title += " - restarted" if section.restart else ""
    lines = [title, f"  iterations {section.first} to {section.last}, {section.lines} lines{_span(section)}"]
    settings = {key: value for key, value in section.settings.items() if key != "heading"}
    if settings:
        lines.append("  " + ", ".join(f"{key} = {value}" for key, value in settings.items()))
    lines.append("  wall clock: " + wall_clock_text(section))
    lines += [
        f"  excluded: iterations {part.first} to {part.last}, {part.seconds:.0f} s: {part.reason}"
        for part in section.excluded[:_SHOWN]
    ]
    if len(section.excluded) > _SHOWN:
        lines.append(f"  excluded: {len(section.excluded) - _SHOWN} more")
    lines += _printed(section)
    if section.curve:
        first, last = section.curve[0], section.curve[-1]
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
    """`980 step / 1644 s = 0.5961 step/s`, or why there is no such rate."""
    clock = section.wall_clock
    if clock is None:
        return f"none: {section.no_wall_clock}"
    text = f"{clock.steps} step / {clock.seconds} s = {clock.steps_per_s:.4f} step/s"
    text += f" (iterations {clock.first} to {clock.last}"
    if clock.exact_seconds != clock.seconds and clock.exact_seconds > 0:
        text += (
            f"; with milliseconds {clock.exact_seconds:.3f} s, {clock.steps / clock.exact_seconds:.4f} step/s"
        )
    return text + ")"


def _printed(section: Section) -> list[str]:
    units = {
        "s_per_iter": "s/iter",
        "data_s": "s data",
        "images_per_s": "images/s",
        "memory_mb": "MB",
        "lr": "lr",
    }
    parts = [
        f"{units[name]} mean {value.mean:.6g}, median {value.median:.6g} ({value.lines} lines)"
        for name, value in section.printed.items()
    ]
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
    where += f", after iteration {placed.after_iteration}" if placed.after_iteration is not None else ""
    event = placed.event
    if isinstance(event, Evaluation):
        known = [name for name in COCO_METRICS if name in event.metrics]
        names = known + [name for name in event.metrics if name not in known]
        values = "  ".join(f"{name} {event.metrics[name]:.3f}" for name in names)
        return [
            f"evaluation of {event.task or 'an unnamed task'} ({placed.format or 'unknown tool'}{where})",
            f"  {values}",
        ]
    if isinstance(event, BestMetric):
        at = f" at iteration {event.iteration}" if event.iteration is not None else ""
        return [f"printed best '{event.label}' ({placed.format}{where}): {event.value:.4f}{at}"]
    return [f"inference ({placed.format}{where}): {inference_text(event)}"]


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
    lines += [f"interrupted at line {one.line}: {one.text}" for one in log.interruptions[:_SHOWN]]
    if log.repeated_lines:
        lines.append(f"lines said twice, counted once: {log.repeated_lines}")
    if log.dropped_sections or log.dropped_found:
        lines.append(f"not kept: {log.dropped_sections} sections, {log.dropped_found} evaluations and rates")
    return lines


def to_json(result: ImportResult) -> dict[str, Any]:
    """Everything, as plain JSON values; a number that is not finite becomes its name."""
    plain = _plain(result)
    for section, source in zip(plain["log"]["sections"], result.log.sections, strict=True):
        if source.wall_clock is not None:
            section["wall_clock"]["steps_per_s"] = source.wall_clock.steps_per_s
            section["wall_clock"]["s_per_iter"] = source.wall_clock.s_per_iter
    return plain  # type: ignore[no-any-return]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = (
            {"type": type(value).__name__} if isinstance(value, Evaluation | Inference | BestMetric) else {}
        )
        return kind | {part.name: _plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)
