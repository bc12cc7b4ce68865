"""The built wheel, installed without the repository."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bench.environments import installer
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment: the wheel, the packages of this one, and PyPI's namesakes of our folders."""
    folder = tmp_path_factory.mktemp("clean")
    subprocess.run([installer.uv(), "venv", "-q", "--python", sys.executable, "venv"], cwd=folder, check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run(
        [installer.uv(), "pip", "install", "-q", "--no-deps", "--python", python, wheel], check=True
    )
    (site,) = folder.glob("venv/lib/*/site-packages")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    (site / "packages.pth").write_text("\n".join(packages))
    for name in ("adapters", "detectors"):
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise ImportError('this is another distribution')\n")
    return folder


def bench(clean: Path, *arguments: str) -> Any:
    """What a command prints as JSON, run in the clean environment."""
    variables = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(
        [clean / "venv" / "bin" / "bench", *arguments, "--json"],
        cwd=clean,
        env={**variables, "BENCH_CACHE": str(clean / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_the_wheel_adds_one_import_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.split("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"bench"}


def test_an_installed_wheel_lists_what_it_ships(clean: Path) -> None:
    recipes = {Path(row["recipe"]) for row in bench(clean, "list", "recipes")}
    assert {path.name for path in recipes} == {path.name for path in (ROOT / "recipes").glob("*.yaml")}
    assert not any(path.is_relative_to(ROOT) for path in recipes)
    codebases = {row["codebase"] for row in bench(clean, "list", "codebases")}
    assert codebases == {path.parent.name for path in ROOT.glob("adapters/*/adapter.yaml")}


def test_an_installed_wheel_measures_the_quickstart(clean: Path) -> None:
    """`native` infers on small images. Its worker finds our `adapters` and `detectors`, not the namesakes."""
    small = ["factors={task: [infer]}", "exclude=[]", "arms=[native]", "baseline=native"]
    small += ["workload.input.size=[64, 64]"]
    small += ["measure.quiet=off", "measure.launches=1", "measure.rounds=1", "environment.threads=1"]
    outcome = bench(clean, "run", "quickstart", *(word for setting in small for word in ("--set", setting)))
    assert {arm["codebase"]: arm["status"] for arm in outcome["arms"]} == {"native": "ok"}
    report = bench(clean, "report", outcome["run"])["report"]
    assert "native" in (clean / report).read_text()
    assert [Path(row["run"]).name for row in bench(clean, "list", "runs")] == [outcome["run"]]
