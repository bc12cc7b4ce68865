"""What the machine may do to a run: folders of others, few descriptors, a clock that jumps, and a thousand launches."""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from bench.record.run import Run
from tests.conftest import FAKE, ROOT, Cli, Finished

NOBODY = 65534
LAUNCHES = 1000


def run_in(prefix: list[str], cli: Cli, *arguments: str, **variables: str) -> Finished:
    """`bench` below another command that changes what it may do."""
    command = [*prefix, sys.executable, "-m", "bench", *arguments, "--results", str(cli.results)]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    return Finished(done.returncode, done.stdout, done.stderr)


def measuring(cli: Cli) -> list[str]:
    return ["run", str(cli.recipe()), "--adapters", str(FAKE)]


def test_foreign_cache_is_one_error_and_no_obstacle_to_reading(cli: Cli, tmp_path: Path) -> None:
    if os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv to make files of another user")
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    os.chown(cache, NOBODY, NOBODY)
    common = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
    done = run_in(common, cli, *measuring(cli), BENCH_CACHE=str(cache))
    assert done.code == 2
    assert "Permission denied" in done.err
    assert "BENCH_CACHE" in done.err
    assert done.err.count("\n") <= 3
    history = run_in(common, cli, "history", BENCH_CACHE=str(cache))
    assert (history.code, history.err) == (0, "")


def test_read_only_results_are_one_error_and_can_be_read(cli: Cli) -> None:
    cli.results.mkdir()
    mount = f"mount --bind -o ro {shlex.quote(str(cli.results))} {shlex.quote(str(cli.results))}"
    prefix = ["unshare", "-rm", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs user namespaces for a mount")
    done = run_in(prefix, cli, *measuring(cli))
    assert done.code == 2
    assert "cannot be written: Read-only file system" in done.err
    assert run_in(prefix, cli, "history").code == 0


@pytest.mark.nightly
@pytest.mark.parametrize(("descriptors", "code"), [(16, 0), (8, 4)])
def test_few_descriptors_are_enough_or_fail_the_arms(cli: Cli, descriptors: int, code: int) -> None:
    limit = (descriptors, descriptors)
    done = cli.run(cli.recipe(), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit))
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    if code:
        assert "Too many open files" in done.err


@pytest.mark.nightly
def test_missing_shared_memory_is_no_obstacle(cli: Cli) -> None:
    prefix = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o ro none /dev/shm && exec "$@"', "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs user namespaces for a mount")
    done = run_in(prefix, cli, *measuring(cli))
    assert done.code == 0, done.err


@pytest.mark.nightly
@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONOPTIMIZE": "2"},
        {"PYTHONSAFEPATH": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONSTARTUP": "/dev/zero"},
        {"LC_ALL": "C", "TERM": "dumb", "COLUMNS": "40", "PYTHONIOENCODING": "ascii"},
    ],
    ids=["optimised", "python", "terminal"],
)
def test_odd_environment_changes_nothing(cli: Cli, variables: dict[str, str]) -> None:
    done = run_in([], cli, *measuring(cli), **variables)
    assert done.code == 0, done.err
    assert run_in([], cli, "history", **variables).code == 0
    assert [arm.status for arm in Run(cli.runs()[0]).arms()] == ["ok", "ok"]


@pytest.mark.nightly
def test_clock_that_jumps_changes_no_time(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import itertools, time\n"
        "real, jumps = time.time, itertools.cycle([3600, -3600])\n"
        "time.time = lambda: real() + next(jumps)\n"
    )
    done = cli.run(cli.recipe(), env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.code == 0, done.err
    run = Run(cli.runs()[0])
    slow, fast = (float(run.block_seconds(arm).mean()) for arm in ("slow", "fast"))
    assert 0.019 < slow < 0.1
    assert 0.009 < fast < 0.05


@pytest.mark.nightly
def test_thousand_launches_leave_descriptors_threads_and_memory_flat(cli: Cli) -> None:
    measure = {"quiet": "off", "warmup": 1, "steps": 1, "rounds": 1, "launches": LAUNCHES, "memory_steps": 0,
               "phase_steps": 0}  # fmt: skip
    arms = [{"codebase": "fake", "label": "slow", "options": {"step_s": 0.001}}]
    process = cli.start("run", cli.recipe(arms=arms, measure=measure), "--adapters", FAKE, "--quiet",
                        "--results", cli.results)  # fmt: skip
    session, seen = psutil.Process(process.pid), []
    while process.poll() is None:
        try:
            seen.append((session.num_fds(), session.num_threads(), session.memory_info().rss / 2**20))
        except psutil.Error:
            break
        time.sleep(0.2)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert {block.launch for block in Run(cli.runs()[0]).journal()} == set(range(LAUNCHES))
    quarter = len(seen) // 4
    early, late = seen[quarter : 2 * quarter], seen[3 * quarter :]
    for kind, slack in ((0, 0), (1, 0), (2, 30)):
        assert max(one[kind] for one in late) <= max(one[kind] for one in early) + slack
