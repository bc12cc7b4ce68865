"""The values of a metric in a record: one number per block, launch or run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from bench.errors import BenchError
from bench.gate import decide
from bench.gate.metrics import Metric, Settings
from bench.inputs.dataset import open_dataset
from bench.judge.accuracy import evaluate
from bench.judge.steady import Floats
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord, Memory
from bench.record.run import Run
from bench.record.samples import block_times

SIDES = ("base", "head")


# -- values of launches ---------------------------------------------------------------------------------------


def badness(run: Run, arm: ArmRecord, target: Metric, cache: Path) -> pd.Series[float]:
    """`Metric.badness` of an arm's measured values, indexed by launch and round."""
    if target.name == "AP":
        return pd.Series(target.badness([_average_precision(run, arm, cache)]), index=_index([(0, 0)]))
    if target.name == "max memory":
        values = memory_bytes(arm, arm.memory)  # of both revisions alike, tools of the audit included
        return pd.Series(target.badness(list(values.values())), index=_index([(x, 0) for x in values]))
    seconds = block_times(run.samples(arm.id)).set_index(["launch", "round"])["s_per_step"].sort_index()
    if target.name == "EMA cost":
        plain = _without_ema(run, arm)
        without = block_times(run.samples(plain.id)).set_index(["launch", "round"])["s_per_step"]
        cost = (1 - without / seconds).dropna()
        return pd.Series(target.badness(cost), index=cost.index)
    images = arm.workload.batch_size * arm.workload.ranks
    values_per_block = seconds if target.name == "s/iter" else images / seconds
    return pd.Series(target.badness(values_per_block), index=seconds.index)


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


def _metrics_of(settings: Settings, arm: ArmRecord) -> list[Metric]:
    """EMA cost is a matter of arms that have it."""
    metrics = settings.metrics_of(arm.workload.task)
    return [one for one in metrics if one.name != "EMA cost" or arm.workload.ema]


def interleaved(
    run: Run, pairs: Sequence[str], settings: Settings, cache: Path
) -> dict[tuple[str, str], tuple[Metric, Floats]]:
    """Worsening of each launch by (arm, metric): head against base, paired by launch and round."""
    arms = {arm.id: arm for arm in run.arms()}
    found = {}
    for name in pairs:
        base, head = (arms[side_id(name, side)] for side in SIDES)
        for target in _metrics_of(settings, head):
            worse = (badness(run, head, target, cache) - badness(run, base, target, cache)).dropna()
            launches = worse.index.get_level_values("launch")
            found[name, target.name] = target, decide.launch_means(launches, worse)
    return found


# -- measuring ------------------------------------------------------------------------------------------------


def side_id(arm: str, side: str) -> str:
    return f"{arm}-{side}"
