"""The tutorials do what they say: their files are written, their commands run, on less data."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from bench.environments import python_of
from bench.errors import BenchError
from bench.recipe.codebases import find_codebases
from tests.conftest import ROOT
from tests.test_docs import lines

LESS = (
    "--images 2 --launches 1 --rounds 1 --steps 1 --set measure.warmup=1 --set measure.quiet=mark "
    "--set environment.threads=1 --set measure.phase_steps=0 --set measure.memory_steps=0"
)


def followed(page: str, folder: Path, codebases: tuple[str, ...] = ()) -> list[str]:
    """Write the files of a tutorial and run its commands there. Returns what each of them printed."""
    known = find_codebases()
    for name in codebases:
        try:
            python_of(known[name])
        except BenchError:
            pytest.skip(f"no environment of {name}")
    path = ROOT / "docs" / "tutorial" / page
    files = re.findall(
        r"^`([\w./]+)`[^\n]*:\n\n```\w+\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL
    )
    for name, content in files:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    printed = []
    for line in lines(path, "console"):
        words = shlex.split(line)
        more = shlex.split(LESS) if words[1] == "vs" else []
        done = subprocess.run(
            [sys.executable, "-m", *words, *more],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr[-3000:]}"
        printed.append(done.stdout + done.stderr)
    return printed


def test_new_version_is_compared_by_one_line(tmp_path: Path) -> None:
    (printed,) = followed("new-version.md", tmp_path)
    text = " ".join(printed.split())
    assert re.search(r"mymodel:build new runs [\d.]+× as fast as python mymodel:build old", text), printed
    assert "Their work is unequal ≠" in text  # it works on sixteen times the pixels, and the audit sees it
    assert (tmp_path / "upgrade.yaml").exists()
    assert next(tmp_path.glob("reports/*/*/report.md"))


@pytest.mark.nightly
def test_configs_of_two_codebases_are_compared(tmp_path: Path) -> None:
    printed = followed("my-configs.md", tmp_path, ("mmdet", "detectron2"))
    assert "They are different models" in " ".join(printed[1].split())
    assert "refuses" not in printed[2]


@pytest.mark.nightly
def test_runtimes_of_one_model_are_compared(tmp_path: Path) -> None:
    printed = followed("which-runtime.md", tmp_path, ("onnx",))
    assert "openvino" in printed[2]


@pytest.mark.nightly
def test_models_are_served_by_one_line(tmp_path: Path) -> None:
    pytest.importorskip("mlperf_loadgen")
    (printed,) = followed("../how-to/serve.md", tmp_path)
    text = " ".join(printed.split())
    assert re.search(r"torchvision serves RetinaNet R-50-FPN, serving: SingleStream: p50 [\d.]+ ms", text), (
        printed
    )
    assert re.search(r"Server, p99 ≤ 2000 ms: [\d.]+ requests/s", text), printed
