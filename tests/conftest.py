"""What the tests share: real data where it is there, a runner for the command line, the fake codebase."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import bench.cli
from bench.record.run import find_runs

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FAKE = ROOT / "tests" / "fake"


@pytest.fixture(scope="session")
def coco_tiny() -> Path:
    path = SHARED / "data" / "coco_tiny"
    if not path.is_dir():
        pytest.skip(f"no real COCO images at {path}")
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes with one thread; imported here only, for most tests need none of it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Finished:
    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def run_here(arguments: Iterable[str]) -> Finished:
    """The command line in this process: output is no terminal, and the folder is the repository's."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["bench", *arguments])
        patch.setattr(sys, "stdin", io.StringIO())
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as end:
            bench.cli.main()
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return Finished(int(end.value.code or 0), *texts)


class Cli:
    """Runs `bench` as a user does, with a results folder of the test's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "bench", *map(str, arguments)]
        # A shell without job control ignores SIGINT in what it runs in the background, such as these tests.
        options.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
        options.setdefault("cwd", ROOT)
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    def __call__(self, *arguments: str | Path, **options: Any) -> Finished:
        """In this process, which has imported everything; with ``options`` of `subprocess` in one of its own."""
        if not options:
            return run_here(map(str, arguments))
        process = self.start(*arguments, **options)
        out, err = process.communicate(timeout=540)
        return Finished(process.returncode, out, err)

    def recipe(self, **changes: Any) -> Path:
        """A recipe of the fake codebase; keyword arguments replace its top-level keys.

        It waits for no quiet machine: other tests run at the same time.
        """
        if "measure" in changes:
            changes["measure"] = {"quiet": "off", **changes["measure"]}
        content = {
            "name": "fake",
            "workload": {
                "task": "train",
                "model": "faster_rcnn_r50_fpn",
                "weights": "random",
                "input": {"images": 2, "size": [64, 64]},
            },
            "arms": [
                {"codebase": "fake", "label": "slow", "options": {"step_s": 0.02}},
                {"codebase": "fake", "label": "fast", "options": {"step_s": 0.01}},
            ],
            "baseline": "slow",
            "measure": {
                "quiet": "off",
                "warmup": 1,
                "steps": 2,
                "rounds": 3,
                "launches": 2,
                "deadline_s": 20,
                "memory_steps": 1,
                "phase_steps": 1,
            },
        }
        path = self.folder / "recipe.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}, sort_keys=False))
        return path

    def run(self, recipe: Path, *arguments: str | Path, **options: Any) -> Finished:
        return self("run", recipe, "--adapters", FAKE, "--results", self.results, *arguments, **options)

    def runs(self) -> list[Path]:
        return find_runs(self.results)

    def arm(self, name: str) -> dict[str, Any]:
        return json.loads((self.runs()[-1] / "arms" / f"{name}.json").read_text())


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    return Cli(tmp_path)


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


os.environ.setdefault("MPLBACKEND", "Agg")
# Before torch counts the processors: the other test process has its own.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
