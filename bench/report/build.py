"""Records → the values of a report. Statistics are `bench.judge`'s."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.judge import noise
from bench.judge.audit import Audit, audit_sessions
from bench.judge.pairs import baselines_of
from bench.judge.ratio import Ratio, summarize
from bench.judge.stopping import confidence_of
from bench.recipe.codebases import Codebase
from bench.record.models import ArmRecord, Environment, RunRecord
from bench.record.parts import EVERY_PHASE
from bench.record.places import Places
from bench.record.run import Run
from bench.record.samples import samples_columns
from bench.report import accuracy_values
from bench.report.effects import effects_and_scaling
from bench.report.measured import Measured, throughput_ratio
from bench.report.scaling import medians_of, stragglers
from bench.report.setting import setting_of
from bench.report.values import (
    Group,
    MemoryUse,
    Phase,
    Row,
    RunReport,
    Software,
    WithoutOperator,
    marks_of,
)

# -- From samples --------------------------------------------------------------------------------------------


def _memory(arm: ArmRecord) -> MemoryUse | None:
    def largest(name: str) -> int | None:
        return max(
            (value for one in arm.memory_counted() if (value := getattr(one, name) or 0) > 0), default=None
        )

    allocated, resident = largest("allocated_bytes"), largest("host_peak_bytes")
    if arm.workload.device == "cuda" and allocated is not None:
        return MemoryUse("allocated", allocated, None, largest("reserved_bytes"), largest("device_bytes"))
    if arm.workload.device != "cuda" and resident is not None:
        return MemoryUse("resident", resident, largest("host_baseline_bytes"))
    return None


def _last_ap(arm: ArmRecord) -> dict[str, float | None]:
    last = arm.evaluations[-1].kinds() if arm.evaluations else {}
    return {kind: found.metrics["AP"] for kind, found in last.items()}


def _phases(arm: ArmRecord) -> tuple[Phase, ...]:
    medians = medians_of(arm)
    total = sum(medians.values())
    if not total > 0:
        return ()
    place = {name: at for at, name in enumerate(EVERY_PHASE)}
    order = sorted(medians, key=lambda name: place.get(name, len(place)))  # unknown ones come last
    return tuple(Phase(name, medians[name], medians[name] / total) for name in order)


def _operators(arm: ArmRecord) -> tuple[Phase, ...]:
    """Operators of the passes that have a time of the whole step, and what is left of it."""
    whole = np.array([one for one in arm.operators.get("step", []) if one > 0])
    found = {name: np.array(seconds) for name, seconds in arm.operators.items() if name != "step"}
    if not found or any(seconds.shape != whole.shape or not whole.size for seconds in found.values()):
        return ()
    found["rest"] = whole - sum(found.values())
    return tuple(
        Phase(name, float(np.median(seconds)), float(np.median(seconds / whole)))
        for name, seconds in found.items()
    )


def without_operators(row: Row, baseline: Row, ratio: Ratio) -> Iterator[WithoutOperator]:
    """For every operator that both arms were profiled for."""
    shares, of_baseline = ({one.name: one.share for one in arm.operators} for arm in (row, baseline))
    for name in (one for one in of_baseline if one in shares and one != "rest"):
        share, baseline_share = shares[name], of_baseline[name]
        if 0 < max(share, baseline_share) < 1:
            rest = ratio.value * (1 - baseline_share) / (1 - share)
            part = 1 - math.log(rest) / math.log(ratio.value) if ratio.differs else None
            yield WithoutOperator(name, share, baseline_share, rest, part)


# -- From records --------------------------------------------------------------------------------------------


def _normal(package: str) -> str:
    return package.lower().replace("_", "-").replace(".", "-")


def _packages(arm: ArmRecord, codebase: Codebase | None) -> dict[str, str]:
    """Versions of the distributions that identify the arm's codebase, the first one above all."""
    installed = {_normal(name): str(version) for name, version in arm.environment.packages.items()}
    wanted = [*(codebase.packages if codebase else [arm.codebase]), "torch", "paddlepaddle", "numpy"]
    return {name: installed[_normal(name)] for name in dict.fromkeys(wanted) if _normal(name) in installed}


def _version(arm: ArmRecord, codebase: Codebase | None) -> str:
    """Version of the codebase itself, with the revision when it runs from a git checkout."""
    names = codebase.packages[:1] if codebase else [arm.codebase]
    installed = {_normal(name): str(version) for name, version in arm.environment.packages.items()}
    found = arm.description.get("codebase_version") or next(
        (installed[_normal(name)] for name in names if _normal(name) in installed), ""
    )
    git = arm.environment.git
    revision = (git.revision or "")[:8]
    parts = [str(found)] if found else []
    if revision:
        parts.append(f"git {revision}{' (modified)' if git.dirty else ''}")
    return " ".join(parts)


def _reason(arm: ArmRecord) -> str:
    if arm.failure is None:
        return ""
    stage = f" in {arm.failure.stage}" if arm.failure.stage else ""
    return f"{arm.failure.reason}{stage}: {arm.failure.message}"


def _flops_per_step(arm: ArmRecord) -> float | None:
    """All ranks together."""
    training = arm.workload.trains
    flops = arm.description.get("training_flops" if training else "forward_flops")
    return None if flops is None else float(flops) * arm.workload.ranks


def _forward_flops(arm: ArmRecord) -> float | None:
    """Of one image: the audit counts a batch of one rank."""
    flops = arm.description.get("forward_flops")
    return None if flops is None else float(flops) / arm.workload.batch_size


def _peak_flops_per_s(arms: Iterable[ArmRecord]) -> float | None:
    """The machine's: the best that any framework reached on it, in either operation."""
    peaks = (arm.description.get("peak_flops_per_s") or {} for arm in arms)
    return max((float(value) for peak in peaks for value in peak.values()), default=None)


def _row(
    arm: ArmRecord,
    measured: Measured,
    codebase: Codebase | None,
    audit: Audit | None,
    peak_flops_per_s: float | None,
) -> Row:
    row = Row(
        arm=arm.id,
        label=arm.label,
        codebase=arm.codebase,
        title=codebase.title if codebase else arm.codebase,
        version=_version(arm, codebase),
        kernels=str(arm.description.get("kernels") or ""),
        levels=arm.levels,
        workload=arm.workload,
        options=arm.options,
        status=arm.status,
        reason=_reason(arm),
        log=arm.failure.log if arm.failure else "",
        log_tail=tuple(arm.failure.log_tail) if arm.failure else (),
        audit=audit,
        warnings=tuple(arm.warnings),
        setting=setting_of(arm),
    )
    if arm.status == "failed":
        return row
    if measured.problem:
        return dataclasses.replace(row, reason=measured.problem)
    blocks = measured.blocks
    images = arm.workload.images_per_step
    step_s = summarize(measured.seconds, images)
    flops = _flops_per_step(arm)
    return dataclasses.replace(
        row,
        sessions=len(measured.sessions),
        launches=int(np.unique(blocks["launch"]).size),
        rounds=blocks["round"].size,
        steps=int(blocks["steps"].sum()),
        step_s=step_s,
        images_per_step=images,
        flops_per_step=flops,
        parameters=arm.description.get("parameters"),
        forward_flops=_forward_flops(arm),
        peak_share=flops / step_s.median_s / peak_flops_per_s if flops and peak_flops_per_s else None,
        memory=_memory(arm),
        phases=_phases(arm),
        operators=_operators(arm),
        ap=_last_ap(arm),
        served=tuple(arm.served),
        energy={name: float(np.median(values)) for name, values in arm.energy.items() if values},
        no_energy=arm.no_energy,
        conditions={
            name: (float(np.median(values)), min(values), max(values))
            for name, values in arm.conditions.items()
            if values
        },
        warnings=(*arm.warnings, *noise.check(blocks)),
        trace=measured.trace,
    )


def _confidence(record: RunRecord) -> float:
    measure = record.recipe.get("measure") or {}
    return confidence_of(measure.get("until"), measure.get("launches", 0))


def _groups(
    samples: Mapping[str, Measured], record: RunRecord, arms: Sequence[ArmRecord], rows: Mapping[str, Row]
) -> Iterator[Group]:
    baselines = baselines_of(arms, record.baseline)
    grouped: dict[tuple[str, str | None], list[ArmRecord]] = {}
    for arm in arms:
        reference = baselines[arm.id]
        grouped.setdefault((arm.cell, reference.id if reference else None), []).append(arm)
    for (cell, _), members in grouped.items():
        levels, factors = _shared_levels(members, record.baseline)
        chosen = baselines[members[0].id]
        base = dataclasses.replace(rows[chosen.id], is_baseline=True) if chosen else None
        final = []
        for arm in members:
            row = rows[arm.id]
            if base is not None and chosen is not None and arm.id == chosen.id:
                row = base
            elif base is not None and base.step_s is not None and row.step_s is not None:
                images = row.images_per_step / base.images_per_step
                ratio = throughput_ratio(samples[arm.id], samples[base.arm], images, _confidence(record))
                without = without_operators(row, base, ratio) if ratio else ()
                row = dataclasses.replace(row, ratio=ratio, without=tuple(without))
            final.append(
                dataclasses.replace(row, marks=marks_of(row, base, interleaved=_interleaved(record)))
            )
        yield Group(
            cell=cell,
            task=members[0].workload.task,
            model=_model(members),
            levels={name: level for name, level in levels.items() if name not in ("task", "model")},
            factors=factors,
            rows=tuple(final),
            baseline=chosen.id if chosen else None,
        )


def _told_apart(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """The groups without levels that all of them share: titles tell them apart, the recipe has the rest."""
    names = dict.fromkeys(name for one in groups for name in one.levels)
    values = {name: {repr(one.levels.get(name)) for one in groups} for name in names}
    kept = {name for name, found in values.items() if len(found) > 1 or len(groups) == 1}
    return tuple(
        dataclasses.replace(one, levels={name: level for name, level in one.levels.items() if name in kept})
        for one in groups
    )


def _model(arms: Sequence[ArmRecord]) -> str:
    models = {arm.workload.model for arm in arms}
    return models.pop() if len(models) == 1 else "different models"


def _interleaved(record: RunRecord) -> bool:
    return bool((record.recipe.get("measure") or {}).get("interleave", True))


def _shared_levels(
    arms: Sequence[ArmRecord], baseline: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Levels that all arms share, and the factors in which they differ or that the baseline names."""
    names = list(dict.fromkeys(name for arm in arms for name in arm.levels))
    told = tuple(
        name for name in names if name in baseline or len({repr(arm.levels.get(name)) for arm in arms}) > 1
    )
    return {name: arms[0].levels[name] for name in names if name not in told}, told


def _software(arms: Sequence[ArmRecord], codebases: Mapping[str, Codebase]) -> Iterator[Software]:
    """One per codebase, or more when its arms ran with different variables."""
    seen = set()
    for arm in arms:
        codebase = codebases.get(arm.codebase)
        environment = arm.environment
        entry = Software(
            codebase=arm.codebase,
            title=codebase.title if codebase else arm.codebase,
            url=codebase.url if codebase else "",
            version=_version(arm, codebase),
            python=environment.python or "",
            packages=_packages(arm, codebase),
            installed=environment.packages,
            git=environment.git.model_dump(exclude_defaults=True),
            variables=environment.variables,
            own_environment=codebase is not None and codebase.environment.kind == "own",
        )
        if environment != Environment() and repr(entry) not in seen:
            seen.add(repr(entry))
            yield entry


def _samples(run: Run, arm: ArmRecord) -> Measured:
    """An arm's samples; none of an arm that failed, nor of one whose samples are damaged, which is then said."""
    if arm.status == "failed":
        return Measured(samples_columns([]))
    try:
        return Measured(run.columns(arm.id))
    except BenchError as error:
        return Measured(samples_columns([]), error.message)


def _rows(
    arms: Sequence[ArmRecord],
    samples: Mapping[str, Measured],
    codebases: Mapping[str, Codebase],
    audits: Mapping[str, Audit],
) -> dict[str, Row]:
    """By arm id, before anything is compared."""
    peak = _peak_flops_per_s(arms)
    return {
        arm.id: _row(arm, samples[arm.id], codebases.get(arm.codebase), audits.get(arm.id), peak)
        for arm in arms
    }


def _remade(command: Sequence[str]) -> bool:
    """Whether `--set` made other work of the recipe than its description says."""
    chosen = (word for flag, word in itertools.pairwise(command) if flag == "--set")
    return any(not word.startswith("measure.") for word in chosen)


def run_report(run: Run, *, codebases: Mapping[str, Codebase] | None = None) -> RunReport:
    """Everything a report says of one run.

    Args:
        run: The run folder.
        codebases: `bench.recipe.codebases.find_codebases`; gives titles, and the distributions of a version.

    Raises:
        BenchError: A record cannot be read.
    """
    codebases = codebases or {}
    record, arms = run.record(), run.arms()
    samples = {arm.id: _samples(run, arm) for arm in arms}
    several = [(one.arms(), one.record().baseline) for one in run.sessions if one is not run]
    audits = audit_sessions(several or [(arms, record.baseline)])
    rows = _rows(arms, samples, codebases, audits)
    effects, scaling = effects_and_scaling(samples, record, arms, rows, _confidence(record))
    groups = _told_apart(tuple(_groups(samples, record, arms, rows)))
    names = {row.arm: group.row_name(row) for group in groups for row in group.rows}
    ended = {arm.id for arm in arms}
    return RunReport(
        id=record.id,
        folder=_shown_path(run.folder),
        status=record.status,
        aa=record.aa,
        interleaved=_interleaved(record),
        name=str(record.recipe.get("name") or Path(record.recipe_path).stem or record.id),
        description="" if _remade(record.command) else str(record.recipe.get("description") or ""),
        started_utc=record.started_utc,
        ended_utc=record.ended_utc,
        bench_version=record.bench_version,
        git=record.git.model_dump(exclude_defaults=True),
        command=tuple(record.command),
        recipe_path=record.recipe_path,
        recipe=record.recipe,
        machine=record.machine,
        load_before=tuple(record.load_before),
        load_after=tuple(record.load_after),
        dataset={name: found.model_dump(exclude_defaults=True) for name, found in record.dataset.items()},
        software=tuple(_software(arms, codebases)),
        groups=groups,
        effects=effects,
        scaling=scaling,
        stragglers=tuple(stragglers(samples, arms, names)),
        check=record.check,
        unmeasured=tuple(arm for arm in record.arms if arm not in ended),
        warnings=tuple(record.warnings),
        accuracy=accuracy_values.of_run(run, arms, names, record.baseline),
        sessions=tuple(_shown_path(one.folder) for one in run.sessions) if len(run.sessions) > 1 else (),
    )


def _shown_path(path: Path) -> str:
    """Relative to the current folder when below it, else as a place: a report does not depend on where the clone is."""
    return Places(Path("/")).argument(str(path.resolve()))
