"""`python -m benchmarks.gpu` at toy size on the CPU: two short runs make one table; wheels complete an interpreter."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks.gpu import adopt
from benchmarks.gpu.__main__ import Driver, show
from benchmarks.gpu.smoke import try_model
from benchmarks.gpu.stages import recipes
from tests.conftest import FAKE, ROOT


def run(output: Path, minutes: float) -> str:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--output", str(output)]
    done = subprocess.run(
        [*command, f"--minutes={minutes}"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=560
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_one_family_and_one_cell_make_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of all eight families and of real codebases, which `make nightly` has."""
    tried = try_model("retinanet_r50_fpn", "bfloat16", "cpu", 64)
    assert tried["finite"]
    assert len(tried["top"]) == 10
    driver = Driver("cpu", tmp_path, minutes=5)
    call = driver.call
    monkeypatch.setattr(driver, "call", lambda *given, **more: call(*given, "--adapters", str(FAKE), **more))
    driver.measure({**recipes("cpu", ["fake"])[0], "baseline": "fake"})
    (row,) = driver.table(pages=False)
    assert row["s_per_iter"] > 0
    show([row], [{"model": "retinanet", "precision": "bfloat16", **tried}])
    told = capsys.readouterr().out
    assert "finished after" in told
    assert "smoke retinanet bfloat16: finite" in told
    assert "gpu-equal-work fake" in told


@pytest.mark.nightly
def test_two_short_runs_make_one_table(tmp_path: Path) -> None:
    first = run(tmp_path / "gpu", 0.2)
    assert "left for the next run" in first
    second = run(tmp_path / "gpu", 8)
    rows = json.loads((tmp_path / "gpu" / "table.json").read_text())
    assert {(row["recipe"], row["arm"].partition("-")[0]) for row in rows} >= {
        ("gpu-equal-work", "native"), ("gpu-equal-work", "torchvision"), ("gpu-train", "native"),
        ("gpu-train", "torchvision"),
    }  # fmt: skip
    assert all(row["s_per_iter"] > 0 and row["memory_mib"] for row in rows)
    smoke = [json.loads(line) for line in (tmp_path / "gpu" / "smoke.jsonl").read_text().splitlines()]
    assert len(smoke) == 16
    assert all(one["finite"] and len(one["top"]) == 10 for one in smoke), smoke
    assert second.count("smoke ") == 16
    third = run(tmp_path / "gpu", 8)
    assert third.count("finished before") == 2


@pytest.mark.nightly
def test_wheels_complete_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "wheels" / "nothing_like_this-1-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "nothing_like_this-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nothing_like_this.py", "word = 'here'")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nothing-like-this\nVersion: 1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(adopt, "requirements", lambda: ["nothing-like-this"])
    monkeypatch.setattr(adopt, "MMDET", ())
    python = adopt.complete(tmp_path / "out", wheel.parent)
    assert python != sys.executable
    code = "import nothing_like_this, torch, bench, detectors, importlib.metadata as m; m.version('detection-bench')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
