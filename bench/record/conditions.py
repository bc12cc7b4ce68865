"""What the machine did while a block was timed, from counters of the kernel and of NVIDIA GPUs.

Nothing here decides anything: it tells a reader why a block took long. What a system does not show is left out.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil

from bench.record.energy import visible_gpus
from bench.record.machine import affinity

#: Bits of NVML's clocks-event reasons that slow a busy GPU: power and temperature.
SLOWED = 0x4 | 0x8 | 0x20 | 0x40 | 0x80


class Conditions:
    """Of the machine that an arm runs on.

    Args:
        device: `cpu` or `cuda`.
        ranks: Of the arm; a GPU for each.
        root: Where `proc` and `sys` are.
    """

    def __init__(self, device: str, ranks: int, root: Path = Path("/")) -> None:
        self._root = root
        self._nvml: Any = None
        self._gpus: list[Any] = []
        if device == "cuda":
            with contextlib.suppress(OSError):
                self._nvml, self._gpus = visible_gpus(ranks)

    def read(self, workers: Iterable[int]) -> dict[str, float]:
        """Counters that only grow; seconds but for the faults of these processes, and events."""
        found = {"wall": time.monotonic()}
        with contextlib.suppress(Exception):
            processors = psutil.cpu_times(percpu=True)
            found["stolen"] = sum(processors[number].steal for number in affinity())
        for name in ("cpu", "memory"):
            with contextlib.suppress(Exception):  # no such file in an old kernel
                some = (self._root / "proc/pressure" / name).read_text().split("\n")[0]
                found[name] = int(some.rpartition("total=")[2]) / 1e6
        found["faults"] = sum(map(self._faults, workers))
        with contextlib.suppress(Exception):
            files = self._root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
            if counts := [int(path.read_text()) for path in files]:
                found["throttled"] = sum(counts)
        return found

    def _faults(self, pid: int) -> int:
        """Page faults of a process, which may have ended."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (self._root / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[7]) + int(fields[9])
        return 0

    def since(self, before: Mapping[str, float], workers: Iterable[int], steps: int) -> dict[str, float]:
        """Of the time since a reading, in which so many steps were done: name, with unit → value."""
        now = self.read(workers)
        grown = {name: now[name] - before[name] for name in now if name in before}
        wall = grown["wall"] or 1e-9
        found = {
            "stolen processors": ("stolen", 1 / wall),
            "CPU pressure (%)": ("cpu", 100 / wall),
            "memory pressure (%)": ("memory", 100 / wall),
            "page faults per step": ("faults", 1 / steps),
            "throttled": ("throttled", 1),
        }
        values = {title: grown[name] * unit for title, (name, unit) in found.items() if name in grown}
        with contextlib.suppress(Exception):
            values["clock (MHz)"] = psutil.cpu_freq().current
        return {name: round(value, 3) for name, value in {**values, **self._of_gpus()}.items()}

    def _of_gpus(self) -> dict[str, float]:
        """The lowest clock, and how many GPUs power or temperature slows; at the end of a block."""
        nvml = self._nvml
        with contextlib.suppress(Exception):
            clocks = [nvml.nvmlDeviceGetClockInfo(one, nvml.NVML_CLOCK_SM) for one in self._gpus]
            slowed = [nvml.nvmlDeviceGetCurrentClocksThrottleReasons(one) & SLOWED for one in self._gpus]
            return {"GPU clock (MHz)": min(clocks), "GPUs slowed": sum(map(bool, slowed))}
        return {}
