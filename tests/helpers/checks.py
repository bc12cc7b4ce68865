"""Repositories to check, and runs to judge, of a codebase that sleeps."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from bench.gate.stored import MIN_SESSIONS
from bench.record.models import ArmRecord, Block, RunRecord
from bench.record.run import Run
from bench.record.samples import samples_columns
from tests.conftest import FAKE, Cli, Finished

MEASURE = {"warmup": 1, "steps": 1, "rounds": 4, "deadline_s": 20}
STEP_S = 0.03
"""Long enough for a busy machine to be a few per cent off."""
TOLERANCE = "s/iter=20%"


class Repository:
    """A codebase of its own in a git repository: the adapter, and the package `tinylib` in `src`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        adapter = folder / "adapter"
        adapter.mkdir(parents=True)
        text = (FAKE / "adapter.py").read_text()
        text = text.replace("import numpy as np", "import numpy as np\nimport tinylib")
        text = text.replace('version = "0"', 'version = "0"\n    package = "tinylib"')
        text = text.replace('options.get("step_s", 0.0)', "tinylib.STEP_S")
        (adapter / "adapter.py").write_text(text)
        described = (FAKE / "adapter.yaml").read_text()
        (adapter / "adapter.yaml").write_text(
            described.replace("name: fake", "name: tiny") + "preload: [numpy]\n"
        )
        self.git("init", "--quiet")
        self.commit("first", STEP_S)

    def git(self, *arguments: str) -> str:
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
        command = ["git", "-C", str(self.folder), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit(self, name: str, step_s: float) -> None:
        package = self.folder / "src" / "tinylib"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(f"STEP_S = {step_s}  # {name}\n")
        self.git("add", ".")
        self.git("commit", "--quiet", "--message", name)
        self.git("tag", name)

    def trees(self) -> list[str]:
        return self.git("worktree", "list").splitlines()


def tiny(cli: Cli, **measure: Any) -> Path:
    return cli.recipe(name="tiny", arms=["tiny"], baseline={}, measure={**MEASURE, **measure})


def checked(cli: Cli, repository: Repository, recipe: Path, *arguments: str | Path) -> Finished:
    return cli(
        "check", recipe, "--adapters", repository.folder / "adapter", "--source",
        f"tiny={repository.folder / 'src'}", "--results", cli.results, "--tolerance", TOLERANCE, *arguments,
    )  # fmt: skip


def stored(
    results: Path,
    identity: str,
    seconds: dict[str, list[float]],
    *,
    cpu: str = "A",
    revision: str = "",
    recipe: str = "stored",
) -> Run:
    """A run folder whose arms have one block per launch, of so many seconds."""
    run = Run(results / recipe / identity)
    workload = {"model": "faster_rcnn_r50_fpn", "task": "train", "batch_size": 2, "ranks": 1, "device": "cpu"}
    started = f"2026-11-{1 + len(list(results.glob('*/*'))) % 28:02}T00:00:00Z"
    machine = {"cpu": {"model": cpu}}
    record = RunRecord(
        id=identity, recipe={"name": recipe}, started_utc=started, bench_version="0", machine=machine,
        arms=list(seconds), baseline={"codebase": "fixed"}, status="complete",
    )  # fmt: skip
    run.write_record(record)
    for arm, launches in seconds.items():
        blocks = [
            Block(arm=arm, launch=launch, round=0, position=0, ranks=[{"start_ns": [0], "end_ns": int(1e9 * value)}])
            for launch, value in enumerate(launches)
        ]  # fmt: skip
        environment = {"git": {"revision": revision}} if revision else {}
        run.write_arm(
            ArmRecord(id=arm, codebase=arm, label=arm, cell="all", workload=workload, status="ok",
                      environment=environment),
            samples_columns(blocks),
        )  # fmt: skip
    return run


STEADY = [1.0, 1.01, 0.99, 1.005, 0.995, 1.0]


def scaled(factor: float) -> list[float]:
    return [factor * value for value in STEADY]


def sessions(results: Path, arms: dict[str, float], **more: Any) -> Run:
    """As many stored runs as the spread between sessions needs; the first of them."""
    factors = [1 + 0.002 * (-1) ** index for index in range(MIN_SESSIONS)]
    runs = [
        stored(results, f"s{index}", {arm: scaled(factor * seconds) for arm, seconds in arms.items()}, **more)
        for index, factor in enumerate(factors)
    ]
    return runs[0]
