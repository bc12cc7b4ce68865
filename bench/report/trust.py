"""Can a reader trust the run: its warnings, the load of its machine, and what would narrow its intervals."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from statistics import median

from bench.judge.noise import MIN_LAUNCHES
from bench.judge.numbers import duration_text, significant
from bench.judge.ratio import Ratio
from bench.judge.steady import t_quantile
from bench.judge.stopping import Components, launches_needed
from bench.report.document import Bullets, Link
from bench.report.values import Group, Row, RunReport

Placed = tuple[Group, Row]


def warnings_of(run: RunReport) -> Iterator[tuple[str, list[Placed]]]:
    """Each warning once, with the arms that it is of; none of a warning about the whole run."""
    if run.status != "complete":
        yield f"The run is {run.status}: what is missing may change the picture.", []
    if run.git.get("dirty"):
        yield "bench had uncommitted changes: the revision does not say exactly what ran.", []
    yield from ((warning, []) for warning in run.warnings)
    kinds: dict[tuple[str, ...], tuple[list[str], list[Placed]]] = {}
    for group, row in run.placed:
        unusable = [row.reason] if row.step_s is None and row.status != "failed" else []
        for warning in (*unusable, *row.warnings):
            texts, arms = kinds.setdefault(tuple(_NUMBER.split(warning)[::2]), ([], []))
            texts.append(warning)
            arms.append((group, row))
    yield from ((_one_text(texts), arms) for texts, arms in kinds.values())


_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")


def _one_text(texts: Sequence[str]) -> str:
    """Warnings that differ in numbers only, as one: `a deviation of 12–47 %`."""
    parts = [_NUMBER.split(text) for text in texts]
    joined = []
    for index, found in enumerate(zip(*parts, strict=True)):
        ends = sorted(set(found), key=float) if index % 2 else [found[0]]
        joined.append(ends[0] if len(ends) == 1 else f"{ends[0]}–{ends[-1]}")
    return "".join(joined)


def warning_bullets(run: RunReport, ids: Mapping[int, str] | None = None) -> Bullets:
    """Each warning with the arms that it is of.

    Args:
        run: The values.
        ids: `id` of a row → what a page calls its arm.
    """
    items, links = [], []
    for warning, arms in warnings_of(run):
        every = len(arms) == len(run.rows) > 1
        items.append(f"All arms: {warning}" if every else warning)
        links.append(
            ()
            if every
            else tuple(Link(group.place(row), (ids or {}).get(id(row), row.arm)) for group, row in arms)
        )
    return Bullets(tuple(items), tuple(links))


#: Half widths of intervals that are worth asking for.
WIDTHS = (0.1, 0.05, 0.02, 0.01)


def trust_texts(run: RunReport) -> Iterator[str]:
    """Load of the machine, rounds that others disturbed, noise, and what would narrow the widest interval."""
    if run.load_before and run.load_after:
        before, after = run.load_before[0], run.load_after[0]
        yield f"Processes that ran or waited, over one minute: {before:.1f} before, {after:.1f} after."
    disturbed, rounds = _disturbed_rounds(run)
    if disturbed:
        yield f"Other processes disturbed {disturbed} of {rounds} rounds."
    ratios = [row.ratio for row in run.rows if row.ratio and row.ratio.sessions == 1]
    if seen := [one.detectable for one in ratios if math.isfinite(one.detectable)]:
        effect = significant(100 * median(seen), 2)
        yield f"Noise: half of the ratios would have shown an effect of {effect} %, in 80 % of such runs."
    yield from _narrower(run, ratios)


def _disturbed_rounds(run: RunReport) -> tuple[int, int]:
    """How many rounds others disturbed, and how many there are."""
    rounds: dict[tuple[str, int, int], bool] = {}
    for row in run.rows:
        trace = row.trace
        for launch, number, bad in itertools.zip_longest(trace.launch, trace.round, trace.disturbed):
            if number >= 0:
                place = row.arm, launch, number
                rounds[place] = rounds.get(place, False) or bool(bad)
    return sum(rounds.values()), len(rounds)


def _narrower(run: RunReport, ratios: Sequence[Ratio]) -> Iterator[str]:
    """What would narrow the widest interval."""
    finite = (one for one in ratios if 0 < one.low < one.high < math.inf)
    widest = max(finite, key=lambda one: one.high / one.low, default=None)
    if widest is None or widest.launches < MIN_LAUNCHES:  # two say little of their spread
        return
    half = math.log(widest.high / widest.low) / 2
    wanted = next((width for width in WIDTHS if math.log1p(width) < half), None)
    if wanted:
        spread = half * math.sqrt(widest.launches) / t_quantile(widest.launches - 1, 0.975)
        launches = launches_needed(Components(spread, 0), 1, wanted)
        taken = seconds_of(run) / widest.launches * launches
        yield (
            f"The widest interval is ±{100 * math.expm1(half):.0f} %. About {launches} launches would give "
            f"±{100 * wanted:.0f} %{f', in about {duration_text(taken)}' if taken else ''}: --until {100 * wanted:g}%."
        )


def seconds_of(run: RunReport) -> float:
    """From start to end; 0 where that is not known, and of pooled runs."""
    try:
        ends = (datetime.fromisoformat(text) for text in (run.started_utc, run.ended_utc or ""))
        return 0.0 if run.sessions else -(next(ends) - next(ends)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
