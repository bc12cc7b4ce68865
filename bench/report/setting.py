"""What the arms of a run were seen to do: weights, types of numbers, threads, images. The recipe is not asked."""

from __future__ import annotations

from collections.abc import Iterator

from bench.record.models import ArmRecord, Weights
from bench.report.document import Block, Column, Text
from bench.report.text import table_of
from bench.report.values import RunReport, Setting

#: Digits of a checksum in a table; the record has all.
DIGITS = 12


def setting_of(arm: ArmRecord) -> Setting:
    """The setting of an arm, from its record."""
    ranks = [rank for rank in arm.audit.get("ranks", ()) if rank]
    flops: dict[str, int] = {}
    for rank in ranks:
        for counted in rank["steps"][0]["flops"].values():
            for types, number in counted.items():
                flops[types] = flops.get(types, 0) + number
    threads = {rank.get("after", {}).get("threads") for rank in ranks}
    return Setting(
        weights=_weights(arm.weights),
        sha256=arm.weights.sha256 if arm.weights else "",
        types=", ".join(sorted((types for types in flops if flops[types]), key=lambda types: -flops[types])),
        threads=threads.pop() if len(threads) == 1 else None,
        evaluated=arm.predictions.images if arm.predictions else None,
    )


def _weights(weights: Weights | None) -> str:
    if weights is None:
        return ""
    return {"own": "its own, random", "file": weights.path}.get(weights.source, weights.source)


def setting_blocks(run: RunReport) -> Iterator[Block]:
    """A table of all arms of which something was observed."""
    observed = [one for one in run.placed if one[1].setting != Setting()]
    if observed:
        yield Text(
            "As the arms were seen to do, in the audited steps and when weights were loaded; not what was asked."
        )
        yield table_of(
            observed,
            {
                Column("workload"): lambda one: one[0].title,
                Column("codebase"): lambda one: one[0].row_name(one[1]),
                Column("weights"): lambda one: one[1].setting.weights,
                Column("SHA-256", optional=True): lambda one: one[1].setting.sha256[:DIGITS],
                Column("types of numbers", optional=True): lambda one: one[1].setting.types,
                Column("threads", True, optional=True): lambda one: one[1].setting.threads,
                Column("images evaluated", True, optional=True): lambda one: one[1].setting.evaluated,
            },
        ).compact()
