"""A stored run in one line: what lists, histories and sites say of it, worked out once and kept in the cache."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.gate.values import memory_bytes
from bench.judge.pairs import baseline_of
from bench.recipe.plan import work_key
from bench.record.index import worked_out
from bench.record.machine import fingerprint
from bench.record.models import ArmRecord, RunRecord
from bench.record.run import Run

Point = list[Any]
"""Arm, metric, work, value, revision; for a time also name and value of the baseline, where there is one."""


@dataclass(frozen=True)
class Overview:
    """A stored run. ``kind``: of its machine. ``failed``: arms without a result. ``error``: why it cannot be read."""

    folder: str
    id: str = ""
    recipe: str = ""
    started_utc: str = ""
    status: str = ""
    """As recorded: a killed run still says `running`."""
    machine: str = ""
    kind: str = ""
    arms: int = 0
    failed: int = 0
    purpose: str = ""
    """`A/A` or `check`; empty for a plain run."""
    bench: str = ""
    points: tuple[Point, ...] = ()
    """None of a run against itself, and of a check of two revisions."""
    error: str = ""


#: Of what `_overview` makes; another one makes the index anew. Raise the number when the numbers of a run change.
VERSION = f"overview-2-{zlib.crc32(' '.join(one.name for one in fields(Overview)).encode()):08x}"


def overviews(folders: Sequence[Path], cache: Path | None) -> Iterator[Overview]:
    """Of run folders, in their order.

    Args:
        folders: Run folders.
        cache: Where the overviews are kept; None: they are worked out anew.
    """
    for found in worked_out(folders, _overview, cache, VERSION):
        yield Overview(**{**found, "points": tuple(found["points"])})


def _overview(folder: Path) -> dict[str, Any]:
    run = Run(folder)
    try:
        record = run.record()
        known = Overview(
            folder.name,
            record.id,
            str(record.recipe.get("name", "")),
            record.started_utc,
            record.status,
            _machine(record.machine),
            fingerprint(record.machine),
            len(record.arms),
            purpose="A/A" if record.aa else "check" if record.check is not None else "",
            bench=str(record.git.revision or record.bench_version),
        )
    except (BenchError, OSError, KeyError, ValueError, AttributeError, TypeError) as error:
        return asdict(Overview(folder.name, folder.name, error=_told(error, folder)))
    try:
        arms = run.arms()
        points = (
            () if known.purpose else tuple(_points(run, record, [one for one in arms if one.status == "ok"]))
        )
        failed = sum(arm.status == "failed" for arm in arms)
        return asdict(known) | {"failed": failed, "points": points}
    except (BenchError, OSError, KeyError, ValueError) as error:
        return asdict(known) | {"error": _told(error, folder)}


def _told(error: Exception, folder: Path) -> str:
    """Without where the run lies on this machine: sites are published."""
    return str(error).replace(f"{folder}/", "")


def _machine(machine: Mapping[str, Any]) -> str:
    cpu, gpus = machine.get("cpu"), machine.get("gpus") or []
    names = [str(gpu.get("model", "")) for gpu in gpus if isinstance(gpu, Mapping)]
    return ", ".join(filter(None, [*names, str(cpu.get("model", "")) if isinstance(cpu, Mapping) else ""]))


def _points(run: Run, record: RunRecord, arms: Sequence[ArmRecord]) -> Iterator[Point]:
    values = {arm.id: dict(_values(run, arm)) for arm in arms}
    for arm in arms:
        key = work_key(arm.codebase, arm.workload, arm.options)
        work = hashlib.sha256(key.encode()).hexdigest()[:6]
        fixed = _reference(arm, arms, record.baseline)
        others = values[fixed.id] if fixed and fixed.id != arm.id else {}
        for metric, value in values[arm.id].items():
            reference: Point = []
            if fixed and metric in others and metric != "max memory":
                reference = [f"{fixed.label} {_revision(fixed)[:12]}".strip(), others[metric]]
            yield [arm.id, metric, work, value, _revision(arm), *reference]


def _reference(arm: ArmRecord, arms: Sequence[ArmRecord], pattern: Mapping[str, Any]) -> ArmRecord | None:
    try:
        return baseline_of(arm, arms, pattern)
    except BenchError:  # several arms fit: an old record
        return None


def _values(run: Run, arm: ArmRecord) -> Iterator[tuple[str, float]]:
    blocks = run.block_seconds(arm.id)
    if blocks.size:
        seconds = float(np.exp(np.log(blocks).mean()))
        if not arm.workload.trains:
            yield "FPS", arm.workload.images_per_step / seconds
        else:
            yield "s/iter", seconds
    if arm.memory:
        yield "max memory", max(memory_bytes(arm, arm.memory_counted()).values()) / 2**20


def _revision(arm: ArmRecord) -> str:
    return str(arm.environment.git.revision or arm.description.get("codebase_version") or "")
