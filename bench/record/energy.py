"""Energy of a block: counters of the processors (RAPL) and of NVIDIA GPUs (NVML), where they can be read.

A processor's counter is of its whole package: idle power and other processes are in it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

#: Joules since a counter was 0, and at which it begins anew.
Counters = list[tuple[Callable[[], float], float]]


class Meter:
    """The counters of one arm's devices on this machine.

    Attributes:
        missing: Device → why its energy is not known.
    """

    def __init__(self, device: str, ranks: int, nodes: int = 1, root: Path = Path("/")) -> None:
        self.missing: dict[str, str] = {}
        self._counters: dict[str, Counters] = {}
        sources: dict[str, Callable[[], Counters]] = {"CPU": partial(_packages, root)}
        if device == "cuda":
            sources["GPU"] = partial(_gpus, ranks)
        for name, source in sources.items():
            try:
                if nodes > 1:
                    raise OSError("the arm runs on several machines")
                self._counters[name] = source()
                self.read()
            except Exception as error:  # no counter, no permission, no driver: none of it ends a measurement
                self._counters.pop(name, None)
                self.missing[name] = str(error)

    def read(self) -> dict[str, list[float]]:
        """Joules of each counter since it last was 0, by device."""
        return {name: [read() for read, _ in counters] for name, counters in self._counters.items()}

    def since(self, before: Mapping[str, list[float]]) -> dict[str, float]:
        """Joules by device since a reading; of a counter that began anew meanwhile, with what it holds at most."""
        spent = {}
        for name, values in self.read().items():
            pairs = zip(before[name], values, self._counters[name], strict=True)
            spent[name] = sum(now - then + (most if now < then else 0.0) for then, now, (_, most) in pairs)
        return spent


def _packages(root: Path) -> Counters:
    """RAPL of every processor package: its counter, and joules at which it begins anew."""
    folder = root / "sys/class/powercap"
    domains = sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1)
    found = [path for path in domains if (path / "name").read_text().startswith("package")]
    if not found:
        raise OSError("this machine shows no RAPL counters in /sys/class/powercap")
    if not os.access(found[0] / "energy_uj", os.R_OK):
        raise OSError("only root may read the RAPL counters in /sys/class/powercap")

    return [(partial(_joules, one / "energy_uj"), _joules(one / "max_energy_range_uj")) for one in found]


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def visible_gpus(ranks: int) -> tuple[Any, list[Any]]:
    """NVML, and its handles of the GPUs that the ranks see.

    Raises:
        OSError: NVML cannot be used.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        indices = [int(one) for one in visible] if all(map(str.isdecimal, visible)) else list(range(ranks))
        return pynvml, [pynvml.nvmlDeviceGetHandleByIndex(index) for index in indices[:ranks]]
    except Exception as error:
        raise OSError(f"NVML cannot be used: {error}") from None


def _gpus(ranks: int) -> Counters:
    """NVML's counters, which never begin anew while the driver is loaded."""
    nvml, devices = visible_gpus(ranks)

    def joules(device: Any) -> float:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(device)) / 1e3

    return [(partial(joules, device), 0.0) for device in devices]
