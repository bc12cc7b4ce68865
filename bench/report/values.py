"""Records → the values of a report. Every number that is shown anywhere is one of these.

Statistics are `bench.judge.ratio`'s; formatting is `bench.report.sections`'s. A failed arm has no numbers, whatever
it left behind.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from bench.judge import noise
from bench.judge.pairs import baseline_of
from bench.judge.ratio import Cost, Ratio, Summary, pair, step_seconds, summarize
from bench.judge.ratio import cost as cost_of
from bench.judge.ratio import ratio as ratio_of
from bench.recipe.codebases import Codebase
from bench.recipe.models import MODELS
from bench.recipe.schema import level_text
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord, Environment, RunRecord, Status
from bench.record.places import Places
from bench.record.run import Run
from bench.record.samples import block_times
from bench.report import accuracy_values

#: Order in which phases happen; phases that are not listed come after these.
PHASES = ("data", "forward", "backward", "optimizer", "ema", "network", "post")


@dataclass(frozen=True)
class MemoryUse:
    """Max memory of an arm: the largest over ranks and launches (`ArmRecord.memory_counted`).

    ``kind``: `allocated` by the framework on the device (as mmdetection reports it), or `resident`, the peak
    resident set of the process on a CPU, of which ``baseline_bytes`` were there before the model was built.
    """

    kind: Literal["allocated", "resident"]
    peak_bytes: int
    baseline_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class Phase:
    """``median_s`` per step, and its share of the sum of all phases' medians."""

    name: str
    median_s: float
    share: float


@dataclass(frozen=True)
class WithoutOperator:
    """What the ratio of an arm to its baseline would be if neither spent time in an operator.

    ``share`` and ``baseline_share``: of the step's time, in a profiled step of each. ``ratio_share``: how much of the
    ratio's logarithm the operator makes up; None where the ratio cannot be told from 1.
    """

    operator: str
    share: float
    baseline_share: float
    ratio: float
    ratio_share: float | None


@dataclass(frozen=True)
class Trace:
    """Per-step times in the order they happened, launch after launch; the slowest rank of each step."""

    seconds: tuple[float, ...] = ()
    launch: tuple[int, ...] = ()
    warmup: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """What the equal-work audit said of an arm: a word or two for the table, the differences for below it."""

    text: str
    equal: bool = True
    differences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One arm of a table."""

    arm: str
    label: str
    codebase: str
    title: str
    version: str
    kernels: str
    levels: Mapping[str, Any]
    workload: Mapping[str, Any]
    options: Mapping[str, Any]
    status: Status
    reason: str = ""
    log: str = ""
    log_tail: tuple[str, ...] = ()
    launches: int = 0
    rounds: int = 0
    """Rounds measured, summed over launches."""
    steps: int = 0
    step_s: Summary | None = None
    """Seconds per step (s/iter) over all measured steps, and images/s (FPS) at the median."""
    images_per_step: int = 0
    flops_per_step: float | None = None
    """Of convolutions and matrix products, as the audit counts them; in training of forward and backward pass."""
    peak_share: float | None = None
    """``flops_per_step`` over the median s/iter, as a share of the most FLOP/s that any arm of the run measured."""
    memory: MemoryUse | None = None
    phases: tuple[Phase, ...] = ()
    operator_shares: Mapping[str, float] = field(default_factory=dict)
    """Of a profiled step's time, by operator."""
    ap: Mapping[str, float | None] = field(default_factory=dict)
    """Of the last evaluation, 0..1, by IoU type (bbox, segm); empty where nothing was evaluated."""
    is_baseline: bool = False
    ratio: Ratio | None = None
    """Throughput of this arm over the baseline's: above 1 is faster."""
    without: tuple[WithoutOperator, ...] = ()
    verdict: Verdict | None = None
    warnings: tuple[str, ...] = ()
    trace: Trace = field(default=Trace(), metadata={"json": False})  # the Parquet files hold it

    @property
    def ema(self) -> bool | None:
        return bool(self.workload.get("ema")) if trains(str(self.workload.get("task"))) else None


@dataclass(frozen=True)
class Group:
    """One table: arms of one cell that do the same work but for the factors compared.

    ``levels`` are those that all its arms share, ``factors`` the names of those that tell its arms apart.
    """

    cell: str
    task: str
    model: str
    levels: Mapping[str, Any]
    factors: tuple[str, ...]
    rows: tuple[Row, ...]
    baseline: str | None
    """Arm that the others are compared with; None when the group has none."""

    @property
    def title(self) -> str:
        model = MODELS[self.model].title if self.model in MODELS else self.model
        return ", ".join([model, "training" if trains(self.task) else "inference", *self._words(self.levels)])

    def _words(self, levels: Mapping[str, Any]) -> list[str]:
        """Levels in words; EMA says nothing of inference."""
        told = {name: level for name, level in levels.items() if name != "ema" or trains(self.task)}
        return [f"{factor_name(name)} {level_text(level)}" for name, level in told.items()]

    def row_name(self, row: Row) -> str:
        """The label of a row, with the levels that tell it from its neighbours."""
        levels = {name: row.levels[name] for name in self.factors if name in row.levels}
        return ", ".join([row.label, *self._words(levels)])


@dataclass(frozen=True)
class Effect:
    """What one level of a factor does in one codebase, all else equal.

    ``ratio`` is the throughput with it over that without; ``cost`` the share of the step time that it takes, None
    where a step does not do the same number of images.
    """

    label: str
    group: str
    factor: str
    reference: Any
    level: Any
    ratio: Ratio
    cost: Cost | None
    interleaved: bool
    """False: the two arms were measured one after the other, and the machine may have drifted in between."""


@dataclass(frozen=True)
class Scaling:
    """How well a codebase uses more ranks, each with the same batch size.

    ``efficiency``: images/s per rank over images/s per rank of the fewest ranks (1: perfect).
    """

    label: str
    group: str
    reference_ranks: int
    ranks: int
    images_per_s: float
    efficiency: Ratio
    interleaved: bool


@dataclass(frozen=True)
class Software:
    """What one codebase ran on."""

    codebase: str
    title: str
    url: str
    version: str
    python: str
    packages: Mapping[str, str]
    """The distributions that identify the codebase and its framework; the arms' records hold all of them."""
    package_count: int
    git: Mapping[str, Any]
    variables: Mapping[str, str]


@dataclass(frozen=True)
class RunReport:
    """One run: tables are never built across runs, whose arms were not interleaved."""

    id: str
    folder: str
    status: str
    aa: bool
    name: str
    description: str
    started_utc: str
    ended_utc: str | None
    bench_version: str
    git: Mapping[str, Any]
    command: tuple[str, ...]
    recipe_path: str
    recipe: Mapping[str, Any]
    machine: Mapping[str, Any]
    load_before: tuple[float, ...]
    load_after: tuple[float, ...]
    dataset: Mapping[str, Any]
    software: tuple[Software, ...]
    groups: tuple[Group, ...]
    effects: tuple[Effect, ...]
    scaling: tuple[Scaling, ...]
    unmeasured: tuple[str, ...]
    """Planned arms that have no record."""
    warnings: tuple[str, ...]
    accuracy: tuple[accuracy_values.CellAccuracy, ...] = ()
    """Of the cells that were evaluated."""

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for group in self.groups for row in group.rows)


@dataclass(frozen=True)
class Report:
    runs: tuple[RunReport, ...]
    schema_version: int = 1


def trains(task: str) -> bool:
    return task in ("train", "train_eval")


def factor_name(factor: str) -> str:
    """A factor as reports name it."""
    return {
        "ema": "EMA",
        "size": "image size",
        "mode": "input",
        "input.mode": "input",
        "lr": "learning rate",
    }.get(factor, factor.removeprefix("options.").replace("_", " "))


# -- From samples --------------------------------------------------------------------------------------------


def throughput_ratio(arm: pd.DataFrame, baseline: pd.DataFrame, images: float = 1.0) -> Ratio | None:
    """Images/s of `arm` over those of `baseline` (samples tables), paired by round; None without a common round.

    ``images``: images per step of the arm over those of the baseline, where batch size or ranks differ.
    """
    pairs = pair(block_times(arm), block_times(baseline))
    return ratio_of(pairs.launch, pairs.log_ratio + math.log(images)) if pairs.log_ratio.size else None


def images_per_step(workload: Workload) -> int:
    return workload.batch_size * workload.ranks


def _trace(samples: pd.DataFrame) -> Trace:
    keys = ["launch", "round", "position", "step"]
    slowest = samples.groupby(keys)["duration_ns"].max().reset_index()
    steps = slowest.sort_values(["launch", "round", "step"])
    return Trace(
        seconds=tuple((steps["duration_ns"] / 1e9).tolist()),
        launch=tuple(steps["launch"].tolist()),
        warmup=tuple((steps["round"] < 0).tolist()),
    )


def _memory(arm: ArmRecord) -> MemoryUse | None:
    def largest(name: str) -> int | None:
        return max(
            (value for one in arm.memory_counted() if (value := getattr(one, name)) is not None), default=None
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
    medians = {name: float(np.median(values)) for name, values in arm.phases.items() if values}
    total = sum(medians.values())
    if not total > 0:
        return ()
    order = sorted(medians, key=lambda name: PHASES.index(name) if name in PHASES else len(PHASES))
    return tuple(Phase(name, medians[name], medians[name] / total) for name in order)


def _operator_shares(arm: ArmRecord) -> dict[str, float]:
    whole = arm.operators.get("step", [])
    return {
        name: float(np.median(np.divide(seconds, whole)))
        for name, seconds in arm.operators.items()
        if name != "step"
    }


def without_operators(row: Row, baseline: Row, ratio: Ratio) -> Iterator[WithoutOperator]:
    """For every operator that both arms were profiled for."""
    for name in (one for one in baseline.operator_shares if one in row.operator_shares):
        share, baseline_share = row.operator_shares[name], baseline.operator_shares[name]
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
    training = trains(arm.workload.task)
    flops = arm.description.get("training_flops" if training else "forward_flops")
    return None if flops is None else float(flops) * arm.workload.ranks


def _peak_flops_per_s(arms: Iterable[ArmRecord]) -> float | None:
    """The machine's: the best that any framework reached on it, in either operation."""
    peaks = (arm.description.get("peak_flops_per_s") or {} for arm in arms)
    return max((float(value) for peak in peaks for value in peak.values()), default=None)


def _row(
    arm: ArmRecord,
    run: Run,
    codebase: Codebase | None,
    verdict: Verdict | None,
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
        workload=arm.workload.model_dump(mode="json"),
        options=arm.options,
        status=arm.status,
        reason=_reason(arm),
        log=arm.failure.log if arm.failure else "",
        log_tail=tuple(arm.failure.log_tail) if arm.failure else (),
        verdict=verdict,
        warnings=tuple(arm.warnings),
    )
    if arm.status == "failed":
        return row
    samples = run.samples(arm.id)
    blocks = block_times(samples)
    if blocks.empty:
        return row
    images = images_per_step(arm.workload)
    step_s = summarize(step_seconds(samples), images)
    flops = _flops_per_step(arm)
    return dataclasses.replace(
        row,
        launches=int(blocks["launch"].nunique()),
        rounds=len(blocks),
        steps=int(blocks["steps"].sum()),
        step_s=step_s,
        images_per_step=images,
        flops_per_step=flops,
        peak_share=flops / step_s.median_s / peak_flops_per_s if flops and peak_flops_per_s else None,
        memory=_memory(arm),
        phases=_phases(arm),
        operator_shares=_operator_shares(arm),
        ap=_last_ap(arm),
        warnings=(*arm.warnings, *noise.check(blocks)),
        trace=_trace(samples),
    )


def _key(value: Any) -> str:
    """Levels may be lists or mappings: a hashable form."""
    return repr(value)


def _groups(
    run: Run, record: RunRecord, arms: Sequence[ArmRecord], rows: Mapping[str, Row]
) -> Iterator[Group]:
    baselines = {arm.id: baseline_of(arm, arms, record.baseline) for arm in arms}
    grouped: dict[tuple[str, str | None], list[ArmRecord]] = {}
    for arm in arms:
        reference = baselines[arm.id]
        grouped.setdefault((arm.cell, reference.id if reference else None), []).append(arm)
    for (cell, _), members in grouped.items():
        levels, factors = _shared_levels(members, record.baseline)
        chosen = baselines[members[0].id]
        base_samples = run.samples(chosen.id) if chosen and rows[chosen.id].step_s else None
        final = []
        for arm in members:
            row = rows[arm.id]
            if chosen is not None and arm.id == chosen.id:
                row = dataclasses.replace(row, is_baseline=True)
            elif chosen is not None and base_samples is not None and row.step_s is not None:
                images = row.images_per_step / rows[chosen.id].images_per_step
                ratio = throughput_ratio(run.samples(arm.id), base_samples, images)
                without = without_operators(row, rows[chosen.id], ratio) if ratio else ()
                row = dataclasses.replace(row, ratio=ratio, without=tuple(without))
            final.append(row)
        yield Group(
            cell=cell,
            task=members[0].workload.task,
            model=members[0].workload.model,
            levels={name: level for name, level in levels.items() if name not in ("task", "model")},
            factors=factors,
            rows=tuple(final),
            baseline=chosen.id if chosen else None,
        )


def _shared_levels(
    arms: Sequence[ArmRecord], baseline: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Levels that all arms share, and the factors in which they differ or that the baseline names."""
    names = list(dict.fromkeys(name for arm in arms for name in arm.levels))
    told = tuple(
        name for name in names if name in baseline or len({_key(arm.levels.get(name)) for arm in arms}) > 1
    )
    return {name: arms[0].levels[name] for name in names if name not in told}, told


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
                others = sorted((k, _key(v)) for k, v in arm.levels.items() if k != factor)
                alike.setdefault(_key((arm.codebase, arm.label, sorted(options.items()), others)), []).append(
                    arm
                )
        for members in alike.values():
            wanted = [baseline.get(factor), False] if factor in baseline else [False]
            reference = next(
                (arm for level in wanted for arm in members if _key(arm.levels[factor]) == _key(level)),
                members[0],
            )
            yield from ((factor, reference, arm) for arm in members if arm is not reference)


def _effects_and_scaling(
    run: Run, record: RunRecord, arms: Sequence[ArmRecord], rows: Mapping[str, Row]
) -> tuple[tuple[Effect, ...], tuple[Scaling, ...]]:
    effects: list[Effect] = []
    scaling: list[Scaling] = []
    for factor, reference, arm in _factor_pairs(arms, record.baseline):
        row, base = rows[arm.id], rows[reference.id]
        if row.step_s is None or base.step_s is None:
            continue
        scales = factor == "ranks"
        images = row.images_per_step / base.images_per_step
        per_rank = images / (arm.levels[factor] / reference.levels[factor]) if scales else images
        ratio = throughput_ratio(run.samples(arm.id), run.samples(reference.id), per_rank)
        if ratio is None:
            continue
        where, together = _where(arm, factor), arm.cell == reference.cell
        level, base_level = arm.levels[factor], reference.levels[factor]
        if scales:
            scaling.append(
                Scaling(arm.label, where, base_level, level, row.step_s.images_per_s, ratio, together)
            )
        else:
            cost = cost_of(ratio) if images == 1 else None
            effects.append(Effect(arm.label, where, factor, base_level, level, ratio, cost, together))
    return tuple(effects), tuple(scaling)


def _where(arm: ArmRecord, factor: str) -> str:
    """The group an effect belongs to, in words."""
    levels = {name: level for name, level in arm.levels.items() if name not in ("task", "model", factor)}
    task, model = arm.workload.task, arm.workload.model
    return Group(arm.cell, task, model, levels, (), (), None).title


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
            package_count=len(environment.packages),
            git=environment.git.model_dump(exclude_defaults=True),
            variables=environment.variables,
        )
        if environment != Environment() and _key(entry) not in seen:
            seen.add(_key(entry))
            yield entry


def run_report(
    run: Run,
    *,
    codebases: Mapping[str, Codebase] | None = None,
    verdicts: Mapping[tuple[str, str], Verdict] | None = None,
) -> RunReport:
    """Everything a report says of one run.

    ``codebases`` (`bench.recipe.codebases.find_codebases`) gives titles and the distributions that identify a
    version, ``verdicts`` the equal-work audit by (run id, arm id). Raises BenchError when a record cannot be
    read.
    """
    codebases = codebases or {}
    record, arms = run.record(), run.arms()
    verdicts = verdicts or {}
    peak = _peak_flops_per_s(arms)
    rows = {
        arm.id: _row(arm, run, codebases.get(arm.codebase), verdicts.get((record.id, arm.id)), peak)
        for arm in arms
    }
    effects, scaling = _effects_and_scaling(run, record, arms, rows)
    groups = tuple(_groups(run, record, arms, rows))
    names = {row.arm: group.row_name(row) for group in groups for row in group.rows}
    ended = {arm.id for arm in arms}
    return RunReport(
        id=record.id,
        folder=_shown_path(run.folder),
        status=record.status,
        aa=record.aa,
        name=str(record.recipe.get("name") or Path(record.recipe_path).stem or record.id),
        description=str(record.recipe.get("description") or ""),
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
        unmeasured=tuple(arm for arm in record.arms if arm not in ended),
        warnings=tuple(record.warnings),
        accuracy=accuracy_values.of_run(run, arms, names, record.baseline),
    )


def _shown_path(path: Path) -> str:
    """Relative to the current folder when below it, else as a place: a report does not depend on where the clone is."""
    return Places(Path("/")).argument(str(path.resolve()))


def to_json(value: Any) -> Any:
    """Plain JSON values of a report: dataclasses become objects, what is not a number becomes null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: to_json(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.metadata.get("json", True)
        }
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, Iterable):
        return [to_json(item) for item in value]
    return str(value)
