"""The values of a metric in a record: one number per block, launch or run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pandas as pd

from bench.errors import BenchError
from bench.gate.decide import Launches, Spread
from bench.gate.metrics import TIME_METRICS, Metric, Settings
from bench.gate.summaries import mean_of, trimmed
from bench.inputs.dataset import open_dataset
from bench.judge.accuracy import evaluate
from bench.judge.steady import Floats
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord
from bench.record.parts import Memory
from bench.record.run import Run
from bench.record.samples import block_times

SIDES = ("base", "head")
QUANTILES = {"p90": 0.90, "p99": 0.99}
STEPS_BEYOND = 3
NOT_KNOWN = Spread()
NOTHING: Mapping[str, Spread] = MappingProxyType({})


# -- values of launches ---------------------------------------------------------------------------------------


def badness(run: Run, arm: ArmRecord, target: Metric, cache: Path) -> pd.Series[float]:
    """`Metric.badness` of an arm's measured values, indexed by launch and round (quantiles: by launch and 0)."""
    if target.name == "AP":
        return pd.Series(target.badness([_average_precision(run, arm, cache)]), index=_index([(0, 0)]))
    if target.name == "max memory":
        values = memory_bytes(arm, arm.memory)  # of both revisions alike, tools of the audit included
        return pd.Series(target.badness(list(values.values())), index=_index([(x, 0) for x in values]))
    if target.statistic in QUANTILES:
        return _quantiles(run, arm, target)
    if target.phase:
        seconds_of_phase = _phase_seconds(arm, target.phase)[..., 0]
        keys = list(np.ndindex(seconds_of_phase.shape))
        return pd.Series(target.badness(seconds_of_phase.ravel()), index=_index(keys))
    seconds = _block_seconds(run, arm)
    if target.name == "EMA cost":
        cost = (1 - _block_seconds(run, _without_ema(run, arm)) / seconds).dropna()
        return pd.Series(target.badness(cost), index=cost.index)
    images = arm.workload.images_per_step
    values_per_block = seconds if target.name.startswith("s/iter") else images / seconds
    return pd.Series(target.badness(values_per_block), index=seconds.index)


def value_of(run: Run, arm: ArmRecord, target: Metric, cache: Path) -> float:
    """The median of a metric over all blocks of an arm, in the metric's own unit (seconds, images/s, bytes, AP)."""
    found = float(badness(run, arm, target, cache).median())
    signed = found if target.better == "lower" else -found
    return float(np.exp(signed)) if target.relative else signed


def _block_seconds(run: Run, arm: ArmRecord) -> pd.Series[float]:
    blocks = block_times(run.samples(arm.id))
    return blocks.set_index(["launch", "round"])["s_per_step"].sort_index()


def _quantiles(run: Run, arm: ArmRecord, target: Metric) -> pd.Series[float]:
    """Badness of a quantile of the step times of each launch, the slowest rank counting.

    Raises:
        BenchError: where a launch has so few steps that fewer than three lie beyond the quantile.
    """
    share = QUANTILES[target.statistic]
    samples = run.samples(arm.id)
    measured = samples[samples["round"] >= 0]
    steps = measured.groupby(["launch", "round", "position", "step"])["duration_ns"].max()
    of_launch = steps.groupby("launch")
    fewest = round(STEPS_BEYOND / (1 - share))
    if int(of_launch.size().min()) < fewest:
        raise BenchError(
            f"{target.name} needs {fewest} steps in every launch, {arm.id} has {int(of_launch.size().min())}",
            hint="raise measure.rounds or measure.steps",
        )
    found = of_launch.quantile(share) / 1e9
    return pd.Series(target.badness(found), index=_index([(int(x), 0) for x in found.index]))


def _phase_seconds(arm: ArmRecord, phase: str) -> Floats:
    """Seconds of a phase or an operator, and of the step: [launches, steps of its pass, 2]."""
    found = arm.phases
    if phase in arm.operators:
        rest = np.subtract(arm.operators["step"], arm.operators[phase])
        found = {phase: arm.operators[phase], "the rest": rest.tolist()}
    if not found.get(phase) or len(found[phase]) % max(1, arm.launches):
        raise BenchError(
            f"{arm.id} has no times of '{phase}' in every launch",
            hint=f"it has {', '.join(found)}" if found else "measure them: --set measure.phase_steps=3",
        )
    whole = np.sum(list(found.values()), axis=0)
    return np.stack([found[phase], whole], axis=-1).reshape(arm.launches, -1, 2)


def growth_of_phase(base: Floats, head: Floats) -> Launches:
    """How much a phase grew in each launch, as a share of the base's step, or the whole step, whichever grew less over
    all launches: time that moved from one phase to another is no regression.

    Args:
        base: Seconds of the phase and of the step, [launches, steps, 2].
        head: The same.
    """
    launches, steps = (min(base.shape[axis], head.shape[axis]) for axis in (0, 1))
    grown = (head[:launches, :steps] - base[:launches, :steps]) / base[:launches, :, 1].mean(axis=1)[
        :, None, None
    ]
    means = grown.mean(axis=1)
    # Chosen launch by launch, the smaller one would be too small: noise would choose.
    smaller = int(means.mean(axis=0).argmin())
    values = means[:, smaller]
    if steps < 2:
        return Launches(values, np.zeros(launches), np.zeros(launches))
    errors = grown[..., smaller].std(axis=1, ddof=1) / np.sqrt(steps)
    return Launches(values, errors, np.full(launches, steps - 1.0))


def _index(keys: list[tuple[int, int]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(keys, names=["launch", "round"])


def memory_bytes(arm: ArmRecord, passes: Sequence[Memory]) -> dict[int, int]:
    """Max memory of each launch in ``passes``: over ranks, allocated on the device, or resident on a CPU."""
    name = "allocated_bytes" if arm.workload.device == "cuda" else "host_peak_bytes"
    peaks: dict[int, int] = {}
    for one in passes:
        value = getattr(one, name)
        if value is not None:
            peaks[one.launch] = max(peaks.get(one.launch, 0), value)
    if not peaks:
        raise BenchError(
            f"max memory of {arm.id} was not measured", hint="measure it: --set measure.memory_steps=2"
        )
    return peaks


def _average_precision(run: Run, arm: ArmRecord, cache: Path) -> float:
    if arm.predictions is None:
        raise BenchError(
            f"AP of {arm.id} needs predictions, and it has none", hint="set measure.predict=true"
        )
    detections = run.folder / arm.predictions.path
    if arm.evaluated:
        truth, image_ids = run.folder / arm.evaluated.ground_truth, tuple(arm.evaluated.image_ids)
    else:
        workload = Workload.model_validate(arm.workload)
        dataset = open_dataset(workload.input, workload.task, cache)
        truth, image_ids = dataset.annotations, dataset.image_ids
    found = evaluate(truth, detections, "bbox", image_ids=image_ids).metrics["AP"]
    if found is None:
        raise BenchError(f"{arm.id}: AP of images without objects is undefined")
    return found


def _without_ema(run: Run, arm: ArmRecord) -> ArmRecord:
    wanted = {**arm.levels, "ema": False}
    found = next((a for a in run.arms() if a.label == arm.label and a.levels == wanted), None)
    if found is None:
        raise BenchError(
            f"EMA cost of {arm.id} needs the same arm without EMA", hint="factors: {ema: [off, on]}"
        )
    return found


def metrics_of(settings: Settings, arm: ArmRecord) -> list[Metric]:
    """EMA cost is a matter of arms that have it."""
    metrics = settings.metrics_of(arm.workload.task)
    return [one for one in metrics if one.name != "EMA cost" or arm.workload.ema]


def launches_of(
    base: pd.Series[float], head: pd.Series[float], target: Metric, calibrated: Spread = NOT_KNOWN
) -> Launches:
    """Worsening of each launch, head against base, from the rounds that both have.

    Args:
        base: `badness` of the base, indexed by launch and round.
        head: of the head.
        target: says what is taken of the rounds.
        calibrated: spread of the launches of equal revisions, where it is known.
    """
    both = pd.concat([base, head], axis=1, join="inner", keys=SIDES).sort_index()
    values, errors, freedoms = [], [], []
    for _, rounds in both.groupby("launch"):
        sides = rounds.to_numpy(dtype=np.float64)
        summary = (
            mean_of(sides[:, 0], sides[:, 1])
            if target.statistic == "mean"
            else trimmed(sides[:, 1] - sides[:, 0])
        )
        values.append(summary.value)
        errors.append(summary.error)
        freedoms.append(summary.freedom)
    return Launches(np.array(values), np.array(errors), np.array(freedoms), calibrated)


def interleaved(
    run: Run,
    pairs: Sequence[str],
    settings: Settings,
    cache: Path,
    calibrated: Mapping[str, Spread] = NOTHING,
) -> dict[tuple[str, str], tuple[Metric, Launches]]:
    """Worsening of each launch by (arm, metric): head against base, paired by launch and round.

    ``calibrated``: spread of the launches of each arm against itself; it holds for times.
    """
    arms = {arm.id: arm for arm in run.arms()}
    found = {}
    for name in pairs:
        base, head = (arms[side_id(name, side)] for side in SIDES)
        for target in metrics_of(settings, head):
            spread = calibrated.get(name, NOT_KNOWN) if target.name in TIME_METRICS else NOT_KNOWN
            if target.phase:
                sides = (_phase_seconds(one, target.phase) for one in (base, head))
                found[name, target.name] = target, growth_of_phase(*sides)
                continue
            launches = launches_of(
                badness(run, base, target, cache), badness(run, head, target, cache), target, spread
            )
            found[name, target.name] = target, launches
    return found


# -- measuring ------------------------------------------------------------------------------------------------


def side_id(arm: str, side: str) -> str:
    return f"{arm}-{side}"
