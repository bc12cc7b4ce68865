"""A session or a worker killed at random moments: nothing measured is lost, and nothing is left behind."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from bench.record.run import Run
from tests.conftest import FAKE, Cli, alive, pids

MOMENTS = 50


@pytest.mark.nightly
@pytest.mark.parametrize("moment", range(MOMENTS))
def test_a_kill_at_a_random_moment_loses_nothing(cli: Cli, tmp_path: Path, moment: int) -> None:
    rng = random.Random(moment)
    environment = {**os.environ, "BENCH_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path)}
    arms = [
        {"codebase": "fake", "label": label, "options": {"step_s": 0.02, "pid_file": str(tmp_path / "pids")}}
        for label in ("slow", "fast")
    ]
    at = ("--adapters", FAKE, "--results", cli.results)
    process = cli.start("run", cli.recipe(arms=arms), *at, env=environment)
    time.sleep(rng.uniform(0.5, 12))
    victims = [process.pid]
    if moment % 2:
        workers = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        victims = [one.pid for one in workers[-1:]]
    for victim in victims:
        if process.poll() is None:
            os.kill(victim, signal.SIGKILL)
    process.communicate(timeout=120)
    time.sleep(0.5)
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
    if not cli.runs():
        return  # killed before there was a run
    run = Run(cli.runs()[0])
    kept = run.journal()
    done = cli("run", "--resume", run.folder, "--retry-failed", *at, env=environment)
    assert done.code == 0, done.err
    assert run.journal()[: len(kept)] == kept
    assert run.record().status == "complete"
    assert [arm.status for arm in run.arms()] == ["ok", "ok"]
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
    assert not [*tmp_path.glob("bench-*")]
