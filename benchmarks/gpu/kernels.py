"""Which kernels take a training step of an arm: `python -m benchmarks.gpu.kernels DEVICE FILE CODEBASE`.

One JSON line: the ten kernels (on a CPU: operations) that take most time of a step of Faster R-CNN at the settings of
the table, by torch's profiler. A profiler slows a step, so nothing here is a step's time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bench.environments import cache_folder
from bench.inputs.batches import prepare_batches
from bench.inputs.dataset import open_dataset
from bench.recipe.codebases import BUILTIN, load_codebase
from bench.recipe.workload import Workload
from bench.worker import probe
from bench.worker.__main__ import Rotation, load_module
from bench.worker.api import Job
from bench.worker.batches import load_batches
from benchmarks.gpu.smoke import kernels_of
from benchmarks.gpu.stages import TABLE

WARM_UP = 3


def prepared(device: str, name: str) -> Any:
    """The adapter of a codebase with its model and converted batches, and the phases of its step."""
    size: Any = [128, 128] if device == "cpu" else {"short": 800, "long": 1333}
    settings = {"model": TABLE[0], "device": device, "input": {"images": 4, "size": size}}
    workload = Workload.model_validate(settings)
    codebase, dataset = load_codebase(BUILTIN / name), open_dataset(workload.input, "train", cache_folder())
    offer = codebase.models[workload.model]
    job = Job(
        workload=workload.model_dump(mode="json"),
        options={**offer.options, **({} if device == "cpu" else {"tf32": False})},
        model=offer.model_dump(),
        classes=dataset.classes,
        category_ids=dataset.category_ids,
        dataset={},
        weights=None,
        batches=str(prepare_batches(dataset, workload, cache_folder())),
        threads=1,
        rank=0,
        world_size=1,
        scratch=str(cache_folder()),
    )
    adapter = load_module(str(codebase.adapter_file)).Adapter(job)
    adapter.prepare()
    source = Rotation([adapter.convert(batch) for batch in load_batches(job.batches, 0, 1)])
    return adapter, probe.phases_of(adapter, source)


def main(device: str, path: Path, name: str) -> None:
    """Write the kernels of one codebase."""
    adapter, phases = prepared(device, name)
    probe.run_steps(phases, WARM_UP, before=lambda: None)
    adapter.synchronize()
    top = kernels_of(lambda: probe.run_steps(phases, 1, before=lambda: None), device)
    with path.open("a") as file:
        file.write(f"\n{json.dumps({'codebase': name, 'model': TABLE[0], 'device': device, 'top': top})}\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
