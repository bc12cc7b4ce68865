"""Does every family train and infer on the device? `python -m benchmarks.gpu.smoke DEVICE FILE SECONDS`.

One JSON line per model and precision: finite losses of three steps, detections, host waits of a step (as CUDA tells
them; null on a CPU), and the ten operations that take most of a step. What the file has is not done again. On a CPU
images, regions and backbones are small.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gpu.stages import FAMILIES
from benchmarks.overfit import look_at_fewer_regions
from detectors import Target, build
from detectors.backbones.resnet import BLOCKS

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS, CLASSES = 3, 80


def targets_of(model: torch.nn.Module, size: int, device: str) -> list[Target]:
    """Two objects in each of two images; what a loader adds to them for a model."""
    boxes = torch.tensor([[5.0, 5, 40, 50], [20, 10, 60, 40]], device=device) * (size / 64)
    masks = torch.zeros(2, size, size, dtype=torch.uint8, device=device)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    found = Target(boxes, torch.tensor([0, 1], device=device), masks)
    if type(model).__name__ == "HTC":
        found = found._replace(semantic=torch.zeros(size, size, dtype=torch.int64, device=device))
    targets = [found, found]
    return model.prepare(targets, (size, size)) if hasattr(model, "prepare") else targets


def waits_in(step: Any) -> int:
    """How often a call makes the host wait, as CUDA's own watch tells."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(one.message) for one in said)


def kernels_of(step: Any, device: str) -> list[tuple[str, float]]:
    """The ten operations that take most time of their own in a call, with milliseconds."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        step()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: -getattr(row, name))[:10]
    return [(row.key, round(getattr(row, name) / 1000, 3)) for row in rows]


def try_model(name: str, precision: str, device: str, size: int) -> dict[str, Any]:
    """Three training steps and one inference of a model."""
    torch.manual_seed(0)
    size = 300 if name.startswith("ssd300") else size
    with patch.dict(BLOCKS, {50: (1, 1, 1, 1)}) if device == "cpu" else nullcontext():
        model = build(name, num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    if device == "cpu":
        look_at_fewer_regions(model, 16, 32)
    images = torch.randn(2, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[size, size]] * 2, device=device)
    targets = targets_of(model, size, device)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9)
    losses: list[Tensor] = []
    autocast = torch.autocast(device, PRECISIONS[precision], enabled=precision != "float32")

    def step() -> None:
        with autocast:
            loss = sum(model.losses(images, sizes, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())

    model.train()
    step()
    waits = waits_in(step) if device == "cuda" else step()
    kernels = kernels_of(step, device)
    model.eval()
    with torch.no_grad(), autocast:
        found = model.postprocess(model.network(images, sizes), [(size, size)] * 2, [(size, size)] * 2)
    finite = all(bool(torch.isfinite(loss)) for loss in losses)
    finite = finite and all(bool(torch.isfinite(one.boxes).all()) for one in found)
    values = [float(loss) for loss in losses]
    return {"finite": finite, "losses": values, "host_waits": waits, "top": kernels}


def main(device: str, path: Path, seconds: float) -> None:
    """Try what the file does not have, as long as there is time."""
    end = time.monotonic() + seconds
    done = {(one["model"], one["precision"], one["device"]) for one in read(path)}
    size = 64 if device == "cpu" else 512
    for precision in PRECISIONS:
        for name in FAMILIES:
            if (name, precision, device) in done or time.monotonic() > end:
                continue
            result: dict[str, Any] = {"model": name, "precision": precision, "device": device}
            try:
                result |= try_model(name, precision, device, size)
            except Exception as error:
                traceback.print_exc()
                result |= {"finite": False, "error": f"{type(error).__name__}: {error}"}
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Results so far; a torn last line is none."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
