"""What the machine did during a block, from files as Linux has them and from an NVML as its package has it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bench.record import conditions
from bench.record.conditions import Conditions


def kernel(root: Path, waited_us: int, faults: tuple[int, int], throttled: int) -> None:
    """The files of a kernel, with process 7 (its name holds a bracket)."""
    files = {
        "proc/pressure/cpu": f"some avg10=1.00 avg60=1.00 avg300=1.00 total={waited_us}\nfull total=0\n",
        "proc/7/stat": f"7 (a) b) S 1 1 1 0 -1 0 {faults[0]} 0 {faults[1]} 0 5 5\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": f"{throttled}\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_counters_grow_into_shares_and_numbers_per_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(conditions.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(psutil, "cpu_freq", lambda: SimpleNamespace(current=2596.1))
    kernel(tmp_path, 1_000_000, (50, 1), 2)
    machine = Conditions("cpu", 1, tmp_path)
    before = machine.read([7])
    kernel(tmp_path, 3_000_000, (88, 3), 5)
    now[0] = 110.0
    found = machine.since(before, [7], steps=4)
    assert found["CPU pressure (%)"] == 20.0
    assert found["page faults per step"] == 10.0
    assert found["throttled"] == 3
    assert found["clock (MHz)"] == 2596.1
    assert 0 <= found["stolen processors"] < 1
    assert "memory pressure (%)" not in found, "this kernel does not show it"


def test_gpus_tell_their_clock_and_what_slows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, hot = 0x1, 0x20
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        NVML_CLOCK_SM=1,
        nvmlDeviceGetClockInfo=lambda device, _: (1980, 1200)[device],
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda device: (idle, hot)[device],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    machine = Conditions("cuda", 2)
    found = machine.since(machine.read([]), [], steps=1)
    assert (found["GPU clock (MHz)"], found["GPUs slowed"]) == (1200, 1)


def test_a_machine_without_all_of_it_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = Conditions("cuda", 1, tmp_path)
    assert "GPU clock (MHz)" not in machine.since(machine.read([]), [], steps=1)
