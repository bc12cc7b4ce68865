"""What the harness itself costs: timed steps against the bare loop, and the processor time of a waiting worker.

    python -m benchmarks.overhead          # steps of counting, and a worker that waits
    python -m benchmarks.overhead cuda     # steps of products on a GPU, marked by CUDA events

The step is about 10 ms. Bare and timed loops alternate in one process, so that the
machine's drift falls on both; the figure is the median of paired differences, with its interval.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
from rich.console import Console

from bench.environments import cache_folder, python_of
from bench.inputs.batches import prepare_batches
from bench.inputs.dataset import open_dataset
from bench.judge.ratio import ratio
from bench.measure.process import LaunchSpec, WorkerGroup
from bench.recipe.codebases import BUILTIN, load_codebase
from bench.recipe.workload import Workload
from bench.worker import probe
from bench.worker.api import Adapter

STEP_S = 0.010
STEPS, PAIRS = 20, 60
IDLE_S = 10.0


class Counting(Adapter):
    """A step of a fixed amount of work (not of a fixed time: that would hide the overhead)."""

    def prepare(self) -> None:
        self.count = 1000
        begin = time.perf_counter()
        while time.perf_counter() - begin < 0.2:  # bring the processor to speed
            self._work()
        begin = time.perf_counter()
        self._work()
        self.count = max(1, int(self.count * STEP_S / (time.perf_counter() - begin)))

    def _work(self) -> None:
        total = 0
        for number in range(self.count):
            total += number

    def describe(self, data: Any) -> Any:
        raise NotImplementedError

    def convert(self, batch: Any) -> Any:
        return batch

    def forward(self, data: Any) -> None:  # noqa: ARG002
        self._work()

    def backward(self, losses: Any) -> None: ...

    def optimizer_step(self) -> None: ...

    def loss_values(self, losses: Any) -> dict[str, float]:  # noqa: ARG002
        return {}


def multiplying(device: str) -> Any:
    """The same with matrix products on a device of torch, whose steps a codebase in torch marks."""
    import torch

    from adapters.torch_device import TorchDevice

    class Multiplying(Counting, TorchDevice):
        def prepare(self) -> None:
            self.device = self.chosen_device()
            self.matrix = torch.rand(2048 if device == "cuda" else 256, 2048, device=self.device)
            self.found = self.matrix @ self.matrix.T
            self.count = 1
            for _ in range(2):  # the first products choose kernels
                self.synchronize()
                begin = time.perf_counter()
                self._work()
                self.synchronize()
                self.count = max(1, round(self.count * STEP_S / (time.perf_counter() - begin)))

        def _work(self) -> None:
            for _ in range(self.count):
                torch.mm(self.matrix, self.matrix.T, out=self.found)

        def squares(self) -> dict[str, float]:
            return {}

    workload = {"task": "train", "ema": False, "seed": 0, "precision": "float32", "device": device}
    return Multiplying(SimpleNamespace(workload=workload, training=True, options={}, rank=0))  # type: ignore[arg-type]


def counting() -> Counting:
    """An adapter that counts."""
    workload = {"task": "train", "ema": False, "seed": 0}
    return Counting(SimpleNamespace(workload=workload, training=True, options={}))  # type: ignore[arg-type]


def step_overhead(adapter: Any, pairs: int = PAIRS) -> dict[str, float]:
    """Relative cost of a step under the probe: block of steps against a bare loop of the same work."""
    adapter.prepare()
    phases = probe.phases_of(adapter, iter(lambda: None, 1))
    bare_s, timed_s = [], []
    for pair in range(pairs):
        for timed in (pair % 2 == 0, pair % 2 == 1):
            adapter.synchronize()
            begin = time.perf_counter()
            if timed:
                block = probe.run_block(adapter, phases, STEPS)
                timed_s.append((block["end_ns"] - block["start_ns"][0]) / 1e9)
            else:
                for _ in range(STEPS):
                    adapter._work()
                adapter.synchronize()
                bare_s.append(time.perf_counter() - begin)
    cost = ratio(np.zeros(pairs, int), np.log(np.array(timed_s) / np.array(bare_s)))
    return {
        "step_ms": 1000 * statistics.median(bare_s) / STEPS,
        "overhead_percent": 100 * (statistics.median(np.array(timed_s) / np.array(bare_s)) - 1),
        "low_percent": 100 * (cost.low - 1),
        "high_percent": 100 * (cost.high - 1),
    }


def empty_step_ns() -> float:
    """Nanoseconds that the probe adds to one step, from blocks whose steps do nothing."""
    adapter = Counting(SimpleNamespace(workload={"ema": False}, training=True, options={}))  # type: ignore[arg-type]
    adapter.count = 0
    phases = probe.phases_of(adapter, iter(lambda: None, 1))
    blocks = [probe.run_block(adapter, phases, 1000) for _ in range(20)]
    return statistics.median((block["end_ns"] - block["start_ns"][0]) / 1000 for block in blocks)


def idle_worker_percent() -> float:
    """Processor time of a worker that waits for its turn, in percent of one processor: a real one (Faster R-CNN of
    `native`, two OpenMP threads), since frameworks may spin where our code sleeps."""
    codebase = load_codebase(BUILTIN / "native")
    size = {"images": 2, "size": [96, 128]}
    workload = Workload.model_validate({"model": "faster_rcnn_r50_fpn", "input": size})
    dataset = open_dataset(workload.input, workload.task, cache_folder())
    with tempfile.TemporaryDirectory() as folder:
        variables = {"OMP_NUM_THREADS": "2"}
        spec = LaunchSpec(python_of(codebase), "local", 1, variables, Path(folder) / "log")
        job = {
            "workload": workload.model_dump(mode="json"),
            "options": {},
            "model": codebase.models[workload.model].model_dump(),
            "classes": list(dataset.classes),
            "category_ids": list(dataset.category_ids),
            "dataset": {},
            "weights": None,
            "batches": str(prepare_batches(dataset, workload, cache_folder())),
            "threads": 2,
            "rank": 0,
            "world_size": 1,
            "scratch": folder,
        }
        with WorkerGroup(spec) as group:
            group.start(60)
            group.request("prepare", 120, adapter_file=str(codebase.adapter_file), job=job)
            group.request("run_block", 120, steps=1, settle=1)
            (worker,) = (p for p in psutil.Process().children() if "bench.worker" in p.cmdline())
            before = worker.cpu_times()
            time.sleep(IDLE_S)
            after = worker.cpu_times()
    used_s = (after.user - before.user) + (after.system - before.system)
    return 100 * used_s / IDLE_S


def main() -> None:
    console = Console(highlight=False)
    device = sys.argv[1] if len(sys.argv) > 1 else None
    cost = step_overhead(multiplying(device), PAIRS // 2) if device else step_overhead(counting())
    where = f" on {device}" if device else ""
    console.print(
        f"step{where} of {cost['step_ms']:.1f} ms under the probe: {cost['overhead_percent']:+.4f} % of the bare loop"
        f" [{cost['low_percent']:+.4f}, {cost['high_percent']:+.4f}] (target: at most 0.1 %)"
    )
    if device:
        return
    empty_ns = empty_step_ns()
    console.print(f"an empty step costs {empty_ns:.0f} ns = {100 * empty_ns / (STEP_S * 1e9):.4f} % of 10 ms")
    console.print(f"a waiting worker uses {idle_worker_percent():.3f} % of a processor (target: under 1 %)")


if __name__ == "__main__":
    main()
