"""A codebase that is wrapped, run by the python of its own environment on small generated images.

A test hands a piece of code to that python; what it leaves in `result` (JSON) or `arrays` (npz) comes back.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.inputs.batches import prepare_batches
from bench.inputs.dataset import open_dataset
from bench.recipe.codebases import Codebase
from bench.recipe.workload import Input, Workload

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import json, os, sys
import numpy as np
import torch
from bench.worker.__main__ import load_module
from bench.worker.api import Job
from bench.worker.batches import load_batches

torch.set_num_threads(1)
jobs, adapter_file, out = json.load(open(sys.argv[1])), sys.argv[2], sys.argv[3]
module = load_module(adapter_file)
result, arrays = {}, {}

def make(job, **workload):
    adapter = module.Adapter(Job(**{**job, "workload": {**job["workload"], **workload}}))
    adapter.prepare()
    return adapter, [adapter.convert(batch) for batch in load_batches(job["batches"], job["rank"], job["world_size"])]

def step(adapter, data):
    losses = adapter.forward(adapter.load(data))
    adapter.backward(losses)
    adapter.optimizer_step()
    if adapter.workload["ema"]:
        adapter.ema_update()
    return adapter.loss_values(losses)

def predict(adapter, data):
    return adapter.detections(adapter.postprocess(adapter.network(data), data), data)

def keep_gradients(model, losses, prefix="gradient of ", at_most=None):
    # in arrays, of each parameter: all values, or about so many, evenly spread
    model.zero_grad()
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            value = parameter.grad
            if at_most:
                value = value.flatten()[:: max(1, value.numel() // at_most)]
            arrays[prefix + name] = value.numpy()
"""
EPILOGUE = """
json.dump(result, open(out + ".json", "w"))
np.savez(out + ".npz", **arrays)
"""


@dataclass
class Peer:
    """Runs code in the environment of a codebase; ``cache`` in the folder holds the prepared batches."""

    codebase: Codebase
    python: Path
    folder: Path

    def job(self, model: str, **changes: Any) -> dict[str, Any]:
        """A job as the session would send it, of two generated images of 64×64 unless changed."""
        options = changes.pop("options", {})
        job_changes = {key: changes.pop(key) for key in ("weights", "rank", "world_size") if key in changes}
        input = {"dataset": "shapes", "images": 2, "size": (64, 64), **changes.pop("input", {})}
        fields = {"weights": "random", "batch_size": 1, "frozen_stages": 1, **changes}
        workload = Workload(model=model, input=Input(**input), **fields)
        dataset = open_dataset(workload.input, workload.task, self.folder / "cache")
        offer = self.codebase.models.get(model)
        return {
            "workload": workload.model_dump(mode="json"),
            "options": {**(offer.options if offer else {}), **options},
            "model": offer.model_dump() if offer else {"name": model.partition("://")[2]},
            "classes": list(dataset.classes),
            "category_ids": list(dataset.category_ids),
            "dataset": {
                "images": str(dataset.images),
                "annotations": str(dataset.annotations),
                "image_ids": list(dataset.image_ids),
            },
            "weights": None,
            "batches": str(prepare_batches(dataset, workload, self.folder / "cache")),
            "threads": 1,
            "rank": 0,
            "world_size": 1,
            "scratch": str(self.folder),
            **job_changes,
        }

    def start(self, code: str, name: str, jobs: Any, **variables: str) -> subprocess.Popen[str]:
        (self.folder / f"{name}.jobs").write_text(json.dumps(jobs))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
        arguments = [
            str(self.folder / f"{name}.jobs"),
            str(self.codebase.adapter_file),
            str(self.folder / name),
        ]
        return subprocess.Popen(
            [str(self.python), "-W", "ignore", "-c", PRELUDE + code + EPILOGUE, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[str], name: str) -> tuple[Any, dict[str, np.ndarray]]:
        output, _ = process.communicate(timeout=540)
        assert process.returncode == 0, output[-3000:]
        with np.load(self.folder / f"{name}.npz") as arrays:
            return json.loads((self.folder / f"{name}.json").read_text()), dict(arrays)

    def run(self, code: str, jobs: Any) -> tuple[Any, dict[str, np.ndarray]]:
        return self.finish(self.start(code, "out", jobs), "out")


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
