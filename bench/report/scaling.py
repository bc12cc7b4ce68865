"""How codebases use several ranks: what of their throughput scales, and which rank the others wait for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from bench.judge.numbers import interval_text
from bench.judge.ratio import Ratio
from bench.record.models import ArmRecord, RunRecord
from bench.report.document import Block, Cell, Column, Table, Text
from bench.report.measured import Measured
from bench.report.text import NOT_INTERLEAVED, cell, number, percent, table_of, yes_no
from bench.report.values import RunReport, Straggler

#: Factors that change the number of ranks, or where they are.
FACTORS = ("ranks", "devices", "nodes")


def on_one_kind(record: RunRecord, one: ArmRecord, other: ArmRecord) -> bool:
    """Whether two arms were measured on machines of one kind: a ratio across kinds would be of the machines."""
    kinds = {record.cells[arm.cell].fingerprint for arm in (one, other) if arm.cell in record.cells}
    return len(kinds) <= 1


def medians_of(arm: ArmRecord) -> dict[str, float]:
    """Median seconds of each phase of a step."""
    return {name: median(values) for name, values in arm.phases.items() if values}


def stragglers(
    samples: Mapping[str, Measured], arms: Sequence[ArmRecord], names: Mapping[str, str]
) -> Iterator[Straggler]:
    """The slowest and the fastest rank of every arm with several.

    Args:
        samples: Arm id → samples.
        arms: Records of the arms.
        names: Arm id → how the report calls it.
    """
    for arm in arms:
        measured = samples[arm.id]
        if arm.workload.ranks < 2 or measured.problem:
            continue
        import pandas as pd

        steps = pd.DataFrame(measured.samples).query("round >= 0")
        if steps["rank"].nunique() < 2:
            continue
        medians = steps.groupby("rank")["duration_ns"].median() / 1e9
        wide = steps.pivot_table(index=["launch", "round", "step"], columns="rank", values="duration_ns")
        averaging_s = median(arm.averaging) if arm.averaging else None
        parameters = arm.description.get("trainable_parameters")
        slowest = int(medians.index[int(medians.to_numpy().argmax())])
        yield Straggler(
            label=names.get(arm.id, arm.label),
            ranks=len(medians),
            fastest_s=float(medians.min()),
            slowest_s=float(medians.max()),
            slowest=slowest,
            share=float((wide.idxmax(axis=1) == slowest).mean()),
            averaging_share=None if averaging_s is None else averaging_s / sum(medians_of(arm).values()),
            averaged_bytes=None if averaging_s is None or parameters is None else 4 * parameters,
        )


def scaling_table(run: RunReport) -> Table:
    """Efficiency of every step from fewer ranks to more."""
    return table_of(
        run.scaling,
        {
            Column("workload"): lambda one: one.group,
            Column("codebase"): lambda one: one.label,
            Column("scaling"): lambda one: one.kind,
            Column("ranks", True): lambda one: cell(one.ranks, sort=one.ranks),
            Column("images/s", True): lambda one: number(one.images_per_s),
            Column("scaling efficiency (%) [95 % interval]", True): lambda one: _percent_of(one.efficiency),
            Column("against ranks", True): lambda one: cell(one.reference_ranks, sort=one.reference_ranks),
            Column("interleaved"): lambda one: yes_no(one.interleaved),
        },
    )


def _percent_of(found: Ratio) -> Cell:
    return cell(interval_text(100 * found.value, 100 * found.low, 100 * found.high), sort=found.value)


def straggler_table(run: RunReport) -> Table:
    """Time per rank of every arm with several."""
    return table_of(
        run.stragglers,
        {
            Column("arm"): lambda one: one.label,
            Column("ranks", True): lambda one: cell(one.ranks, sort=one.ranks),
            Column("fastest rank, s/iter", True): lambda one: number(one.fastest_s),
            Column("slowest rank, s/iter", True): lambda one: number(one.slowest_s),
            Column("slowest / fastest", True): lambda one: number(one.slowest_s / one.fastest_s),
            Column("slowest rank", True): lambda one: cell(one.slowest, sort=one.slowest),
            Column("steps in which it is (%)", True): lambda one: cell(
                f"{100 * one.share:.0f}", sort=one.share
            ),
            Column("averaging gradients (% of step)", True): lambda one: percent(one.averaging_share),
            Column("MiB averaged per step", True): lambda one: number(
                None if one.averaged_bytes is None else one.averaged_bytes / 2**20
            ),
        },
    )


def scaling_blocks(run: RunReport) -> Iterator[Block]:
    """What the report says of several ranks."""
    if run.scaling:
        yield Text(
            "Efficiency: images/s per rank over images/s per rank of the fewest ranks. Weak: every rank has the same "
            "batch size. Strong: all ranks together do."
        )
        yield scaling_table(run)
        if not all(item.interleaved for item in run.scaling):
            yield Text(NOT_INTERLEAVED)
    if run.stragglers:
        yield Text("Time per rank: medians over all measured steps. Ranks wait for each other in every step.")
        yield straggler_table(run)
