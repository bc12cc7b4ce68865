"""Energy counters, from a folder as Linux has it and from an NVML as its package has it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.record.energy import Meter


def powercap(root: Path, *microjoules: int) -> None:
    """Packages with these counters; beside them a subdomain and a domain of the whole platform."""
    folder = root / "sys/class/powercap"
    domains = {f"intel-rapl:{n}": (f"package-{n}", value) for n, value in enumerate(microjoules)}
    for name, (title, value) in (
        domains | {"intel-rapl:0:0": ("core", 5), "intel-rapl:9": ("psys", 7)}
    ).items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "name").write_text(f"{title}\n")
        (folder / name / "energy_uj").write_text(f"{value}\n")
        (folder / name / "max_energy_range_uj").write_text("9000000\n")


def test_packages_are_added_and_a_full_counter_goes_on(tmp_path: Path) -> None:
    powercap(tmp_path, 1_000_000, 8_000_000)
    meter = Meter("cpu", 1, root=tmp_path)
    before = meter.read()
    powercap(tmp_path, 3_500_000, 2_000_000)  # the second one began anew at 9 J
    assert meter.since(before) == {"CPU": pytest.approx(2.5 + 3.0)}
    assert meter.missing == {}


def test_without_counters_the_reason_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meter = Meter("cuda", 1, root=tmp_path)
    assert meter.since(meter.read()) == {}
    assert "no RAPL counters" in meter.missing["CPU"]
    assert "NVML cannot be used" in meter.missing["GPU"]
    assert "several machines" in Meter("cpu", 2, nodes=2, root=tmp_path).missing["CPU"]


def test_gpus_are_those_that_the_ranks_see(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = {0: 1000, 1: 2000, 2: 3000}
    nvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda device: used[device],
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0,1")
    meter = Meter("cuda", 2, root=tmp_path)
    before = meter.read()
    used.update({0: 1500, 1: 9000, 2: 4000})
    assert meter.since(before) == {"GPU": pytest.approx(1.5)}
