"""`bench compare A B`: arms of two runs, or two arms, against each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError, did_you_mean
from bench.judge.audit import audit
from bench.judge.ratio import Ratio
from bench.recipe.schema import level_text
from bench.record.differences import differences, named
from bench.record.machine import fingerprint
from bench.record.models import ArmRecord
from bench.record.run import Run, resolve_run
from bench.report import text
from bench.report.answer import legend
from bench.report.build import run_report
from bench.report.document import Block, Bullets, Column, Text
from bench.report.measured import Measured, throughput_ratio
from bench.report.values import Group, Row, marks_of

#: Facts of a machine that change from minute to minute, and its name: they make no other machine.
PASSING = (
    "host",
    "load",
    "temperature",
    "available",
    "used",
    "power_w",
    "utilization",
    "throttle",
    "process",
    "clock_mhz",
)


@dataclass(frozen=True)
class Side:
    """What stands on one side: a run, or one arm of it."""

    run: Run
    arm: str | None = None

    @property
    def name(self) -> str:
        return f"{self.run.folder.name}:{self.arm}" if self.arm else self.run.folder.name


@dataclass(frozen=True)
class Compared:
    """One pair of arms. ``ratio``: images/s of b over those of a; above 1, b is faster."""

    workload: str
    name: str
    a: Row
    b: Row
    ratio: Ratio | None
    interleaved: bool
    differences: tuple[str, ...] = ()
    """In what the work of the two differs, beyond what they were chosen for."""


@dataclass(frozen=True)
class SideBySide:
    a: str
    b: str
    rows: tuple[Compared, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    same_kind: bool
    """Whether the two machines are of one kind (`bench.record.machine.fingerprint`)."""
    machine: tuple[str, ...]
    """What differs between the two machines."""
    software: tuple[str, ...]
    """What differs between the environments of compared arms."""


def resolve_side(text: str, root: Path) -> Side:
    """`RUN` or `RUN:ARM`, the run by folder, id or `latest` (`bench.record.run.resolve_run`).

    Args:
        text: ARM is the id of an arm, or words that only one arm has: `mmdet,train,ema=off`.
        root: Folder of the runs.

    Raises:
        BenchError: No run or arm fits, or several.
    """
    name, colon, arm = text.rpartition(":")
    if not colon or (Path(text) / "run.json").exists():
        return Side(Run(resolve_run(text, root)))
    run = Run(resolve_run(name, root))
    records = run.arms()
    known = [record.id for record in records]
    if arm in known:
        return Side(run, arm)
    fitting = [record.id for record in records if all(_has(record, word) for word in arm.split(","))]
    if len(fitting) == 1:
        return Side(run, fitting[0])
    if fitting:
        raise BenchError(f"several arms fit '{arm}': {', '.join(fitting)}", hint="add a word: ema=off")
    raise BenchError(f"unknown arm '{arm}' in run {run.folder.name}", hint=did_you_mean(arm, known))


def _has(arm: ArmRecord, word: str) -> bool:
    """Whether an arm has a level (`ema=off`), or is of a codebase, a label, a task or a model."""
    name, equals, level = word.strip().partition("=")
    if not equals:
        return name in (arm.codebase, arm.label, arm.workload.task, arm.workload.model)
    levels = {**arm.workload.model_dump(), **arm.levels}
    return name in levels and level_text(levels[name]) == level


def comparison_table(a: Side, b: Side) -> SideBySide:
    """Compare b with a, which is the baseline.

    Two runs: arms of the same label, codebase, levels and options are compared. A run and an arm: the arm with its
    like. Two arms: those two, whatever they are. Only arms of one cell of one run were interleaved; any other ratio
    contains what the machine did in between, and says so. Raises BenchError when nothing can be compared.
    """
    arms_a, arms_b = _arms(a), _arms(b)
    if a.arm and b.arm:
        pairs = [(arms_a[0], arms_b[0])]
    else:
        like = {_identity(arm): arm for arm in arms_b}
        pairs = [(arm, like[_identity(arm)]) for arm in arms_a if _identity(arm) in like]
    if not pairs:
        raise BenchError(
            f"{a.name} and {b.name} have no arm in common",
            hint="name one arm of each: bench compare RUN:ARM RUN:ARM (bench list runs)",
        )
    rows_a, rows_b = (
        {row.arm: (group, row) for group, row in run_report(side.run).placed} for side in (a, b)
    )
    same_run = a.run.folder.resolve() == b.run.folder.resolve()
    compared = [
        _compared((a, arm_a, *rows_a[arm_a.id]), (b, arm_b, *rows_b[arm_b.id]), same_run=same_run)
        for arm_a, arm_b in pairs
    ]
    machine_a, machine_b = a.run.record().machine, b.run.record().machine
    used_a, used_b = {x.id for x, _ in pairs}, {y.id for _, y in pairs}
    return SideBySide(
        a=a.name,
        b=b.name,
        rows=tuple(compared),
        only_a=tuple(_only(arm, arms_b) for arm in arms_a if arm.id not in used_a),
        only_b=tuple(_only(arm, arms_a) for arm in arms_b if arm.id not in used_b),
        same_kind=fingerprint(machine_a) == fingerprint(machine_b),
        machine=tuple(
            one
            for one in differences(machine_a, machine_b)
            if not any(word in one.partition(":")[0].lower() for word in PASSING)
        ),
        software=tuple(
            dict.fromkeys(text for x, y in pairs if x.codebase == y.codebase for text in _software(x, y))
        ),
    )


_Found = tuple[Side, ArmRecord, Group, Row]


def _compared(a: _Found, b: _Found, *, same_run: bool) -> Compared:
    (side_a, arm_a, group_a, row_a), (side_b, arm_b, group_b, row_b) = a, b
    images = arm_b.workload.images_per_step / arm_a.workload.images_per_step
    ratio = None
    if row_a.step_s is not None and row_b.step_s is not None:
        theirs, own = Measured(side_a.run.columns(arm_a.id)), Measured(side_b.run.columns(arm_b.id))
        ratio = throughput_ratio(own, theirs, images)
    interleaved = same_run and arm_a.cell == arm_b.cell
    described = arm_a.description and arm_b.description
    row = replace(row_b, audit=audit(arm_b, arm_a) if described else None, ratio=ratio, is_baseline=False)
    names = [group_a.row_name(row_a), group_b.row_name(row_b)]
    return Compared(
        workload=group_b.title,
        name=names[1] if names[0] == names[1] else f"{names[1]} over {names[0]}",
        a=row_a,
        b=replace(row, marks=marks_of(row, row_a, interleaved=interleaved)),
        ratio=ratio,
        interleaved=interleaved,
        differences=tuple(differences(arm_a.workload.model_dump(), arm_b.workload.model_dump())),
    )


def _only(arm: ArmRecord, others: Sequence[ArmRecord]) -> str:
    """An arm without its like on the other side, and in what the nearest one differs."""
    near = next((one for one in others if (one.codebase, one.label) == (arm.codebase, arm.label)), None)
    near = next((one for one in others if one.id == arm.id), near)
    if near is None:
        return f"{arm.id} (the other side has no such codebase)"
    facts = ({**one.levels, "options": one.options, **_work(one)} for one in (arm, near))
    return f"{arm.id} (the nearest, {near.id}, differs: {'; '.join(differences(*facts)) or 'in its label'})"


def _work(arm: ArmRecord) -> dict[str, Any]:
    return {"task": arm.workload.task, "model": arm.workload.model}


def _arms(side: Side) -> list[ArmRecord]:
    return [arm for arm in side.run.arms() if side.arm in (None, arm.id)]


def _identity(arm: ArmRecord) -> str:
    return repr(
        (arm.codebase, arm.label, _work(arm), sorted(arm.levels.items()), sorted(arm.options.items()))
    )


def _software(a: ArmRecord, b: ArmRecord) -> Iterator[str]:
    one, two = (
        arm.environment.model_dump(include={"python", "packages", "git", "variables"}) for arm in (a, b)
    )
    yield from (f"{a.codebase}, {text}" for text in differences(one, two))


# -- As blocks, for the terminal, markdown or a page -------------------------------------------------------------


def comparison_blocks(comparison: SideBySide) -> Iterator[Block]:
    """A table per workload, and below them what a reader of the ratios has to know."""
    yield Text(f"A: {comparison.a}. B: {comparison.b}. Ratios are of throughput: above 1, B is faster.")
    for workload in dict.fromkeys(pair.workload for pair in comparison.rows):
        pairs = [pair for pair in comparison.rows if pair.workload == workload]
        yield text.table_of(pairs, COLUMNS, caption=workload).compact()
    notes = tuple(_notes(comparison))
    if notes:
        yield Bullets(notes)


def _design(pair: Compared) -> str | None:
    return text.design_text(pair.ratio.launches, pair.ratio.rounds) if pair.ratio else None


def _status(pair: Compared) -> str:
    texts = [
        f"{side} {row.status}{': ' + row.reason if row.reason else ''}"
        for side, row in (("A", pair.a), ("B", pair.b))
        if row.status != "ok"
    ]
    return "; ".join(texts)


COLUMNS: dict[Column, Callable[[Compared], Any]] = {
    Column("codebase"): lambda pair: pair.name,
    Column("A: s/iter", True): lambda pair: text.seconds_cell(pair.a.step_s),
    Column("B: s/iter", True): lambda pair: text.seconds_cell(pair.b.step_s),
    Column("B ÷ A [95 % interval]", True): lambda pair: text.ratio_cell(pair.ratio, pair.b.marks),
    Column("detectable effect (%)", True, True, priority=3): lambda pair: text.detectable_cell(pair.ratio),
    Column("launches × rounds", True, priority=2): _design,
    Column("interleaved", priority=1): lambda pair: text.yes_no(pair.interleaved),
    Column("status", optional=True): _status,
}


def _notes(comparison: SideBySide) -> Iterator[str]:
    if marks := legend(pair.b for pair in comparison.rows):
        yield marks
    if not all(pair.interleaved for pair in comparison.rows):
        yield text.NOT_INTERLEAVED
    if not comparison.same_kind:
        yield "The machines are of different kinds: the ratios do not speak of the codebases alone."
    if comparison.machine:
        yield f"The machines differ: {'; '.join(comparison.machine)}."
    if comparison.software:
        yield f"Software differs: {named(comparison.software, 12)}."
    for pair in comparison.rows:
        if pair.differences:
            yield f"{pair.workload}, {pair.name}: the work differs: {'; '.join(pair.differences)}."
    for side, arms in (("A", comparison.only_a), ("B", comparison.only_b)):
        if arms:
            yield f"Only in {side}: {'; '.join(arms)}."
