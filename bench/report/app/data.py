"""The one block of data that every view of the page reads: columns with interned texts, gzip, base64."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from bench.judge.audit import Difference
from bench.judge.fact import Agreement, kind_of
from bench.judge.numbers import MISSING, significant
from bench.report.accuracy_values import ArmAccuracy
from bench.report.colours import look, phase_colour
from bench.report.export import bibtex
from bench.report.sections import log_tail, reproduce, without_text
from bench.report.sweeps import MOST_CURVES, SWEEPS, curves
from bench.report.text import PHASE_TITLES, value_text
from bench.report.values import MARKS, Group, Report, Row, RunReport
from bench.text_safety import shorten

#: Steps in the page over all arms; the Parquet files beside the run hold every one.
MOST_STEPS = 300_000
FEWEST_STEPS = 200
#: Losses in the page over all arms, and of one arm: means of so many stretches of its steps.
MOST_LOSSES, MOST_LOSSES_OF_ARM = 60_000, 240
MOST_BATCHES = 16
#: Kinds of facts that agree, over all arms: of many arms those nearest to their tolerance.
MOST_AGREED = 20_000
#: Characters of a fact, and of its values.
LONGEST_FACT, LONGEST_VALUE = 200, 100
#: The round of steps that others disturbed: like the warm-up's, it is below 0 and counts in no ratio of the page.
DISTURBED = -2


class Strings:
    """Texts by number: most of them stand in many rows."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {"": 0}

    def __call__(self, value: Any) -> Any:
        """The number of a text; of a list, the numbers of its texts."""
        if isinstance(value, str):
            return self.numbers.setdefault(value, len(self.numbers))
        return [self(one) for one in value] if isinstance(value, list) else value


def short(value: float | None, digits: int = 5) -> float | None:
    """A number in so many significant digits; None where it is none."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def page_data(report: Report) -> dict[str, Any]:
    """Everything that the script shows, by column."""
    text, several = Strings(), len(report.runs) > 1
    placed = [(run, *one) for run in report.runs for one in run.placed]
    groups = [(run, group) for run in report.runs for group in run.groups]
    index = {id(group): number for number, (_, group) in enumerate(groups)}
    ids = arm_ids(report)
    room = max(FEWEST_STEPS, MOST_STEPS // max(len(placed), 1))
    evaluated = {(run.id, arm.arm): arm for run in report.runs for cell in run.accuracy for arm in cell.arms}
    began = _began(report)
    losses = min(MOST_LOSSES_OF_ARM, MOST_LOSSES // max(len(evaluated), 1))
    agreed = MOST_AGREED // max(len(placed), 1)
    rows = [
        _row(run, group, row, began[run.id, group.cell], room)
        | {"agreed": _agreed(row, agreed)}
        | _accuracy(evaluated.get((run.id, row.arm)), losses)
        for run, group, row in placed
    ]
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else {})}
    codebases = dict.fromkeys(row.codebase for _, _, row in placed)
    phases = dict.fromkeys(one.name for _, _, row in placed for one in (*row.phases, *row.operators))
    facts = {fact for row in rows for fact in (*(one[0] for one in row["differences"]), *row["unknown"])}
    document = {
        "version": 1,
        "runs": [{"id": run.id, "name": run.name, "folder": run.folder} for run in report.runs],
        "groups": {
            "title": text([f"{group.title} · {run.id}" if several else group.title for run, group in groups]),
            "model": text([group.model for _, group in groups]),
            "task": text([group.task for _, group in groups]),
            "cell": text([f"{run.id}/{group.cell}" for run, group in groups]),
            "levels": text([group.level_words for _, group in groups]),
            "command": text([reproduce(run, group)[-2] for run, group in groups]),
        },
        "arms": {
            "id": list(ids.values()),
            "group": [index[id(group)] for _, group, _ in placed],
            **{  # phases keep their names, which are keys of the document's phases
                name: column if name in ("phases", "operators") else text(column)
                for name, column in columns.items()
            },
        },
        "texts": [name for name, column in columns.items() if isinstance(column[0], str)],
        "kinds": {text(fact): text(kind_of(fact).strip() or MISSING) for fact in sorted(facts)},
        "interleaved": all(run.interleaved for run in report.runs),
        "marks": MARKS,
        "looks": {name: look(name) for name in codebases},
        "sweeps": [one for run in report.runs for one in _sweeps(run)],
        "citation": "\n".join(map(bibtex, report.runs)),
        "phases": {name: [PHASE_TITLES.get(name, name), phase_colour(name)] for name in phases},
    }
    return {**document, "strings": list(text.numbers)}


def _began(report: Report) -> dict[tuple[str, str], dict[int, float]]:
    """When each launch of a cell began, by run and cell: its arms have one clock."""
    began: dict[tuple[str, str], dict[int, float]] = {}
    for run in report.runs:
        for group, row in run.placed:
            of_cell = began.setdefault((run.id, group.cell), {})
            for launch, start in zip(row.trace.launch, row.trace.start_s, strict=True):
                of_cell[launch] = min(start, of_cell.get(launch, math.inf))
    return began


def _accuracy(arm: ArmAccuracy | None, room: int) -> dict[str, Any]:
    """Seconds of training, step and AP of each evaluation; the interval of the last AP, and images that it is of; the
    length of a stretch of steps, and the mean loss of each."""
    if arm is None:
        return {"curve": [], "interval": [], "stretch": 1, "losses": []}
    seen = ((one.train_s, one.step, one.ap.get(arm.headline)) for one in arm.evaluations)
    sure = arm.interval if arm.interval and math.isfinite(arm.interval.high) else None
    stretch = math.ceil(len(arm.losses) / max(room, 1)) or 1
    parts = (arm.losses[start : start + stretch] for start in range(0, len(arm.losses), stretch))
    return {
        "curve": [[short(s), step, short(ap, 4)] for s, step, ap in seen if s is not None and ap is not None],
        "interval": [short(sure.low, 4), short(sure.high, 4), sure.images] if sure else [],
        "stretch": stretch,
        "losses": [short(sum(part) / len(part)) for part in parts],
    }


def arm_ids(report: Report) -> dict[int, str]:
    """`id` of a row → an id that survives a new report: the arm's own, with its run's where two runs have one."""
    counts = Counter(row.arm for run in report.runs for row in run.rows)
    return {
        id(row): row.arm if counts[row.arm] == 1 else f"{run.id}/{row.arm}"
        for run in report.runs
        for row in run.rows
    }


def _row(run: RunReport, group: Group, row: Row, began: Mapping[int, float], room: int) -> dict[str, Any]:
    step, ratio, memory = row.step_s, row.ratio, row.memory
    design, seconds = _steps(row, began, room)
    batches = row.trace.batch if design and len({*row.trace.batch} - {-1}) > 1 else ()
    return {
        "name": group.contrast(row)[0],
        "codebase": row.codebase,
        "base": int(row.is_baseline),
        "status": row.status,
        "reason": row.reason[:2000],
        "marks": "".join(row.marks),
        "verdict": row.verdict,
        "median": short(step.median_s if step else None),
        "p5": short(step.p5_s if step else None),
        "p95": short(step.p95_s if step else None),
        "rate": short(step.images_per_s if step else None),
        "images": row.images_per_step,
        "sessions": row.sessions,
        "launches": row.launches,
        "rounds": row.rounds,
        "ratio": short(ratio.value if ratio else None),
        "low": short(ratio.low if ratio else None),
        "high": short(ratio.high if ratio else None),
        "detectable": short(ratio.detectable if ratio else None, 3),
        "memory": short(row.peak_mib),
        "resident": short(memory.baseline_bytes / 2**20 if memory and memory.baseline_bytes else None),
        "ap": short(row.headline_ap, 4),
        "peak": short(row.peak_share, 4),
        "gflops": short(row.flops_per_step / step.median_s / 1e9 if row.flops_per_step and step else None, 4),
        "without": [without_text(group, row, one) for one in row.without],
        "notes": list(row.audit.notes) if row.audit else [],
        "recipe_arm": _recipe_arm(run, row),
        "software": " · ".join(part for part in (row.version, row.kernels) if part),
        "options": ", ".join(f"{key}={value}" for key, value in row.options.items()),
        "warnings": list(row.warnings),
        "log": log_tail(row) if row.log_tail else "",
        "differences": _differences(row),
        "unknown": list(row.audit.unknown) if row.audit else [],
        "phases": [[phase.name, short(phase.median_s, 4)] for phase in row.phases],
        "operators": [[one.name, short(one.median_s, 4)] for one in row.operators],
        "design": design,
        "batches": _by_batch(row),
        "steps": seconds,
        "batch": list(batches),
    }


def _recipe_arm(run: RunReport, row: Row) -> str:
    """The arm as its recipe has it, as JSON; empty where the recipe has no such arm."""
    arms = [one for one in run.recipe.get("arms") or () if isinstance(one, Mapping)]
    found = [
        one
        for one in arms
        if (one.get("codebase"), one.get("label") or row.codebase) == (row.codebase, row.label)
    ]
    return json.dumps({key: value for key, value in found[0].items() if value}) if len(found) == 1 else ""


def _differences(row: Row) -> list[list[Any]]:
    """Fact, value of the baseline, of the arm, the relative difference of two numbers, and what is tolerated."""
    found = []
    for one in row.audit.differences if row.audit else ():
        pair = (one.baseline, one.arm)
        numbers = [value for value in pair if isinstance(value, int | float) and not isinstance(value, bool)]
        relative = numbers[1] / numbers[0] - 1 if len(numbers) == 2 and numbers[0] else None
        found.append([*_clipped(one), short(relative, 3), one.tolerance])
    return found


def _clipped(one: Difference | Agreement) -> Iterator[str]:
    """The fact, and the values of baseline and arm."""
    yield shorten(one.fact, LONGEST_FACT, at_end=True)
    yield from (shorten(value_text(value), LONGEST_VALUE, at_end=True) for value in (one.baseline, one.arm))


def _agreed(row: Row, room: int) -> list[list[Any]]:
    """Kind of fact, values of baseline and arm, how far apart they are, what is tolerated, and of how many facts."""
    found = row.audit.agreed if row.audit else ()
    if len(found) > room:
        found = tuple(sorted(found, key=lambda one: one.tolerance - one.apart)[:room])
    return [[*_clipped(one), short(one.apart, 2), one.tolerance, one.count] for one in found]


def _sweeps(run: RunReport) -> Iterator[dict[str, Any]]:
    """Rates over batch sizes and resolutions: each curve with its points, and the one from which on it is flat."""
    for factor, (_, across, rate, _) in SWEEPS.items():
        if found := curves(run, factor)[:MOST_CURVES]:
            points = [
                [[short(place), level, short(value)] for place, level, value in one.points] for one in found
            ]
            named = [[one.title, one.label, look(one.codebase), one.flat] for one in found]
            yield {
                "x": across,
                "y": rate,
                "curves": [[*name, part] for name, part in zip(named, points, strict=True)],
            }


def _by_batch(row: Row) -> str:
    """Median seconds of each batch: content explains much of what looks like noise. Empty for a single batch."""
    times: dict[int, list[float]] = {}
    for batch, round_, seconds in zip(row.trace.batch, row.trace.round, row.trace.seconds, strict=False):
        if batch >= 0 and round_ >= 0:
            times.setdefault(batch, []).append(seconds)
    if len(times) < 2:
        return ""
    parts = [f"{batch}: {significant(median(found))} s" for batch, found in sorted(times.items())]
    more = len(parts) - MOST_BATCHES
    return ", ".join(parts[:MOST_BATCHES]) + (f", {more} more" if more > 0 else "")


def _steps(row: Row, began: Mapping[int, float], room: int) -> tuple[str, list[float | None]]:
    """Launch, round, number of steps, start in its launch and turn in the round of each run of steps; their seconds.

    Beyond `room` steps the least and the most of each stretch remain, and no design: ratios need every step.
    """
    trace = row.trace
    if len(trace.seconds) > room:
        size = math.ceil(2 * len(trace.seconds) / room)
        stretches = (trace.seconds[start : start + size] for start in range(0, len(trace.seconds), size))
        return "", [short(value) for stretch in stretches for value in (min(stretch), max(stretch))]
    if row.sessions > 1:  # a ratio that the page made from these steps would not know of sessions
        return "", [short(value) for value in trace.seconds]
    runs: list[list[Any]] = []
    disturbed = trace.disturbed or (False,) * len(trace.launch)
    places = zip(trace.launch, trace.round, disturbed, trace.start_s, trace.position, strict=True)
    for launch, number, bad, start, position in places:
        round_ = DISTURBED if bad and number >= 0 else number
        if runs and runs[-1][:2] == [launch, round_]:
            runs[-1][2] += 1
        else:
            runs.append([launch, round_, 1, short(start - began[launch], 6), position + 1])
    design = ";".join(",".join(map(str, one)) for one in runs)
    return design, [short(value) for value in trace.seconds]


def packed(document: Any) -> str:
    """As JSON, gzip and base64; the same document gives the same text."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()
