"""Records → accuracy: AP by step and by time, when losses part, differences of AP with their intervals.

The numbers were computed by `bench.judge.accuracy` when the run was measured; what is new here is the comparison.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from bench.judge.difference import Difference, Resampled, interval, match, paired_difference, resampled
from bench.judge.pairs import counterpart_of
from bench.judge.results import IouType
from bench.record.models import ArmRecord
from bench.record.run import Run
from bench.report.accuracy_errors import Breakdown, break_down

#: Two losses part where they differ by more than this share of the larger one.
PARTED = 1e-3
TITLES: dict[IouType, str] = {"bbox": "box AP", "segm": "mask AP"}


@dataclass(frozen=True)
class Evaluated:
    """One evaluation. step: None of task eval. train_s: seconds of all training steps up to there. ap: by IoU type,
    0..1, None where there is nothing to find."""

    step: int | None
    train_s: float | None
    ap: Mapping[IouType, float | None]


@dataclass(frozen=True)
class ArmAccuracy:
    """One arm.

    metrics: the 12 numbers of the last evaluation by IoU type. fps: images/s of it, data, network and post-processing;
    phase_s: seconds of each per image. reached_s: seconds of training until the AP that all arms of the cell reached,
    None where it was never evaluated. differences: AP minus that of ``reference``, at the last step of both. interval:
    of the last AP over images; None, as the breakdown, where the detections are no longer there. losses: the total of
    each step.
    """

    arm: str
    codebase: str
    label: str
    name: str
    ema: bool
    evaluations: tuple[Evaluated, ...]
    metrics: Mapping[IouType, Mapping[str, float | None]]
    detections: int
    fps: float | None
    phase_s: Mapping[str, float]
    breakdown: Mapping[IouType, Breakdown] = field(default_factory=dict)
    reached_s: float | None = None
    reference: str | None = None
    differences: Mapping[IouType, Difference] = field(default_factory=dict)
    interval: Difference | None = None
    losses: tuple[float, ...] = field(default=(), metadata={"json": False})  # the journal holds them

    @property
    def headline(self) -> IouType:
        """Masks where there are any."""
        return "segm" if "segm" in self.metrics else "bbox"

    @property
    def ap(self) -> float | None:
        return self.metrics[self.headline]["AP"]


@dataclass(frozen=True)
class Parting:
    """The first step (from 1) in which two losses differ by more than `PARTED`; None: they never do in ``steps``."""

    a: str
    b: str
    step: int | None
    steps: int


@dataclass(frozen=True)
class CellAccuracy:
    """The arms of one cell that were evaluated, all on the same images."""

    cell: str
    model: str
    split: str
    checksum: str
    images: int
    images_without_objects: int
    objects: int
    target_ap: float | None
    """The AP that all arms reached, for time-to-AP: the lowest of their last ones."""
    arms: tuple[ArmAccuracy, ...]
    partings: tuple[Parting, ...]


def of_run(
    run: Run, arms: Sequence[ArmRecord], names: Mapping[str, str], baseline: Mapping[str, Any]
) -> tuple[CellAccuracy, ...]:
    """Accuracy of every cell that was evaluated. ``names``: what reports call an arm."""
    evaluated = [arm for arm in arms if arm.evaluations and arm.evaluated]
    cells = dict.fromkeys(arm.cell for arm in evaluated)
    return tuple(
        _cell(run, cell, [arm for arm in evaluated if arm.cell == cell], names, baseline) for cell in cells
    )


def _cell(
    run: Run, cell: str, arms: Sequence[ArmRecord], names: Mapping[str, str], baseline: Mapping[str, Any]
) -> CellAccuracy:
    made = [_arm(run, arm, names[arm.id]) for arm in arms]
    last = [one.ap for one in made]
    target = min((ap for ap in last if ap is not None), default=None)
    target = target if target and None not in last else None
    references = [counterpart_of(arm, arms, baseline) for arm in arms]
    drawn = _drawn(run)
    final = []
    for arm, one, reference in zip(arms, made, references, strict=True):
        differences = _differences(drawn, arm, reference) if reference and reference is not arm else {}
        own = drawn(arm, -1, one.headline)
        reached = (seen.train_s for seen in one.evaluations if (seen.ap[one.headline] or 0) >= (target or 0))
        final.append(
            replace(
                one,
                reached_s=None if target is None else next(reached, None),
                reference=names[reference.id] if differences and reference else None,
                differences=differences,
                interval=interval(own) if own else None,
            )
        )
    truth, boxes = arms[0].evaluated, arms[0].evaluations[-1].bbox
    assert truth is not None
    return CellAccuracy(
        cell=cell,
        model=arms[0].workload.model,
        split=truth.split,
        checksum=truth.checksum,
        images=len(truth.image_ids),
        images_without_objects=boxes.images_without_objects if boxes else 0,
        objects=boxes.objects if boxes else 0,
        target_ap=target,
        arms=tuple(final),
        partings=tuple(_partings(made)),
    )


def _arm(run: Run, arm: ArmRecord, name: str) -> ArmAccuracy:
    assert arm.evaluated is not None
    last = arm.evaluations[-1].kinds()
    truth, predictions = run.folder / arm.evaluated.ground_truth, arm.evaluations[-1].predictions
    images, phases = predictions.images, predictions.phases
    return ArmAccuracy(
        arm=arm.id,
        codebase=arm.codebase,
        label=arm.label,
        name=name,
        ema=arm.workload.ema,
        evaluations=tuple(
            Evaluated(
                one.step, one.train_s, {kind: found.metrics["AP"] for kind, found in one.kinds().items()}
            )
            for one in arm.evaluations
        ),
        metrics={kind: found.metrics for kind, found in last.items()},
        detections=predictions.detections,
        fps=images / sum(phases.values()) if sum(phases.values()) else None,
        phase_s={phase: seconds / images for phase, seconds in phases.items()},
        breakdown=break_down(truth, run.folder / predictions.path, last),
        losses=tuple(run.loss_curve(arm.id).get("loss", ())),
    )


Draws = Callable[[ArmRecord, int, IouType], Resampled | None]
"""Of an arm, the place of an evaluation and an IoU type; None where its files are gone."""


def _drawn(run: Run) -> Draws:
    """Reads and resamples the detections of each evaluation once."""

    @cache
    def of(truth: Path, predictions: Path, kind: IouType) -> Resampled | None:
        there = truth.exists() and predictions.exists()
        return resampled(match(truth, predictions, kind)) if there else None

    def drawn(arm: ArmRecord, at: int, kind: IouType) -> Resampled | None:
        predictions = run.folder / arm.evaluations[at].predictions.path
        return of(run.folder / arm.evaluated.ground_truth, predictions, kind) if arm.evaluated else None

    return drawn


def _differences(drawn: Draws, arm: ArmRecord, reference: ArmRecord) -> dict[IouType, Difference]:
    """At the last step that both evaluated."""
    steps = [one.step for one in reference.evaluations]
    common = [at for at, one in enumerate(arm.evaluations) if one.step in steps]
    if not common or arm.evaluated != reference.evaluated:
        return {}
    mine, other = common[-1], steps.index(arm.evaluations[common[-1]].step)
    found: dict[IouType, Difference] = {}
    for kind in (one for one in arm.evaluations[mine].kinds() if one in reference.evaluations[other].kinds()):
        sides = drawn(arm, mine, kind), drawn(reference, other, kind)
        if sides[0] and sides[1]:
            found[kind] = paired_difference(sides[0], sides[1])
    return found


def _partings(arms: Sequence[ArmAccuracy]) -> Iterator[Parting]:
    """Of every two codebases; with and without EMA a codebase trains alike, so one of the two is enough."""
    chosen = {one.label: one for one in reversed(arms) if one.losses}
    for a, b in itertools.combinations([one for one in arms if chosen.get(one.label) is one], 2):
        pairs = list(zip(a.losses, b.losses, strict=False))
        parted = (at for at, pair in enumerate(pairs, 1) if not math.isclose(*pair, rel_tol=PARTED))
        step = next(parted, None)
        yield Parting(a.name, b.name, step, len(pairs))
