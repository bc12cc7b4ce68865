"""How codebases use several ranks: what of their throughput scales, and which rank the others wait for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bench.record.models import ArmRecord, RunRecord
from bench.report.document import Block, Column, Table, Text
from bench.report.measured import Measured
from bench.report.text import NOT_INTERLEAVED, cell, interval_text, significant
from bench.report.values import RunReport, Straggler

#: Factors that change the number of ranks, or where they are.
FACTORS = ("ranks", "devices", "nodes")


def on_one_kind(record: RunRecord, one: ArmRecord, other: ArmRecord) -> bool:
    """Whether two arms were measured on machines of one kind: a ratio across kinds would be of the machines."""
    kinds = {record.cells[arm.cell].fingerprint for arm in (one, other) if arm.cell in record.cells}
    return len(kinds) <= 1


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
        steps = measured.samples[measured.samples["round"] >= 0]
        if steps["rank"].nunique() < 2:
            continue
        medians = steps.groupby("rank")["duration_ns"].median() / 1e9
        wide = steps.pivot_table(index=["launch", "round", "step"], columns="rank", values="duration_ns")
        slowest = int(medians.index[int(medians.to_numpy().argmax())])
        yield Straggler(
            label=names.get(arm.id, arm.label),
            ranks=len(medians),
            fastest_s=float(medians.min()),
            slowest_s=float(medians.max()),
            slowest=slowest,
            share=float((wide.idxmax(axis=1) == slowest).mean()),
        )


def scaling_table(run: RunReport) -> Table:
    """Efficiency of every step from fewer ranks to more."""
    columns = (
        Column("workload"),
        Column("codebase"),
        Column("scaling"),
        Column("ranks", True),
        Column("images/s", True),
        Column("scaling efficiency (%) [95 % interval]", True),
        Column("against ranks", True),
        Column("interleaved"),
    )
    rows = []
    for item in run.scaling:
        value = item.efficiency
        rows.append(
            (
                cell(item.group),
                cell(item.label),
                cell(item.kind),
                cell(item.ranks, sort=item.ranks),
                cell(significant(item.images_per_s), sort=item.images_per_s),
                cell(interval_text(100 * value.value, 100 * value.low, 100 * value.high), sort=value.value),
                cell(item.reference_ranks, sort=item.reference_ranks),
                cell("yes" if item.interleaved else "no"),
            )
        )
    return Table(columns, tuple(rows))


def straggler_table(run: RunReport) -> Table:
    """Time per rank of every arm with several."""
    columns = (
        Column("arm"),
        Column("ranks", True),
        Column("fastest rank, s/iter", True),
        Column("slowest rank, s/iter", True),
        Column("slowest / fastest", True),
        Column("slowest rank", True),
        Column("steps in which it is (%)", True),
    )
    rows = tuple(
        (
            cell(item.label),
            cell(item.ranks, sort=item.ranks),
            cell(significant(item.fastest_s), sort=item.fastest_s),
            cell(significant(item.slowest_s), sort=item.slowest_s),
            cell(significant(item.slowest_s / item.fastest_s), sort=item.slowest_s / item.fastest_s),
            cell(item.slowest, sort=item.slowest),
            cell(f"{100 * item.share:.0f}", sort=item.share),
        )
        for item in run.stragglers
    )
    return Table(columns, rows)


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
