"""What a measurement ran on: hardware, its state, software, and who else was busy.

Provenance must never end a measurement: a fact that this machine does not tell is a missing key, not an error.
cuDNN and NCCL are libraries of an environment, not of the machine: they are among the packages of
`environment_of`, and adapters report what their framework loaded (``Description.library``).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

Facts = dict[str, Any]

#: Instruction sets that decide which kernels a library picks.
_ISA_FLAGS = (
    "avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni",
    "amx_tile", "amx_bf16", "amx_int8", "neon", "asimd", "asimdhp", "asimddp", "sve", "sve2", "bf16", "i8mm",
)  # fmt: skip

#: Bits of NVML's clocks-event ("throttle") reasons.
_CLOCK_REASONS = {
    0x1: "gpu idle", 0x2: "application clocks setting", 0x4: "software power cap", 0x8: "hardware slowdown",
    0x10: "sync boost", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
    0x80: "hardware power brake slowdown", 0x100: "display clock setting",
}  # fmt: skip


def _facts(**sources: Callable[[], Any]) -> Facts:
    """The value of each source; a source that fails or has nothing to say is left out."""
    facts = {}
    for name, source in sources.items():
        with contextlib.suppress(Exception):
            value = source()
            if value is not None and value != {} and value != []:
                facts[name] = value
    return facts


# -- the machine -----------------------------------------------------------------------------------------


def describe_machine(root: Path = Path("/")) -> Facts:
    """Everything about the machine and its present state, but no name of it: ``os, cpu, memory, load_average,
    temperature_c`` and `gpu_facts`. ``root`` is where ``proc`` and ``sys`` are. Takes a few milliseconds; never raises.
    """
    facts = _facts(
        os=lambda: _os_facts(root),
        cpu=lambda: _cpu_facts(root),
        memory=lambda: _memory_facts(root),
        load_average=load_average,
        temperature_c=_temperatures,
    )
    return facts | gpu_facts()


def utc_now() -> str:
    """ISO 8601 to the second: 2026-11-23T08:45:00+00:00."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def affinity() -> list[int]:
    """The logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def load_average() -> list[float]:
    """Runnable processes, mean over 1, 5 and 15 minutes; empty where the system does not count them."""
    with contextlib.suppress(OSError, AttributeError):
        return list(os.getloadavg())
    return []


def _os_facts(root: Path) -> Facts:
    return _facts(
        system=platform.system,
        release=platform.release,
        distribution=lambda: platform.freedesktop_os_release().get("PRETTY_NAME"),
        libc=lambda: " ".join(platform.libc_ver()).strip() or None,
        container=lambda: (
            True if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists() else None
        ),
        image_digest=lambda: _image_digest(root),
    )


def _image_digest(root: Path) -> str | None:
    """Of the container's image, where its engine tells: Podman does, Docker does not."""
    found = re.search(
        r'^imageid="(?:sha256:)?([0-9a-f]{64})"', _read(root / "run/.containerenv"), re.MULTILINE
    )
    return f"sha256:{found[1]}" if found else None


def _cpu_facts(root: Path) -> Facts:
    info: dict[str, str] = {}
    with contextlib.suppress(OSError):
        # One paragraph per logical core; the first one stands for all but the clock.
        for line in (root / "proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            info[key.strip()] = value.strip()
    cores = root / "sys/devices/system/cpu"
    flags = set((info.get("flags") or info.get("Features") or "").split())
    return _facts(
        model=lambda: info.get("model name") or _model_from_cpuinfo(),
        vendor=lambda: info.get("vendor_id"),
        family=lambda: " ".join(
            f"{key} {info[key]}" for key in ("cpu family", "model", "stepping") if key in info
        ),
        architecture=platform.machine,
        microcode=lambda: info.get("microcode"),
        physical_cores=lambda: psutil.cpu_count(logical=False),
        logical_cores=lambda: psutil.cpu_count(logical=True),
        affinity=affinity,
        quota_cores=lambda: _quota_cores(root),
        virtual=lambda: True if "hypervisor" in flags else None,
        instruction_sets=lambda: [flag for flag in _ISA_FLAGS if flag in flags],
        caches_bytes=lambda: _caches_bytes(cores / "cpu0/cache"),
        governor=lambda: _one_of_all(cores.glob("cpu[0-9]*/cpufreq/scaling_governor")),
        driver=lambda: _one_of_all(cores.glob("cpu[0-9]*/cpufreq/scaling_driver")),
        smt=lambda: _read(cores / "smt/active") == "1",
        boost=lambda: _boost(cores),
        clock_mhz=lambda: round(psutil.cpu_freq().current) or None,
        max_clock_mhz=lambda: round(psutil.cpu_freq().max) or None,
        numa_nodes=lambda: len(list((root / "sys/devices/system/node").glob("node[0-9]*"))) or None,
    )


def _model_from_cpuinfo() -> str | None:
    """Where /proc has no model name (ARM, macOS, Windows). Takes about a second, so it is the last resort."""
    import cpuinfo

    return cpuinfo.get_cpu_info().get("brand_raw") or platform.processor() or None


def _read(path: Path) -> str:
    return path.read_text().strip()


def _one_of_all(paths: Iterator[Path]) -> str | None:
    """What all the files say, or all that they say."""
    return ", ".join(sorted({_read(path) for path in paths})) or None


def _boost(cores: Path) -> bool | None:
    """Whether the clock may rise above the nominal one."""
    with contextlib.suppress(OSError):
        return _read(cores / "intel_pstate/no_turbo") == "0"
    return _read(cores / "cpufreq/boost") == "1"


def _caches_bytes(folder: Path) -> dict[str, int]:
    """Cache → bytes of one instance: {"L1d": 49152, "L1i": …, "L2": …, "L3": …}."""
    caches = {}
    for index in sorted(folder.glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get(_read(index / "type"), "")
        size = _read(index / "size")
        scale = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
        caches[f"L{_read(index / 'level')}{kind}"] = int(size.rstrip("KMG")) * scale.get(size[-1], 1)
    return caches


def _quota_cores(root: Path) -> float | None:
    """Cores' worth of time that a control group allows, when it limits them."""
    with contextlib.suppress(OSError):
        quota, period = _read(root / "sys/fs/cgroup/cpu.max").split()
        return None if quota == "max" else int(quota) / int(period)
    folder = root / "sys/fs/cgroup/cpu"
    quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    return int(quota) / int(period) if int(quota) > 0 else None


def _memory_facts(root: Path) -> Facts:
    return _facts(
        total_bytes=lambda: psutil.virtual_memory().total,
        available_bytes=lambda: psutil.virtual_memory().available,
        limit_bytes=lambda: _memory_limit(root),
        swap_used_bytes=lambda: psutil.swap_memory().used,
        transparent_huge_pages=lambda: (
            _read(root / "sys/kernel/mm/transparent_hugepage/enabled").partition("[")[2].partition("]")[0]
        ),
    )


def _memory_limit(root: Path) -> int | None:
    """Of the control group, when it is below what the machine has."""
    folder = root / "sys/fs/cgroup"
    path = (
        folder / "memory.max" if (folder / "memory.max").exists() else folder / "memory/memory.limit_in_bytes"
    )
    text = _read(path)
    return int(text) if text != "max" and int(text) < psutil.virtual_memory().total else None


def _temperatures() -> dict[str, float]:
    """Sensor → degrees Celsius."""
    sensors = psutil.sensors_temperatures()
    return {
        f"{chip} {sensor.label}".strip(): sensor.current
        for chip, readings in sensors.items()
        for sensor in readings
    }


# -- GPUs ------------------------------------------------------------------------------------------------


def gpu_facts() -> Facts:
    """``gpu_driver``, ``cuda`` (the newest version that the driver supports), and ``gpus``: of each device its
    model, clocks, limits, state and processes, as NVML tells them. Empty without an NVIDIA driver.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no permission: no GPU for us
        return {}
    try:
        return _facts(
            gpu_driver=lambda: _text(pynvml.nvmlSystemGetDriverVersion()),
            cuda=lambda: ".".join(map(str, divmod(pynvml.nvmlSystemGetCudaDriverVersion_v2() // 10, 100))),
            gpus=lambda: [_gpu(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())],
        )
    finally:
        with contextlib.suppress(Exception):
            pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Facts:
    device = nvml.nvmlDeviceGetHandleByIndex(index)

    def clocks(read: Callable[[Any, Any], int]) -> Facts:
        return _facts(
            sm=lambda: read(device, nvml.NVML_CLOCK_SM),
            memory=lambda: read(device, nvml.NVML_CLOCK_MEM),
        )

    return {
        "index": index,
        **_facts(
            model=lambda: _text(nvml.nvmlDeviceGetName(device)),
            uuid=lambda: _text(nvml.nvmlDeviceGetUUID(device)),
            compute_capability=lambda: ".".join(map(str, nvml.nvmlDeviceGetCudaComputeCapability(device))),
            memory_total_bytes=lambda: int(nvml.nvmlDeviceGetMemoryInfo(device).total),
            memory_used_bytes=lambda: int(nvml.nvmlDeviceGetMemoryInfo(device).used),
            clock_mhz=lambda: clocks(nvml.nvmlDeviceGetClockInfo),
            max_clock_mhz=lambda: clocks(nvml.nvmlDeviceGetMaxClockInfo),
            application_clock_mhz=lambda: clocks(nvml.nvmlDeviceGetApplicationsClock),
            throttle=lambda: _clock_reasons(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)),
            temperature_c=lambda: nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU),
            power_w=lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
            power_limit_w=lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000,
            utilization_percent=lambda: nvml.nvmlDeviceGetUtilizationRates(device).gpu,
            persistence=lambda: bool(nvml.nvmlDeviceGetPersistenceMode(device)),
            ecc=lambda: bool(nvml.nvmlDeviceGetEccMode(device)[0]),
            mig=lambda: bool(nvml.nvmlDeviceGetMigMode(device)[0]),
            other_processes=lambda: _gpu_processes(nvml, device),
        ),
    }


def _gpu_processes(nvml: Any, device: Any) -> list[Facts]:
    """Processes on a GPU that are not ours."""
    own = _own_processes()
    found = []
    for process in nvml.nvmlDeviceGetComputeRunningProcesses(device):
        if process.pid not in own:
            names = _facts(name=psutil.Process(process.pid).name) if psutil.pid_exists(process.pid) else {}
            found.append({"pid": process.pid, **names, "memory_bytes": process.usedGpuMemory})
    return found


def _text(value: str | bytes) -> str:
    """Older versions of nvidia-ml-py answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value


def _clock_reasons(bits: int) -> list[str]:
    """Why the clocks are below their maximum."""
    return [name for bit, name in _CLOCK_REASONS.items() if bits & bit]


# -- other processes -------------------------------------------------------------------------------------


def _own_processes() -> set[int]:
    with contextlib.suppress(psutil.Error, OSError):
        return {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
    return {os.getpid()}


def foreign_load(interval_s: float = 0.2, threshold_cores: float = 0.05) -> list[Facts]:
    """Processes, neither this one nor its descendants, that used the CPU during ``interval_s``, busiest first:
    ``{pid, name, cores}``, where 1.0 is one core kept busy. Needs no permission, but sees only what the system
    shows. Never raises.
    """
    own = _own_processes()

    def cpu_seconds() -> dict[tuple[int, float], tuple[str, float]]:
        usage = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                times = process.cpu_times()
                usage[process.pid, process.create_time()] = (process.name(), times.user + times.system)
        return usage

    try:
        start = time.perf_counter()
        before = cpu_seconds()
        time.sleep(interval_s)
        after = cpu_seconds()
        elapsed_s = time.perf_counter() - start
    except Exception:  # e.g. no /proc
        return []
    cores = {
        key: round((used - before[key][1]) / elapsed_s, 2)
        for key, (_, used) in after.items()
        if key in before and key[0] not in own
    }
    busiest = sorted(cores, key=lambda key: -cores[key])
    return [
        {"pid": key[0], "name": after[key][0], "cores": cores[key]}
        for key in busiest
        if cores[key] >= threshold_cores
    ]


#: What tells one kind of processor from another.
_CPU_KIND = (
    "model", "family", "architecture", "instruction_sets", "physical_cores", "logical_cores", "quota_cores",
)  # fmt: skip


def fingerprint(machine: Mapping[str, Any]) -> str:
    """12 hexadecimal digits, the same for every machine of the same kind: CPU model, family, stepping, instruction
    sets and cores, memory to the GiB, GPU models, memory and driver. The state of the machine has no part in it.

    Of a record that lacks a fact it is of the others: such a machine equals none whose record has the fact.
    """
    cpu, memory = (
        found if isinstance(found := machine.get(name), Mapping) else {} for name in ("cpu", "memory")
    )
    kind = {
        "cpu": [cpu.get(key) for key in _CPU_KIND],
        "memory_gib": round(memory.get("total_bytes", 0) / (1 << 30)),
        "gpus": [
            [gpu.get("model"), round(gpu.get("memory_total_bytes", 0) / (1 << 30))]
            for gpu in machine.get("gpus") or []
            if isinstance(gpu, Mapping)
        ],
        "gpu_driver": machine.get("gpu_driver"),
    }
    return hashlib.sha256(json.dumps(kind, sort_keys=True).encode()).hexdigest()[:12]
