"""What a factor does within a codebase: its cost, and for factors of ranks the scaling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.judge.ratio import cost as cost_of
from bench.record.models import ArmRecord, RunRecord
from bench.report.measured import Measured, throughput_ratio
from bench.report.scaling import FACTORS, on_one_kind
from bench.report.values import Effect, Group, Row, Scaling


def _factor_pairs(
    arms: Sequence[ArmRecord], baseline: Mapping[str, Any]
) -> Iterator[tuple[str, ArmRecord, ArmRecord]]:
    """(factor, reference arm, arm) of one codebase that differ in this factor only.

    The reference is the level named by the baseline, else off, else the first in the plan.
    """
    factors = dict.fromkeys(name for arm in arms for name in arm.levels if name not in ("model", "task"))
    for factor in factors:
        alike: dict[str, list[ArmRecord]] = {}
        for arm in arms:
            if factor in arm.levels:
                options = {k: v for k, v in arm.options.items() if factor != f"options.{k}"}
                others = sorted((k, repr(v)) for k, v in arm.levels.items() if k != factor)
                alike.setdefault(repr((arm.codebase, arm.label, sorted(options.items()), others)), []).append(
                    arm
                )
        for members in alike.values():
            wanted = [baseline.get(factor), False] if factor in baseline else [False]
            reference = next(
                (arm for level in wanted for arm in members if repr(arm.levels[factor]) == repr(level)),
                members[0],
            )
            yield from ((factor, reference, arm) for arm in members if arm is not reference)


def effects_and_scaling(
    samples: Mapping[str, Measured],
    record: RunRecord,
    arms: Sequence[ArmRecord],
    rows: Mapping[str, Row],
    confidence: float,
) -> tuple[tuple[Effect, ...], tuple[Scaling, ...]]:
    """Of every two arms of a codebase that differ in one factor.

    Args:
        samples: Arm id → samples.
        record: Of the run.
        arms: Records of the arms.
        rows: Arm id → row.
        confidence: Of the intervals.
    """
    effects: list[Effect] = []
    scaling: list[Scaling] = []
    for factor, reference, arm in _factor_pairs(arms, record.baseline):
        row, base = rows[arm.id], rows[reference.id]
        if row.step_s is None or base.step_s is None or not on_one_kind(record, arm, reference):
            continue
        scales = factor in FACTORS
        images = row.images_per_step / base.images_per_step
        ranks, base_ranks = arm.workload.ranks, reference.workload.ranks
        per_rank = images * base_ranks / ranks if scales else images
        ratio = throughput_ratio(samples[arm.id], samples[reference.id], per_rank, confidence)
        if ratio is None:
            continue
        where, together = _where(arm, factor), arm.cell == reference.cell
        level, base_level = arm.levels[factor], reference.levels[factor]
        if scales:
            kind, rate = "strong" if images == 1 else "weak", row.step_s.images_per_s
            scaling.append(Scaling(arm.label, where, base_ranks, ranks, rate, ratio, together, kind))
        else:
            cost = cost_of(ratio) if images == 1 else None
            effects.append(Effect(arm.label, where, factor, base_level, level, ratio, cost, together))
    return tuple(effects), tuple(scaling)


def _where(arm: ArmRecord, factor: str) -> str:
    """The group an effect belongs to, in words."""
    levels = {name: level for name, level in arm.levels.items() if name not in ("task", "model", factor)}
    task, model = arm.workload.task, arm.workload.model
    return Group(arm.cell, task, model, levels, (), (), None).title
