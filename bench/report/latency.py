"""Beside throughput: percentiles of single steps, what was served, energy, and what the machine did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bench.judge.numbers import significant
from bench.record.parts import Served
from bench.report.document import Block, Bullets, Cell, Column, Table, Text
from bench.report.text import cell, number
from bench.report.values import Group, Row, RunReport, trains

PERCENTILES = (50, 90, 99)
SCENARIOS = ("SingleStream", "Offline", "Server")


def percentile_ms(seconds: Sequence[float], percentile: int) -> float | None:
    """A percentile in milliseconds.

    Args:
        seconds: Of single steps.
        percentile: Above 0, below 100.

    Returns:
        None where the steps are too few for one of them to be expected above it.
    """
    if len(seconds) * (100 - percentile) < 100:
        return None
    return 1e3 * float(np.percentile(seconds, percentile))


def latency_blocks(run: RunReport) -> Iterator[Block]:
    """A row of percentiles for every arm that infers."""
    rows = [_cells(group, row) for group, row in run.placed if not trains(group.task)]
    found = tuple(row for row in rows if row)
    if not found:
        return
    yield Text(
        "Milliseconds of single steps, each of a whole batch from the loaded images to the final detections. All "
        "measured steps count, those too in which other processes took processors. One step follows the other: "
        "no request waits in a queue. A percentile that fewer steps were measured for than it needs is –."
    )
    titles = [Column(f"p{one} (ms)", True) for one in PERCENTILES]
    first = (Column("workload"), Column("codebase"), Column("images", True), Column("steps", True))
    yield Table((*first, *titles, Column("longest (ms)", True)), found)


def _cells(group: Group, row: Row) -> tuple[Cell, ...]:
    seconds = row.trace.measured_s
    if not seconds:
        return ()
    values = [*(percentile_ms(seconds, one) for one in PERCENTILES), 1e3 * max(seconds)]
    counts = (cell(row.images_per_step), cell(len(seconds)))
    return (cell(group.title), cell(group.row_name(row)), *counts, *(number(one, 4) for one in values))


SERVING = (
    "Requests of MLPerf's load generator, each of one batch; an arm answers one at a time, in the order of arrival. "
    "SingleStream asks again when the answer is there. Offline asks for all at once. Server asks at random times "
    "(Poisson), and its row is the highest rate of those tried at which 99 % of the answers came within the bound. "
    "Values are medians over launches. The arms were served one after the other, so there are no ratios. Valid: the "
    "generator calls every result valid. This is no submission to MLPerf."
)


def serving_blocks(run: RunReport) -> Iterator[Block]:
    """A row of rates and latencies for every arm and scenario."""
    rows = tuple(_served_cells(group, row, *found) for group, row in run.placed for found in _served(row))
    if not rows:
        return
    yield Text(SERVING)
    numbers = ["requests", "requests/s", "images/s", *(f"p{one} (ms)" for one in PERCENTILES)]
    first = (Column("workload"), Column("codebase"), Column("scenario"))
    yield Table((*first, *(Column(one, True) for one in numbers), Column("valid")), rows)


def serving_sentences(run: RunReport) -> Iterator[str]:
    """What each arm served, in a sentence."""
    for group, row in run.placed:
        parts = []
        for title, _, rate, latencies in _served(row):
            times = [
                f"p{share} {significant(one)} ms"
                for share, one in zip(PERCENTILES, latencies, strict=True)
                if one
            ]
            speed = "no rate of those tried" if rate is None else f"{significant(rate)} requests/s"
            parts.append(f"{title}: {', '.join(times) if title == 'SingleStream' and times else speed}")
        if parts:
            yield f"{group.row_name(row)} serves {group.title}: {'; '.join(parts)}."


def _served(row: Row) -> Iterator[tuple[str, list[Served], float | None, list[float | None]]]:
    """Of each scenario its title, what each launch gave, requests/s and percentiles; of Server the best rate."""
    titles: dict[str, dict[int, Served]] = {}
    for one in sorted(row.served, key=lambda one: one.samples_per_s):
        bound = "" if one.p99_bound_ms is None else f", p99 ≤ {one.p99_bound_ms:g} ms"
        found = titles.setdefault(f"{one.scenario}{bound}", {})
        if one.within is not False:
            found[one.launch] = one
    for title in sorted(titles, key=lambda one: SCENARIOS.index(one.partition(",")[0])):
        launches = list(titles[title].values())
        rate = _median([one.samples_per_s for one in launches])
        yield (
            title,
            launches,
            rate,
            [_median([getattr(one, f"p{p}_ms") for one in launches]) for p in PERCENTILES],
        )


def _served_cells(
    group: Group, row: Row, title: str, found: list[Served], rate: float | None, latencies: list[float | None]
) -> tuple[Cell, ...]:
    requests = cell(sum(one.samples for one in found)) if found else cell("no rate of those tried")
    values = [rate, None if rate is None else rate * row.images_per_step, *latencies]
    valid = "yes" if found and all(one.valid for one in found) else "no"
    named = (cell(group.title), cell(group.row_name(row)), cell(title), requests)
    return (*named, *(number(one, 4) for one in values), cell(valid))


def energy_blocks(run: RunReport) -> Iterator[Block]:
    """Joules per image of every arm, or why they are not known."""
    devices = list(dict.fromkeys(name for row in run.rows for name in (*row.energy, *row.no_energy)))
    if not devices:
        return
    if any(row.energy for row in run.rows):
        yield Text(
            "Joules per image, the median of blocks: of the processor packages by RAPL, of the arm's GPUs by NVML. "
            "They are of the whole package or GPU, so idle power and other processes count."
        )
        columns = (
            Column("workload"),
            Column("codebase"),
            *(Column(f"{one} (J/image)", True) for one in devices),
        )
        values = (
            (group, row, [number(row.energy.get(one), 3) for one in devices]) for group, row in run.placed
        )
        yield Table(columns, tuple((cell(g.title), cell(g.row_name(r)), *found) for g, r, found in values))
    reasons = dict.fromkeys(
        f"{name}: n/a, {text}." for row in run.rows for name, text in row.no_energy.items()
    )
    if reasons:
        yield Bullets(tuple(reasons))


def condition_blocks(run: RunReport) -> Iterator[Block]:
    """What the machine did while the blocks of every arm were timed."""
    names = [
        name
        for name in dict.fromkeys(name for row in run.rows for name in row.conditions)
        if any(row.conditions.get(name, (0.0,))[-1] for row in run.rows)
    ]
    if not names:
        return
    yield Text(
        "Medians of the measured blocks, with the least and the most. Stolen: by the hypervisor. Pressure: the share "
        "of the time in which a process waited for it. Page faults: of all workers."
    )
    columns = (Column("workload"), Column("codebase"), *(Column(name, True) for name in names))
    yield Table(
        columns,
        tuple(
            (cell(group.title), cell(group.row_name(row)), *map(_range_cell, map(row.conditions.get, names)))
            for group, row in run.placed
        ),
    )


def _range_cell(found: tuple[float, float, float] | None) -> Cell:
    if found is None:
        return number(None, 3)
    middle, least, most = (significant(value, 3) for value in found)
    return cell(middle if least == most else f"{middle} ({least}–{most})")


def _median(values: Sequence[float | None]) -> float | None:
    """None where a launch has no value."""
    known = [one for one in values if one is not None]
    return float(np.median(known)) if known and len(known) == len(values) else None
