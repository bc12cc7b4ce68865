"""PaddleDetection, driven over the worker's own protocol in its own environment, on small generated images."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.environments import python_of
from bench.inputs import weights
from bench.inputs.batches import prepare_batches
from bench.inputs.dataset import open_dataset
from bench.measure.process import LaunchSpec, WorkerGroup
from bench.recipe.codebases import BUILTIN, load_codebase
from bench.recipe.workload import Input, Workload
from bench.worker.api import Job

PADDLEDET = load_codebase(BUILTIN / "paddledet")


DEADLINE_S = 240.0


@dataclasses.dataclass
class Bench:
    """Starts workers on prepared batches of generated images."""

    folder: Path

    def job(self, workload: Workload, codebase: Any, rank: int = 0, **changes: Any) -> dict[str, Any]:
        dataset = open_dataset(workload.input, workload.task, self.folder)
        offer = codebase.models[workload.model]
        job = Job(
            workload=workload.model_dump(mode="json"),
            options={},
            model=offer.model_dump(),
            classes=dataset.classes,
            category_ids=dataset.category_ids,
            dataset={
                "images": str(dataset.images),
                "annotations": str(dataset.annotations),
                "image_ids": list(dataset.image_ids),
            },
            weights=None,
            batches=str(prepare_batches(dataset, workload, self.folder)),
            threads=1,
            rank=rank,
            world_size=workload.ranks,
            scratch=str(self.folder),
        )
        return dataclasses.asdict(dataclasses.replace(job, **changes))

    @contextlib.contextmanager
    def worker(self, workload: Workload, codebase: Any = PADDLEDET, **changes: Any) -> Iterator[WorkerGroup]:
        """A prepared worker (one per rank), or the test fails with what it printed."""
        log = self.folder / "worker.log"
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        spec = LaunchSpec(python_of(codebase), codebase.launcher, workload.ranks, threads, log)
        jobs = [{"job": self.job(workload, codebase, rank, **changes)} for rank in range(workload.ranks)]
        try:
            with WorkerGroup(spec) as group:
                group.start(DEADLINE_S)
                group.request("prepare", DEADLINE_S, adapter_file=str(codebase.adapter_file), by_rank=jobs)
                yield group
        except Exception as error:
            raise AssertionError(f"{error}\n{log.read_text()[-3000:]}") from error

    def step(self, group: WorkerGroup) -> list[dict[str, float]]:
        """One training step; the losses of each rank."""
        return [reply["losses"] for reply in group.request("run_block", DEADLINE_S, steps=1, settle=0)]

    def predictions(self, group: WorkerGroup, name: str) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.json"
        group.request("predict", DEADLINE_S, path=str(path))
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found

    def weights(self, group: WorkerGroup, name: str) -> dict[str, np.ndarray]:
        """Of the first rank."""
        path = self.folder / f"{name}.npz"
        group.request("save", DEADLINE_S, path=str(path))
        with np.load(path) as arrays:
            return dict(arrays)


def workload(model: str, **changes: Any) -> Workload:
    size = (300, 300) if model == "ssd300_vgg16" else (96, 128)
    fields = {"input": Input(images=2, size=size), "weights": "random", **changes}
    return Workload(model=model, **fields)


def canonical_weights(folder: Path, model: str, classes: int, codebase: str) -> str:
    """Seeded weights of `detectors` as a file in the names of a codebase."""
    torch = pytest.importorskip("torch")
    detectors = pytest.importorskip("detectors")
    torch.manual_seed(0)
    network = detectors.build(model, num_classes=classes)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith("conv3.norm.weight"):  # or each of the 16 blocks would double the variance
                value.fill_(0.25)
        network.box_head.deltas.weight.mul_(10)  # so that the boxes of classes differ
    state = {name: value.numpy() for name, value in network.state_dict().items()}
    target = folder / f"{codebase}.npz"
    np.savez(target, **weights.to_codebase(codebase, model, state))
    return str(target)
