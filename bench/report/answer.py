"""The answer: who is faster, by how much, how sure, on equal work. Every output shows the same sentences and rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.judge.numbers import MISSING, interval_text, interval_texts, significant
from bench.judge.ratio import Ratio
from bench.record.models import RANDOM_WEIGHTS
from bench.report.document import Block, Bullets, Cell, Column, Table, Text
from bench.report.latency import serving_sentences
from bench.report.text import cell, counted, number, ratio_cell, seconds_cell
from bench.report.values import MARKS, Group, Row, RunReport

#: Rows of a pivot table at each end; what lies between is in the page.
ENDS, TERMINAL_ENDS = 50, 20
#: Sentences of a headline.
MOST_SENTENCES = 12


@dataclass(frozen=True)
class Pivot:
    """One arm of the pivot table and the baseline it is compared with."""

    group: Group
    row: Row

    @property
    def base(self) -> Row | None:
        return self.group.base

    @property
    def name(self) -> str:
        return self.group.contrast(self.row)[0]

    @property
    def base_name(self) -> str:
        """Empty for a row that has no baseline, or is one."""
        return "" if self.row.is_baseline else self.group.contrast(self.row)[1]

    @property
    def memory_ratio(self) -> float | None:
        """Max memory over the baseline's: above 1 needs more."""
        if self.base is None or self.base.memory is None or self.row.memory is None:
            return None
        return self.row.memory.peak_bytes / self.base.memory.peak_bytes


def pivots(run: RunReport) -> list[Pivot]:
    """Every arm but the baselines; the baseline too where it has nothing to be compared with."""
    found = []
    for group in run.groups:
        others = [row for row in group.rows if not row.is_baseline]
        found += [Pivot(group, row) for row in others or group.rows]
    return found


@dataclass(frozen=True)
class Mean:
    """The geometric mean of ratios of several workloads. ``low``, ``high``: None where a ratio has no interval."""

    value: float
    low: float | None
    high: float | None
    count: int


def geometric_mean(rows: Sequence[Row]) -> Mean | None:
    """Over rows of equal work with a ratio; None without any.

    The interval is of these workloads: their log half-widths add in squares, since workloads were measured apart.
    """
    ratios = [row.ratio for row in rows if row.ratio is not None and row.verdict == "equal"]
    if not ratios:
        return None
    value = math.exp(math.fsum(math.log(one.value) for one in ratios) / len(ratios))
    if any(one.low <= 0 or not math.isfinite(one.high) for one in ratios):
        return Mean(value, None, None, len(ratios))
    halves = (math.log(one.high / one.low) / 2 for one in ratios)
    half = math.sqrt(math.fsum(one * one for one in halves)) / len(ratios)
    return Mean(value, value * math.exp(-half), value * math.exp(half), len(ratios))


# -- The headline --------------------------------------------------------------------------------------------


def headline(run: RunReport) -> tuple[str, ...]:
    """One sentence per codebase against its baseline, worst news included."""
    sentences = []
    if run.aa:
        sentences.append("A/A run: the arms are the same, so every difference is noise.")
    if run.check is not None:
        sentences.append(_check_sentence(run.check))
    failed = sum(row.step_s is None for row in run.rows)
    if failed or run.unmeasured:
        planned = len(run.rows) + len(run.unmeasured)
        lacks = ((failed, "failed or gave no time"), (len(run.unmeasured), "have no record"))
        missing = " and ".join(f"{number} {words}" for number, words in lacks if number)
        sentences.append(f"Of {counted(planned, 'arm')}, {missing}.")
    contenders: dict[tuple[str, str], list[Pivot]] = {}
    for one in pivots(run):
        if one.row.ratio is not None and one.base is not None:
            contenders.setdefault((one.name, one.base_name), []).append(one)
    # Plain comparisons of codebases first, then those of their levels.
    ordered = sorted(contenders.items(), key=lambda one: "," in one[0][0])
    without: dict[str, list[str]] = {}
    for (name, base), found in ordered:
        if len(found) == 1 or geometric_mean([one.row for one in found]):
            sentences.append(_sentence(name, base, found))
        else:
            ratios = _range([one.row.ratio.value for one in found if one.row.ratio])
            told = f"{name}, {ratios} in {counted(len(found), 'workload')} ({_left_out(found)})"
            without.setdefault(base, []).append(told)
    sentences += [
        f"Against {base}, no ratio is shown to be of equal work, so there is no mean: {'; '.join(told)}."
        for base, told in without.items()
    ]
    sentences += serving_sentences(run)
    if not contenders:
        sentences.append("No ratio: no arm was measured beside a baseline.")
    more = len(sentences) - MOST_SENTENCES
    return (*sentences[:MOST_SENTENCES], *([f"{more} more in the page."] if more > 0 else []))


CHECKS = {"pass": "PASS", "fail": "REGRESSION", "inconclusive": "INCONCLUSIVE", "error": "NOT MEASURED"}


def _check_sentence(check: Mapping[str, Any]) -> str:
    """The outcome, the two sides, and the reasons of the first comparisons."""
    outcome = CHECKS.get(str(check.get("state")))
    if outcome is None:
        return "A check without an outcome: it was interrupted."
    found = check.get("comparisons")
    reasons = [
        f"{one.get('name')}: {one.get('reason')}"
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, Mapping)
    ]
    more = [f"{len(reasons) - 3} more"] if len(reasons) > 3 else []
    said = f"{outcome}: {check.get('head')} against {check.get('base')}."
    return f"{said} {'; '.join([*reasons[:3], *more])}." if reasons else said


def _sentence(name: str, base: str, found: Sequence[Pivot]) -> str:
    equal = [one.row for one in found if one.row.verdict == "equal"]
    mean = geometric_mean(equal)
    left_out = _left_out(found)
    if mean is None:
        return _alone(name, base, found[0])
    values = [row.ratio.value for row in equal if row.ratio]
    sure = [row for row in equal if row.ratio and row.ratio.differs]
    if len(equal) == 1 and equal[0].ratio:
        ratio = equal[0].ratio
        pooled = f", {ratio.sessions} sessions" if ratio.sessions > 1 else ""
        group = next(one.group for one in found if one.row is equal[0])
        how = _how(ratio, base, pooled)
        said = f"{name} is {how} in {group.title}{'' if ratio.differs else ': not told apart'}"
    else:
        ahead = mean.value >= 1
        side = [row for row in equal if row.ratio and (row.ratio.value > 1) == ahead]
        surely = sum(row in side for row in sure)
        value, low, high = interval_texts(mean.value, mean.low or math.nan, mean.high or math.nan)
        interval = f" [{low}, {high}]" if mean.low else ""
        said = (
            f"{name} is {'faster' if ahead else 'slower'} than {base} in {len(side)} of {len(equal)} workloads of "
            f"equal work, surely in {surely}; geometric mean {value}×{interval}, {_range(values)}"
        )
    return f"{said}. Not counted: {left_out}." if left_out else f"{said}."


def _alone(name: str, base: str, one: Pivot) -> str:
    """The only ratio of two arms whose work is not shown to be equal, and what the reader has to know of it."""
    ratio, audit = one.row.ratio, one.row.audit
    assert ratio is not None
    told = "" if ratio.differs else ": not told apart"
    where = "" if one.row.verdict == "different models" else f" in {one.group.title}"
    said = f"{name} runs {_how(ratio, base)}{where}{told}."
    if one.row.verdict == "not shown":
        first = f": {audit.unknown[0]}" if audit and audit.unknown else ""
        return f"{said} That their work is equal is not shown ?{first}."
    if one.row.verdict == "unequal":
        first = f": {audit.differences[0]}" if audit and audit.differences else ""
        return f"{said} Their work is unequal ≠{first}."
    sizes = [text for text in (_model_text(one.row), _model_text(one.base)) if text]
    beside = f"; {' against '.join(sizes)}" if len(sizes) == 2 else ""
    return f"{said} They are different models ◇{beside}."


def _model_text(row: Row | None) -> str:
    """`44.4 M parameters, 98.2 GFLOPs, box AP 37.4`, of what is known."""
    if row is None or row.parameters is None or row.forward_flops is None:
        return ""
    said = f"{significant(row.parameters / 1e6)} M parameters, {significant(row.forward_flops / 1e9)} GFLOPs"
    if any(warning.startswith(RANDOM_WEIGHTS) for warning in row.warnings):
        return f"{said}, {RANDOM_WEIGHTS}"
    aps = [f"{kind} AP {100 * ap:.1f}" for kind, ap in row.ap.items() if ap is not None]
    return ", ".join([said, *aps])


def _how(ratio: Ratio, base: str, more: str = "") -> str:
    """`1.9× as fast as torchvision (95 % CI 1.8–2.1)`, in the digits of the table."""
    value, low, high = interval_texts(ratio.value, ratio.low, ratio.high)
    interval = "no interval" if MISSING in (low, high) else f"95 % CI {low}–{high}"
    return f"{value}× as fast as {base} ({interval}{more})"


def _range(values: Sequence[float]) -> str:
    low, high = significant(min(values)), significant(max(values))
    return f"ratio {low}×" if low == high else f"range {low}–{high}×"


def _left_out(found: Iterable[Pivot]) -> str:
    """`4 unequal ≠, 2 not shown to be equal ?`."""
    verdicts = [one.row.verdict for one in found]
    told = (
        ("unequal", "unequal work ≠"),
        ("not shown", "not shown ?"),
        ("different models", "different models ◇"),
    )
    return ", ".join(f"{verdicts.count(name)} {words}" for name, words in told if name in verdicts)


# -- The pivot table -----------------------------------------------------------------------------------------

COLUMNS = (
    Column("workload"),
    Column("codebase"),
    Column("baseline s/iter", True, priority=2),
    Column("s/iter", True, priority=1),
    Column("ratio [95 % interval]", True),
    Column("memory ratio", True, optional=True, priority=3),
)


def pivot_table(run: RunReport, ends: int = ENDS) -> Table:
    """At most `ends` of the fastest and `ends` of the slowest rows, in the order of the plan when all fit."""
    found = pivots(run)
    shown, caption = found, ""
    if len(found) > 2 * ends:
        shown = sorted(found, key=lambda one: -(one.row.ratio.value if one.row.ratio else math.inf))
        shown = [*shown[:ends], *shown[-ends:]]
        caption = (
            f"The {ends} first and the {ends} last of {len(found)} rows by ratio; failed ones come first."
        )
    compared: dict[str, list[Row]] = {}
    for one in found:
        compared.setdefault(f"{one.name} / {one.base_name}", []).append(one.row)
    means = ((names, geometric_mean(rows)) for names, rows in compared.items())
    rows = [_cells(one) for one in shown]
    rows += [_mean_cells(names, mean) for names, mean in means if mean is not None and mean.count > 1][:ends]
    return Table(COLUMNS, tuple(rows), caption).compact()


def _mean_cells(names: str, mean: Mean) -> tuple[Cell, ...]:
    """The row of a geometric mean: of one arm against its baseline, as in the headline."""
    text = interval_text(mean.value, mean.low or math.nan, mean.high or math.nan)
    title = cell(f"geometric mean, {counted(mean.count, 'row')} of equal work", tone="strong")
    none = cell(None)
    return title, cell(names), none, none, cell(text, sort=mean.value, tone="strong"), none


def _cells(one: Pivot) -> tuple[Cell, ...]:
    row, base = one.row, one.base
    memory = one.memory_ratio
    return (
        cell(one.group.title),
        cell(f"{one.name} / {one.base_name}" if one.base_name else one.name),
        seconds_cell(base.step_s if base and base is not row else None),
        seconds_cell(row.step_s),
        ratio_cell(row.ratio, row.marks, one.group.no_ratio(row)),
        number(memory),
    )


def legend(rows: Iterable[Row]) -> str:
    """`Marks: ≠ unequal work.`, of the marks that these rows carry; empty where they have none."""
    used = {mark for row in rows for mark in row.marks}
    told = "; ".join(f"{mark} {words}" for mark, words in MARKS.items() if mark in used)
    return f"Marks: {told}." if told else ""


def table_blocks(run: RunReport, ends: int = ENDS) -> Iterator[Block]:
    """The pivot table, and what its marks mean."""
    if run.rows:
        yield pivot_table(run, ends)
    if marks := legend(run.rows):
        yield Text(f"{marks} Only equal work counts in a mean.")


def outcome_blocks(run: RunReport) -> Iterator[Block]:
    """What a terminal shows at the end of a run: the sentences last, where the eye is."""
    if run.rows:
        yield from table_blocks(run, TERMINAL_ENDS)
        yield Bullets(headline(run))
