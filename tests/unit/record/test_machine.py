"""Provenance: what is recorded is true, and what cannot be read never ends a measurement."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from bench.record import machine


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    """A Linux machine of two cores with everything readable."""
    files = {
        "proc/cpuinfo": "processor: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel name\t: AMD EPYC 7763\n"
        "flags\t\t: fpu avx avx2 fma hypervisor\n\nprocessor: 1\nmodel name\t: AMD EPYC 7763\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "performance\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_governor": "powersave\n",
        "sys/devices/system/cpu/smt/active": "1\n",
        "sys/devices/system/cpu/cpufreq/boost": "0\n",
        "sys/devices/system/cpu/cpu0/cache/index0/level": "1\n",
        "sys/devices/system/cpu/cpu0/cache/index0/type": "Data\n",
        "sys/devices/system/cpu/cpu0/cache/index0/size": "48K\n",
        "sys/devices/system/cpu/cpu0/cache/index3/level": "3\n",
        "sys/devices/system/cpu/cpu0/cache/index3/type": "Unified\n",
        "sys/devices/system/cpu/cpu0/cache/index3/size": "32M\n",
        "sys/fs/cgroup/cpu.max": "150000 100000\n",
        "sys/fs/cgroup/memory.max": "1073741824\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_facts_that_explain_a_cpus_speed_are_recorded(sysfs: Path) -> None:
    (sysfs / "run").mkdir()
    (sysfs / "run/.containerenv").write_text(f'engine="podman"\nimageid="{"ab" * 32}"\n')
    facts = machine.describe_machine(sysfs)
    assert facts["os"]["image_digest"] == "sha256:" + "ab" * 32
    assert "host" not in facts
    expected = {
        "model": "AMD EPYC 7763",
        "vendor": "AuthenticAMD",
        "governor": "performance, powersave",
        "smt": True,
        "boost": False,
        "virtual": True,
        "instruction_sets": ["avx", "avx2", "fma"],
        "caches_bytes": {"L1d": 48 << 10, "L3": 32 << 20},
        "quota_cores": 1.5,
    }
    assert {key: facts["cpu"][key] for key in expected} == expected
    assert facts["memory"]["limit_bytes"] == 1 << 30
    assert facts["memory"]["transparent_huge_pages"] == "madvise"


def test_older_control_groups_limits_are_seen_too(sysfs: Path) -> None:
    (sysfs / "sys/fs/cgroup/cpu.max").unlink()
    (sysfs / "sys/fs/cgroup/cpu").mkdir()
    (sysfs / "sys/fs/cgroup/cpu/cpu.cfs_period_us").write_text("100000\n")
    quota = sysfs / "sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    quota.write_text("50000\n")
    assert machine.describe_machine(sysfs)["cpu"]["quota_cores"] == 0.5
    quota.write_text("-1\n")
    assert "quota_cores" not in machine.describe_machine(sysfs)["cpu"]


def test_machine_that_tells_nothing_is_missing_keys_and_not_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError("not for you")

    for name in ("cpu_count", "cpu_freq", "virtual_memory", "swap_memory", "process_iter", "Process"):
        monkeypatch.setattr(psutil, name, refuse)
    for name in ("node", "system", "release", "machine", "processor", "libc_ver", "freedesktop_os_release"):
        monkeypatch.setattr(machine.platform, name, refuse)
    monkeypatch.setattr(os, "getloadavg", refuse)
    monkeypatch.setattr(os, "sched_getaffinity", refuse)
    monkeypatch.setattr(machine, "_model_from_cpuinfo", refuse)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    facts = machine.describe_machine(tmp_path)
    assert "model" not in facts.get("cpu", {})
    assert facts.get("memory", {}) == {}
    assert machine.foreign_load(0.01) == []
    assert len(machine.fingerprint(facts)) == 12


def test_describing_this_machine_can_be_stored_as_json() -> None:
    start = time.process_time()
    facts = machine.describe_machine()
    assert time.process_time() - start < 0.5
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cpu"]["model"]
    assert facts["cpu"]["logical_cores"] == os.cpu_count()
    assert facts["memory"]["total_bytes"] > 1 << 28
    assert facts["os"]["system"]
    assert machine.affinity() == facts["cpu"]["affinity"]


# -- GPUs, told by a driver that is not there -----------------------------------------------------------


class FakeNvml(SimpleNamespace):
    """What nvidia-ml-py answers on a machine with one GPU; methods that are not here raise AttributeError."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, **answers: Any) -> None:
        super().__init__(shut_down=False, **answers)

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut_down = True

    def nvmlSystemGetDriverVersion(self) -> bytes:
        return b"580.65.06"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13020

    def nvmlDeviceGetCount(self) -> int:
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return f"gpu{index}"

    def nvmlDeviceGetName(self, device: str) -> str:
        return "NVIDIA A100-SXM4-80GB"

    def nvmlDeviceGetMemoryInfo(self, device: str) -> Any:
        return SimpleNamespace(total=80 << 30, used=3 << 30)

    def nvmlDeviceGetClockInfo(self, device: str, kind: int) -> int:
        return {1: 1200, 2: 1593}[kind]

    def nvmlDeviceGetMaxClockInfo(self, device: str, kind: int) -> int:
        if kind == 2:
            raise RuntimeError("Not Supported")
        return 1410

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: str) -> int:
        return 0x4 | 0x40

    def nvmlDeviceGetComputeRunningProcesses(self, device: str) -> list[Any]:
        return [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=1 << 30),
            SimpleNamespace(pid=os.getppid(), usedGpuMemory=2 << 30),
        ]


def test_a_gpus_model_clocks_throttling_and_other_users_are_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    facts = machine.describe_machine()
    assert facts["gpu_driver"] == "580.65.06"
    assert facts["cuda"] == "13.2"
    (gpu,) = facts["gpus"]
    assert gpu["model"] == "NVIDIA A100-SXM4-80GB"
    assert gpu["memory_total_bytes"] == 80 << 30
    assert gpu["clock_mhz"] == {"sm": 1200, "memory": 1593}
    assert gpu["max_clock_mhz"] == {"sm": 1410}, "what NVML does not support is left out"
    assert gpu["throttle"] == ["software power cap", "hardware thermal slowdown"]
    name = psutil.Process(os.getppid()).name()
    assert gpu["other_processes"] == [{"pid": os.getppid(), "name": name, "memory_bytes": 2 << 30}]
    assert "power_w" not in gpu
    assert fake.shut_down


def test_a_driver_that_does_not_start_means_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeNvml):
        def nvmlInit(self) -> None:
            raise RuntimeError("Driver/library version mismatch")

    monkeypatch.setitem(sys.modules, "pynvml", Broken())
    assert machine.gpu_facts() == {}


# -- fingerprint, load ----------------------------------------------------------------------------------


def test_fingerprint_knows_hardware_and_not_its_state_or_name() -> None:
    facts: dict[str, Any] = {
        "host": "a",
        "cpu": {"model": "X", "logical_cores": 2, "clock_mhz": 2600},
        "memory": {"total_bytes": 25_276_063_744, "available_bytes": 1},
        "gpus": [{"model": "A100", "memory_total_bytes": 80 << 30, "temperature_c": 30}],
        "load_average": [0.0],
    }
    later = {
        "host": "b",
        "cpu": {"model": "X", "logical_cores": 2, "clock_mhz": 1000},
        "memory": {"total_bytes": 25_276_100_000, "available_bytes": 2},
        "gpus": [{"model": "A100", "memory_total_bytes": 80 << 30, "temperature_c": 80}],
        "load_average": [9.0],
    }
    assert machine.fingerprint(facts) == machine.fingerprint(later)
    for change in (
        {"cpu": {"model": "Y", "logical_cores": 2}},
        {"gpus": []},
        {"gpu_driver": "580.65.06"},
        {"memory": {"total_bytes": 8 << 30}},
    ):
        assert machine.fingerprint(facts) != machine.fingerprint(facts | change)


def test_fingerprint_tells_zen_3_from_zen_4() -> None:
    zen3 = {"model": "AMD EPYC", "family": "cpu family 25 model 1 stepping 1", "instruction_sets": ["avx2"]}
    zen4 = zen3 | {"family": "cpu family 25 model 17 stepping 1", "instruction_sets": ["avx2", "avx512f"]}
    masked = zen4 | {"instruction_sets": ["avx2"]}  # a hypervisor hides AVX-512
    prints = {machine.fingerprint({"cpu": cpu}) for cpu in (zen3, zen4, masked)}
    assert len(prints) == 3


def test_fingerprint_of_fewer_facts_equals_none_with_more() -> None:
    old = {"cpu": {"model": "AMD EPYC", "logical_cores": 2}}
    new = {"cpu": old["cpu"] | {"instruction_sets": ["avx2"]}}
    assert machine.fingerprint(old) == machine.fingerprint(old)
    assert machine.fingerprint(old) != machine.fingerprint(new)
