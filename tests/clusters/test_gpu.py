"""`python -m benchmarks.gpu` at toy size on the CPU: runs that are ended make one table; wheels are used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from benchmarks.gpu import adopt
from benchmarks.gpu.__main__ import Driver
from benchmarks.gpu.smoke import PRECISIONS, try_model
from benchmarks.gpu.stages import FAMILIES, read, recipes
from benchmarks.gpu.table import rows_of, show
from tests.conftest import FAKE, ROOT
from tests.helpers.clusters import until


def start(output: Path, minutes: float) -> subprocess.Popen[str]:
    options = ["--device", "cpu", "--output", str(output), f"--minutes={minutes}"]
    command = [sys.executable, "-m", "benchmarks.gpu", *options]
    return subprocess.Popen(
        command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def run(output: Path, minutes: float) -> str:
    with start(output, minutes) as process:
        out, err = process.communicate(timeout=560)
    assert process.returncode == 0, err[-2000:]
    return out


def processes_of(output: Path) -> list[psutil.Process]:
    """What works for a folder, the driver included."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(output) in " ".join([*process.cmdline(), process.environ().get("BENCH_CACHE", "")]):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_one_family_and_one_cell_make_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of all eight families and of real codebases, which `make nightly` has."""
    tried = try_model("retinanet_r50_fpn", "bfloat16", "cpu", 64)
    assert tried["finite"]
    assert len(tried["top"]) == 10
    driver = Driver("cpu", tmp_path, minutes=5)
    driver.measure(
        {**recipes("cpu", ["torchvision"])[0], "arms": ["fake"], "baseline": "fake"}, "--adapters", str(FAKE)
    )
    assert "finished after" in capsys.readouterr().out
    (row,) = rows_of(tmp_path)
    assert row["s_per_iter"] > 0
    assert row["phases_ms"]["forward"] > 0
    told = show([row], [{"model": "retinanet", "precision": "bfloat16", **tried}])
    assert told[0].startswith("smoke retinanet bfloat16: finite")
    assert told[1].startswith("gpu-equal-work fake")


def test_smoke_test_needs_torch_alone() -> None:
    code = """
import sys
import benchmarks.gpu.__main__, benchmarks.gpu.smoke
own = ("bench", "pydantic", "safetensors", "pycocotools", "scipy", "psutil", "pandas")
print([name for name in own if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "terminated"])
def test_runs_that_are_ended_make_one_table(number: signal.Signals, tmp_path: Path) -> None:
    output = tmp_path / "gpu"
    smoke = output / "smoke.jsonl"

    def end(when: object) -> None:
        with start(output, 9) as process:
            until(when, 400)  # type: ignore[arg-type]
            os.kill(process.pid, number)
            process.communicate(timeout=60)
        until(lambda: not processes_of(output), 30)

    end(lambda: smoke.exists() and len(read(smoke)) >= 2)
    begun = list(map(json.dumps, read(smoke)[:2]))
    last_one = {"model": "ssd300_vgg16", "precision": "bfloat16", "device": "cpu"}
    skipped = [{**last_one, "model": name, "precision": kind} for name in FAMILIES for kind in PRECISIONS]
    left = [json.dumps({**one, "finite": True, "losses": []}) for one in skipped if one != last_one]
    smoke.write_text("\n".join([*begun, *left, '{"model": "torn']))
    end(lambda: list((output / "cache").rglob("logs/native*")))
    assert not list(output.glob("store/*/*"))
    last = run(output, 9)
    lines = read(smoke)
    assert list(map(json.dumps, lines[:2])) == begun
    (tried,) = (one for one in lines if {**one, **last_one} == one)
    assert tried["finite"]
    assert len(tried["top"]) == 10
    assert "gpu-equal-work all: finished after" in last
    rows = {row["arm"]: row for row in json.loads((output / "table.json").read_text())}
    assert set(rows) == {"native", "torchvision"}
    assert all(row["s_per_iter"] > 0 and row["memory_mib"] for row in rows.values())
    assert rows["native"]["equal_work"] == "equal"
    third = run(output, 3)
    assert "gpu-equal-work all: finished before" in third


@pytest.mark.nightly
def test_little_time_is_for_the_next_run(tmp_path: Path) -> None:
    began = time.monotonic()
    assert "left for the next run" in run(tmp_path / "gpu", 0.2)
    assert time.monotonic() - began < 120


@pytest.mark.nightly
def test_wheels_complete_the_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tmp_path / "wheels" / "nothing_like_this-1-py3-none-any.whl"
    wheel.parent.mkdir()
    info = "nothing_like_this-1.dist-info"
    metadata = "Metadata-Version: 2.1\nName: nothing-like-this\nVersion: 1\nRequires-Dist: not-there-at-all\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("nothing_like_this.py", "word = 'here'")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (wheel.parent / "of_another_python-1-cp27-none-any.whl").touch()
    monkeypatch.setattr(adopt, "requirements", lambda: ["nothing-like-this"])
    python = adopt.complete(tmp_path / "out", wheel.parent)
    assert python != sys.executable
    code = "import nothing_like_this, torch, bench, detectors, importlib.metadata as m; m.version('detection-bench')"
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
