"""Device, clock and memory of a torch codebase."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import torch

from adapters.torch_facts import peak_flops_per_s
from bench.worker.api import Adapter, Job

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
DTYPES = {"float32": torch.float32, "float64": torch.float64, **HALVES}


def process_memory() -> dict[str, int]:
    """Bytes that this process has on NVIDIA GPUs now, as the driver counts them; empty where it does not tell."""
    with contextlib.suppress(Exception):  # no package, no driver, no permission
        import pynvml

        pynvml.nvmlInit()
        devices = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        processes = [one for device in devices for one in pynvml.nvmlDeviceGetComputeRunningProcesses(device)]
        if used := sum(one.usedGpuMemory for one in processes if one.pid == os.getpid()):
            return {"device": used}
    return {}


class TorchDevice(Adapter):
    """What depends on the device only."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.workload = job.workload
        self.dtype = DTYPES[self.workload["precision"]]
        self.device = torch.device("cpu")

    def chosen_device(self) -> torch.device:
        if self.workload["device"] == "cpu":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise RuntimeError("the workload asks for device: cuda, but torch sees no CUDA device")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.job.rank)))
        torch.cuda.set_device(device)
        return device

    def current_threads(self) -> int:
        return torch.get_num_threads()

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return super().mark()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def marks_ns(self, marks: Sequence[Any]) -> list[int]:
        if self.device.type != "cuda":
            return super().marks_ns(marks)
        return [round(marks[0].elapsed_time(mark) * 1e6) for mark in marks]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_device_memory_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def device_memory(self) -> dict[str, int]:
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.max_memory_allocated(self.device),
            "reserved": torch.cuda.max_memory_reserved(self.device),
            **process_memory(),
        }

    def peak_flops_per_s(self) -> dict[str, float]:
        return peak_flops_per_s(self.device, self.dtype, self.synchronize)
