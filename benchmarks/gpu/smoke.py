"""Does every family train and infer on the device? `python -m benchmarks.gpu.smoke DEVICE FILE SECONDS`.

One JSON line per model and precision: finite losses of three steps, detections, host waits of a step (as CUDA tells
them; null on a CPU), and the ten kernels that take most of a step (on a CPU: operations). What the file has is not done
again. It needs torch and torchvision only. On a CPU images, regions and backbones are small.
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

from benchmarks.gpu.stages import ABSENT, BROKEN, FAMILIES, read
from detectors import Target, build
from detectors.backbones.resnet import BLOCKS
from detectors.box_head import BoxHead
from detectors.rpn import RPN
from detectors.sampling import BalancedSampler

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS, CLASSES = 3, 80


def targets_of(model: torch.nn.Module, size: int, device: str) -> list[Target]:
    """Two objects in each of two images; what a loader adds to them for a model."""
    boxes = torch.tensor([[5.0, 5, 40, 50], [20, 10, 60, 40]]) * (size / 64)
    masks = torch.zeros(2, size, size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    found = Target(boxes, torch.tensor([0, 1]), masks)
    if type(model).__name__ == "HTC":
        found = found._replace(semantic=torch.zeros(size, size, dtype=torch.int64))
    targets = [found, found]
    targets = model.prepare(targets, (size, size)) if hasattr(model, "prepare") else targets
    return [Target(*(None if one is None else one.to(device) for one in target)) for target in targets]


def look_at_less(model: torch.nn.Module) -> None:
    """Few regions and proposals, as a CPU needs them."""
    for module in model.modules():
        if isinstance(module, BoxHead):
            module.sampler = BalancedSampler(16, 0.25)
        if isinstance(module, RPN):
            module.post_nms = module.post_nms[0], 32


def waits_in(step: Any) -> int:
    """How often a call makes the host wait, as CUDA's own watch tells."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(one.message) for one in said)


def kernels_of(step: Any, device: str) -> list[tuple[str, float]]:
    """The ten kernels (on a CPU: operations) that take most time of their own in a call, with milliseconds."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as profile:
        step()
        if device == "cuda":
            torch.cuda.synchronize()
    name = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    rows = [row for row in profile.key_averages() if row.device_type.name.lower() == device]
    rows = sorted(rows, key=lambda row: -getattr(row, name))[:10]
    return [(row.key, round(getattr(row, name) / 1000, 3)) for row in rows]


def try_model(name: str, precision: str, device: str, size: int) -> dict[str, Any]:
    """Three training steps and one inference of a model."""
    torch.manual_seed(0)
    size = 300 if name.startswith("ssd300") else size
    with patch.dict(BLOCKS, {50: (1, 1, 1, 1)}) if device == "cpu" else nullcontext():
        model = build(name, num_classes=CLASSES).to(device, memory_format=torch.channels_last)
    if device == "cpu":
        look_at_less(model)
    images = torch.randn(2, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    sizes = torch.tensor([[size, size]] * 2, device=device)
    targets = targets_of(model, size, device)
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, fused=True)
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


def main(device: str, path: Path, seconds: float) -> int:
    """Try what the file does not have, as long as there is time. Returns the exit code."""
    if device == "cuda" and not torch.cuda.is_available():
        return ABSENT
    end = time.monotonic() + seconds
    done = {(one["model"], one["precision"], one["device"]) for one in read(path)}
    for precision in PRECISIONS:
        for name in FAMILIES:
            if (name, precision, device) in done or time.monotonic() > end:
                continue
            began, broken = time.monotonic(), False
            result: dict[str, Any] = {"model": name, "precision": precision, "device": device}
            try:
                result |= try_model(name, precision, device, 64 if device == "cpu" else 512)
            except Exception as error:
                traceback.print_exc()
                result |= {"finite": False, "error": f"{type(error).__name__}: {error}"}
                broken = not usable(device)
            result["seconds"] = round(time.monotonic() - began, 1)
            with path.open("a") as file:
                file.write(f"\n{json.dumps(result)}\n")  # after a line that was torn
            if broken:
                return BROKEN
    return 0


def usable(device: str) -> bool:
    """Whether the device still answers: after a failed assertion in a kernel it never does again."""
    try:
        torch.ones(1, device=device).sum().item()
    except Exception:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
