"""Where AP is lost: by class, and by kind of error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.judge.accuracy import ERRORS, Errors, evaluate
from bench.judge.results import IouType
from bench.report.document import Block, Column, Table
from bench.report.text import cell, percent

#: Tables show so many classes, those with the most objects; the report's JSON holds all.
SHOWN_CLASSES = 20
_THINGS: dict[IouType, str] = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}


@dataclass(frozen=True)
class Breakdown:
    """Of one evaluation. classes: AP of each, in the order of their ids. objects: to find, of each."""

    classes: Mapping[str, float | None]
    objects: Mapping[str, int]
    errors: Errors


def break_down(truth: Path, predictions: Path, kinds: Iterable[IouType]) -> dict[IouType, Breakdown]:
    """Of the detections of one evaluation; nothing where the files are gone or damaged."""
    found: dict[IouType, Breakdown] = {}
    for kind in kinds:
        try:
            evaluation = evaluate(truth, predictions, kind, errors=True)
        except BenchError:
            return {}
        if evaluation.errors is not None:
            found[kind] = Breakdown(
                {one.name: one.metrics["AP"] for one in evaluation.classes},
                {one.name: one.objects for one in evaluation.classes},
                evaluation.errors,
            )
    return found


def breakdown_blocks(arms: Sequence[tuple[str, Mapping[IouType, Breakdown]]]) -> list[Block]:
    """Tables of AP by class and of what errors cost.

    Args:
        arms: Name and breakdown of each.
    """
    blocks: list[Block] = []
    for kind in dict.fromkeys(kind for _, breakdown in arms for kind in breakdown):
        having = [(name, breakdown[kind]) for name, breakdown in arms if kind in breakdown]
        blocks += [_errors_table(kind, having), _classes_table(kind, having)]
    return blocks


def _errors_table(kind: IouType, arms: Sequence[tuple[str, Breakdown]]) -> Table:
    columns = (Column("codebase"), Column("AP50", True), *(Column(text, True) for text in ERRORS.values()))
    rows = tuple(
        (cell(name), percent(one.errors.ap50), *(percent(one.errors.cost[error]) for error in ERRORS))
        for name, one in arms
    )
    return Table(
        columns, rows, caption=f"What each kind of error costs in AP50 of {_THINGS[kind]}, in per cent (TIDE)"
    )


def _classes_table(kind: IouType, arms: Sequence[tuple[str, Breakdown]]) -> Table:
    objects = arms[0][1].objects
    classes = [name for name in objects if objects[name]]
    shown = sorted(classes, key=lambda name: -objects[name])[:SHOWN_CLASSES]
    columns = (Column("class"), Column("objects", True), *(Column(name, True) for name, _ in arms))
    rows = tuple(
        (
            cell(name),
            cell(str(objects[name]), sort=objects[name]),
            *(percent(one.classes.get(name)) for _, one in arms),
        )
        for name in shown
    )
    which = (
        ""
        if len(shown) == len(classes)
        else f", the {len(shown)} classes of {len(classes)} with the most objects"
    )
    return Table(columns, rows, caption=f"AP of {_THINGS[kind]} by class, in per cent{which}")
