"""The accuracy sections of a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bench.judge.accuracy import METRICS
from bench.judge.difference import Difference
from bench.recipe.models import MODELS
from bench.record.parts import PHASES
from bench.report.accuracy_errors import breakdown_blocks
from bench.report.accuracy_values import PARTED, TITLES, CellAccuracy
from bench.report.document import Block, Bullets, Cell, Column, Figure, Heading, Table, Text
from bench.report.text import PHASE_TITLES, cell, counted, number, percent
from bench.report.values import RunReport

# -- Tables --------------------------------------------------------------------------------------------------


def accuracy_blocks(run: RunReport, drawn: Sequence[Figure]) -> list[Block]:
    """The section on accuracy; nothing for a run without evaluations."""
    if not run.accuracy:
        return []
    blocks: list[Block] = [Bullets(HOW_TO_READ), *drawn]
    for one in run.accuracy:
        blocks.append(Heading(3, f"Accuracy: {title_of(run, one)}"))
        blocks.append(
            Text(
                f"Evaluated on {counted(one.images, 'image')} of the split {one.split} (checksum {one.checksum[:12]}), "
                f"{one.images_without_objects} of them without objects, with {counted(one.objects, 'object')}."
            )
        )
        blocks.append(_table(one))
        differences = (found for arm in one.arms for found in arm.differences.values())
        blocks += [Text(f"{text}.") for text in dict.fromkeys(found.warning for found in differences) if text]
        blocks.append(_metrics_table(one))
        blocks += breakdown_blocks([(arm.name, arm.breakdown) for arm in one.arms])
        if one.partings:
            blocks.append(
                Text(f"Losses part in the first step in which they differ by more than {100 * PARTED:g} %:")
            )
            blocks.append(Bullets(tuple(_parting_text(one))))
    return blocks


HOW_TO_READ = (
    "AP: COCO's, in per cent, from the detections that each codebase wrote, by one evaluator for all; of models that "
    "keep an EMA, of the averaged weights.",
    "Difference: AP minus that of the baseline's codebase at the same levels, with a 95 % bootstrap interval over the "
    "images, the same images for both; bold where it excludes 0. It says how sure this difference of two trained "
    "models is on other images, not how much another seed would change it.",
    "Time to AP: seconds of training, as timed step by step, until the first evaluation that reached the AP which "
    "every arm ended with or passed.",
    "FPS: the images evaluated over the seconds of data, network and post-processing, one image at a time, once.",
)


def title_of(run: RunReport, one: CellAccuracy) -> str:
    group = next((group for group in run.groups if group.cell == one.cell), None)
    return group.title if group else MODELS[one.model].title if one.model in MODELS else one.model


def _table(one: CellAccuracy) -> Table:
    kinds = [kind for kind in TITLES if any(kind in arm.metrics for arm in one.arms)]
    trained = any(arm.losses for arm in one.arms)
    target = f" (AP {percent(one.target_ap).text})" if one.target_ap is not None else ""
    columns = [Column("codebase")]
    for kind in kinds:
        columns += [
            Column(TITLES[kind], True),
            Column(f"{TITLES[kind]}: difference [95 % interval]", True, True),
        ]
    columns += [
        Column("steps", True, optional=True),
        Column("training (s)", True, optional=True),
        Column(f"time to AP{target} (s)", True, optional=True),
        Column("FPS", True, optional=True),
        *(
            Column(f"{PHASE_TITLES.get(name, name)} (s/image)", True, optional=True)
            for name in PHASES["infer"]
        ),
        Column("detections", True),
    ]
    rows = []
    for arm in one.arms:
        last = arm.evaluations[-1]
        cells = [cell(arm.name)]
        for kind in kinds:
            ap = arm.metrics.get(kind, {}).get("AP")
            cells += [percent(ap), _difference_cell(arm.differences.get(kind))]
        cells += [
            cell(last.step, sort=last.step),
            number(last.train_s),
            number(arm.reached_s if trained else None),
            number(arm.fps),
            *(number(arm.phase_s.get(name)) for name in PHASES["infer"]),
            cell(arm.detections, sort=arm.detections),
        ]
        rows.append(tuple(cells))
    return Table(tuple(columns), tuple(rows)).compact()


def _difference_cell(found: Difference | None) -> Cell:
    """In per cent of AP, with its sign; bold where the interval excludes 0."""
    if found is None:
        return cell(None)
    value, low, high = (f"{100 * number:+.1f}" for number in (found.value, found.low, found.high))
    return cell(f"{value} [{low}, {high}]", sort=found.value, tone="strong" if found.excludes_zero else "")


def _metrics_table(one: CellAccuracy) -> Table:
    """All 12 numbers, a row per arm and IoU type."""
    columns = (Column("codebase"), Column("of"), *(Column(name, True) for name in METRICS))
    rows = tuple(
        (
            cell(arm.name),
            cell({"bbox": "boxes", "segm": "masks"}[kind]),
            *(percent(values[name]) for name in METRICS),
        )
        for arm in one.arms
        for kind, values in arm.metrics.items()
    )
    return Table(columns, rows, caption="The 12 numbers of COCO, in per cent, of the last evaluation")


def _parting_text(one: CellAccuracy) -> Iterator[str]:
    deterministic = one.model in MODELS and MODELS[one.model].deterministic
    for parting in one.partings:
        where = f"step {parting.step}" if parting.step else f"none of {counted(parting.steps, 'step')}"
        yield f"{parting.a} and {parting.b}: {where}."
    if not deterministic:
        yield "This model samples at random, so its losses part at once even where all else is equal."
