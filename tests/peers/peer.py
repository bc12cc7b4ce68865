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
from bench.inputs.weights import to_codebase
from bench.recipe.codebases import Codebase
from bench.recipe.workload import Input, Workload

ROOT = Path(__file__).resolve().parents[2]

PRELUDE = """
import json, os, sys
import numpy as np
from bench.worker.__main__ import load_module
from bench.worker.api import Job
from bench.worker.batches import load_batches

try:
    import torch
    torch.set_num_threads(1)
except ImportError:  # of a codebase without torch
    pass
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
        try:
            output, _ = process.communicate(timeout=540)
        finally:
            process.kill()  # one that is out of time would go on for long
        assert process.returncode == 0, output[-3000:]
        with np.load(self.folder / f"{name}.npz") as arrays:
            return json.loads((self.folder / f"{name}.json").read_text()), dict(arrays)

    def run(self, code: str, jobs: Any) -> tuple[Any, dict[str, np.ndarray]]:
        return self.finish(self.start(code, "out", jobs), "out")


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@dataclass(frozen=True)
class NativeMask:
    """A Mask R-CNN of `detectors` on one batch, and a job that gives its weights to another codebase."""

    job: dict[str, Any]
    batch: Any
    maps: Any
    dense: Any
    anchors: np.ndarray
    found: Any

    def assert_proposals_agree(self, theirs: dict[str, np.ndarray]) -> None:
        """Features, scores and offsets of every level are equal; anchors are, up to rounding."""
        for level, (feature, (scores, deltas)) in enumerate(zip(self.maps, self.dense, strict=True)):
            assert relative(feature.numpy(), theirs[f"feature{level}"]) < 1e-4
            flat = theirs[f"scores{level}"].transpose(0, 2, 3, 1).reshape(2, -1)
            assert relative(scores.numpy(), flat) < 1e-4
            flat = theirs[f"deltas{level}"].transpose(0, 2, 3, 1).reshape(2, -1, 4)
            assert relative(deltas.numpy(), flat) < 1e-4
        # torchvision rounds the anchor around (0, 0), half to even, and then moves it: so do both here.
        assert 0.1 < np.abs(theirs["anchors"] - self.anchors).max() <= 0.5


def native_mask_rcnn(peer: Peer, codebase: str, options: dict[str, Any]) -> NativeMask:
    """What `detectors` computes with seeded weights, which the codebase is given as well."""
    import torch

    import detectors
    from bench.worker.batches import load_batches

    model = "mask_rcnn_r50_fpn"
    job = peer.job(model, task="infer", input={"size": (128, 128)}, batch_size=2, options=options)
    batch = load_batches(job["batches"], 0, 1)[0]
    images, sizes = torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes)
    torch.manual_seed(3)
    ours = detectors.build(model, num_classes=len(job["classes"]))
    detectors.calibrate(ours, images, sizes)
    ours.eval()
    with torch.no_grad():
        ours.box_head.deltas.weight.mul_(10)  # so that boxes of classes differ
        pyramid = ours.features(images)
        dense = ours.rpn.dense(pyramid)
        anchors = ours.rpn.anchors(pyramid, (128, 128)).numpy()
        found = ours.postprocess(
            ours.network(images, sizes), batch.image_sizes.tolist(), batch.original_sizes.tolist()
        )
    state = {name: value.numpy() for name, value in ours.state_dict().items()}
    job["weights"] = str(peer.folder / "weights.npz")
    np.savez(job["weights"], **to_codebase(codebase, model, state))
    return NativeMask(job, batch, pyramid.maps, dense, anchors, found)


def assert_solov2_agrees(model: Any, batch: Any, theirs: dict[str, np.ndarray]) -> tuple[Any, Any, Any]:
    """Raw outputs of a SOLOv2 of `detectors` and of another codebase are equal. Returns images, sizes, targets."""
    import torch

    import detectors

    images, sizes = torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes)
    with torch.no_grad():
        raw = model.network(images, sizes)
    assert relative(raw.features.numpy(), theirs["features"]) < 1e-4
    for level in range(5):
        assert relative(raw.kernels[level].numpy(), theirs[f"kernels{level}"]) < 1e-4
        assert relative(raw.classes[level].numpy(), theirs[f"classes{level}"]) < 1e-4
    truth = zip(batch.boxes, batch.labels, batch.masks, strict=True)
    targets = [detectors.Target(*(torch.from_numpy(np.array(value)) for value in one)) for one in truth]
    return images, sizes, targets


def assert_gradients(
    model: Any,
    codebase: str,
    name: str,
    theirs: dict[str, np.ndarray],
    prefix: str,
    tolerance: float,
) -> None:
    """All gradients that ``theirs`` has behind ``prefix``."""
    ours = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
    ours = to_codebase(codebase, name, ours)
    references = {key.removeprefix(prefix): theirs[key] for key in theirs if key.startswith(prefix)}
    # Frozen parameters have none, neither there nor here.
    assert set(ours) == set(references)
    assert len(references) > 80
    for key, reference in references.items():
        error = np.linalg.norm(ours[key] - reference) / np.linalg.norm(reference)
        assert error < tolerance, f"{prefix}{key}: {error:.1e}"
