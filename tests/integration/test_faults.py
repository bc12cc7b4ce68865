"""Whatever a codebase, a user or the machine does: one failed arm, nothing measured lost, no process left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench.record.run import Run
from tests.conftest import FAKE, Cli, alive, pids
from tests.helpers.runs import wait_for_blocks

SLOW: dict[str, Any] = {"codebase": "fake", "label": "slow", "options": {"step_s": 0.02}}


def faulty(**options: Any) -> list[dict[str, Any]]:
    return [SLOW, {"codebase": "fake", "label": "faulty", "options": {"step_s": 0.001, **options}}]


def start(cli: Cli, recipe: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A run in the background."""
    return cli.start("run", recipe, "--adapters", FAKE, "--results", cli.results, *arguments, **options)


@pytest.mark.parametrize(
    ("options", "reason", "text"),
    [
        ({"kill_at": 4}, "killed", "SIGKILL"),
        ({"crash_at": 4}, "crash", "exit code 9"),
        ({"raise_at": 4}, "exception", "raised as asked"),
        ({"nan_at": 4}, "nan", "loss = nan"),
        ({"prepare": "raise"}, "exception", "prepare failed as asked"),
        ({"prepare": "exit"}, "crash", "exit code 7"),
        ({"hang_at": 4}, "hang", "deadline"),
        ({"prepare": "hang"}, "hang", "deadline"),
    ],
)
def test_faulty_codebase_fails_one_arm_and_others_go_on(
    cli: Cli, tmp_path: Path, options: dict[str, Any], reason: str, text: str
) -> None:
    recipe = cli.recipe(arms=faulty(pid_file=str(tmp_path / "pids"), **options))
    done = cli.run(recipe, "--set", "measure.deadline_s=3")
    assert done.code == 4, done.err
    failed, healthy = cli.arm("faulty"), cli.arm("slow")
    assert failed["status"] == "failed"
    assert failed["failure"]["reason"] == reason
    assert text in failed["failure"]["message"]
    assert healthy["status"] == "ok"
    assert healthy["blocks"] == 6
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
    if "prepare" not in options:  # step 4 is in the second block: the first one was measured and stays
        assert failed["blocks"] >= 1


def test_log_tail_of_failed_arm_shows_where_codebase_raised(cli: Cli) -> None:
    cli.run(cli.recipe(arms=faulty(raise_at=4)))
    tail = "\n".join(cli.arm("faulty")["failure"]["log_tail"])
    assert "Traceback" in tail
    assert "ValueError: raised as asked" in tail


def test_garbage_on_standard_output_disturbs_neither_messages_nor_terminal(cli: Cli) -> None:
    done = cli.run(cli.recipe(arms=faulty(garbage=r"\x00\x1b[31m{]")))
    assert done.code == 0, done.err
    assert "\x1b[31m{]" not in done.out + done.err
    log = cli.runs()[-1] / "logs" / "faulty-0.log"
    assert b"\x1b[31m{]" in log.read_bytes()


def test_process_that_left_workers_group_does_not_outlive_run(cli: Cli, tmp_path: Path) -> None:
    done = cli.run(cli.recipe(arms=faulty(child=str(tmp_path / "children"))))
    assert done.code == 0, done.err
    assert len(pids(tmp_path / "children")) == 2  # one a launch
    assert not any(alive(pid) for pid in pids(tmp_path / "children"))


def test_orphan_without_environment_and_parent_does_not_outlive_run(cli: Cli, tmp_path: Path) -> None:
    done = cli.run(cli.recipe(arms=faulty(orphan=str(tmp_path / "orphans"))))
    assert done.code == 0, done.err
    assert len(pids(tmp_path / "orphans")) == 2
    assert not any(alive(pid) for pid in pids(tmp_path / "orphans"))


@pytest.mark.parametrize("finds", ["nan", "negative", "foreign", "label"])
def test_detections_that_cannot_be_fail_their_arm_alone(cli: Cli, finds: str) -> None:
    done = cli.run(cli.recipe(arms=faulty(finds=finds)), "--set", "workload.task=infer")
    assert done.code == 4, done.err
    assert cli.arm("faulty")["failure"]["reason"] == "exception"
    assert "of image" in cli.arm("faulty")["failure"]["message"]
    assert cli.arm("slow")["status"] == "ok"


def test_half_of_surrogate_pair_is_written_as_its_escape(cli: Cli) -> None:
    says = r"\ud800"
    done = cli.run(cli.recipe(arms=faulty(says=says)))
    assert done.code == 0, done.err
    assert cli.arm("faulty")["losses"][0]["losses"].keys() == {r"loss\ud800"}
    done = cli.run(cli.recipe(arms=faulty(says=says, raise_at=4)))
    assert done.code == 4, done.err
    assert r"raised as asked\ud800" in cli.arm("faulty")["failure"]["message"]
    assert cli.arm("slow")["status"] == "ok"


@pytest.mark.parametrize("damage", ["garbage", "cut", "bomb"])
def test_damaged_weights_fail_their_arm_alone(cli: Cli, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.npz"
    np.savez_compressed(path, a=np.zeros(2**26 if damage == "bomb" else 100))
    content = path.read_bytes()
    path.write_bytes({"garbage": b"no archive", "cut": content[:-40], "bomb": content}[damage])
    arms = [SLOW, {"codebase": "fake", "label": "faulty", "weights": str(path)}]
    done = cli.run(cli.recipe(arms=arms), "--set", "measure.launches=1")
    assert done.code == 4, done.err
    failure = cli.arm("faulty")["failure"]
    assert failure["reason"] == "environment"
    assert "weights: " in failure["message"]
    assert cli.arm("slow")["status"] == "ok"


def test_a_stopped_worker_is_a_hang_and_is_ended(cli: Cli, tmp_path: Path) -> None:
    recipe = cli.recipe(arms=faulty(step_s=0.05, pid_file=str(tmp_path / "pids")))
    process = start(cli, recipe, "--set", "measure.deadline_s=3", "--set", "measure.rounds=10")
    wait_for_blocks(cli, 3)
    os.kill(pids(tmp_path / "pids")[-1], signal.SIGSTOP)
    process.communicate(timeout=60)
    assert process.returncode == 4
    assert cli.arm("faulty")["failure"]["reason"] == "hang"
    assert cli.arm("slow")["status"] == "ok"
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_a_session_that_was_stopped_with_its_workers_goes_on(cli: Cli, tmp_path: Path) -> None:
    recipe = cli.recipe(arms=faulty(step_s=0.05, pid_file=str(tmp_path / "pids")))
    process = start(cli, recipe, "--set", "measure.deadline_s=3")
    wait_for_blocks(cli, 3)
    asleep = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_nohup_keeps_a_run_alive_when_its_terminal_closes(cli: Cli, tmp_path: Path) -> None:
    process = start(cli, cli.recipe(), preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    wait_for_blocks(cli, 2)
    process.send_signal(signal.SIGHUP)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_temporary_folder_with_a_long_path_is_no_obstacle(cli: Cli, tmp_path: Path) -> None:
    long = tmp_path / ("x" * 200)
    long.mkdir()
    done = cli.run(cli.recipe(), env={**os.environ, "TMPDIR": str(long)})
    assert done.code == 0, done.err


def test_what_killed_session_leaves_is_cleared_by_next_one(cli: Cli, tmp_path: Path) -> None:
    temporary = tmp_path / "t"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "BENCH_CACHE": str(tmp_path / "cache")}
    process = start(cli, long_recipe(cli, tmp_path), env=environment)
    wait_for_blocks(cli, 2)
    process.kill()
    process.communicate()
    left = [*temporary.glob("bench-*"), *(tmp_path / "cache" / "scratch").iterdir()]
    assert len(left) >= 1
    done = cli.run(cli.recipe(), env=environment)
    assert done.code == 0, done.err
    assert not [*temporary.glob("bench-*"), *(tmp_path / "cache" / "scratch").iterdir()]


@pytest.mark.parametrize("place", ["results", "cache"])
def test_a_folder_that_cannot_be_written_is_one_error(cli: Cli, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    environment = dict(os.environ)
    if place == "results":
        cli.results = tmp_path / "file" / "results"
    else:
        environment["BENCH_CACHE"] = str(tmp_path / "file" / "cache")
    done = cli.run(cli.recipe(), env=environment)
    assert done.code == 2
    assert "cannot be written" in done.err
    assert "Traceback" not in done.err


def test_both_of_two_sessions_at_once_are_marked_as_disturbed(cli: Cli, tmp_path: Path) -> None:
    first = start(cli, cli.recipe(), "--set", "measure.rounds=40")
    wait_for_blocks(cli, 2)
    second = cli("run", cli.recipe(), "--adapters", FAKE, "--results", cli.results)
    first.communicate(timeout=120)
    assert first.returncode == second.code == 0
    for folder in cli.runs():
        assert any("another bench session" in text for text in Run(folder).record().warnings)


def long_recipe(cli: Cli, tmp_path: Path) -> Path:
    arms = [{"codebase": "fake", "label": label, "options": {"step_s": 0.03, "pid_file": str(tmp_path / "pids")}}
            for label in ("slow", "fast")]  # fmt: skip
    return cli.recipe(
        arms=arms, measure={"quiet": "off", "warmup": 1, "steps": 2, "rounds": 30, "launches": 2}
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("blocks", [0, 7])
def test_interrupt_at_any_moment_keeps_finished_blocks(
    cli: Cli, tmp_path: Path, number: signal.Signals, blocks: int
) -> None:
    recipe = long_recipe(cli, tmp_path)
    process = cli.start("run", recipe, "--adapters", FAKE, "--results", cli.results)
    if blocks:
        folder = wait_for_blocks(cli, blocks)
    else:
        time.sleep(0.9 if number == signal.SIGINT else 1.4)  # somewhere in the preparation
    process.send_signal(number)
    process.communicate(timeout=30)
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
    if not blocks:
        assert process.returncode in (
            130,
            -number,
            -signal.SIGINT,
        )  # before the session: Python's own way to end
        return
    assert process.returncode == 130
    assert Run(folder).record().status == "interrupted"
    kept = Run(folder).journal()
    assert len(kept) >= blocks
    assert {arm.status for arm in Run(folder).arms()} == {"partial"}

    done = cli("run", "--resume", folder, "--adapters", FAKE, "--results", cli.results)
    assert done.code == 0, done.err
    run = Run(folder)
    assert run.record().status == "complete"
    assert run.journal()[: len(kept)] == kept
    measured = {arm.id: run.samples(arm.id).query("round >= 0") for arm in run.arms()}
    pairs = [set(zip(frame["launch"], frame["round"], strict=True)) for frame in measured.values()]
    assert len(pairs[0] & pairs[1]) == 60


def test_killed_session_leaves_no_worker_and_can_be_completed(cli: Cli, tmp_path: Path) -> None:
    process = cli.start(
        "run", long_recipe(cli, tmp_path), "--adapters", FAKE, "--results", cli.results,
        "--set", "measure.rounds=6",
    )  # fmt: skip
    folder = wait_for_blocks(cli, 5)
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    while any(alive(pid) for pid in pids(tmp_path / "pids")) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
    kept = Run(folder).journal()
    done = cli("run", "--resume", folder, "--adapters", FAKE, "--results", cli.results)
    assert done.code == 0, done.err
    assert Run(folder).journal()[: len(kept)] == kept
    assert all(arm.description for arm in Run(folder).arms())
    for arm in Run(folder).arms():
        assert any(
            "launch 1 was cut short: its losses and memory are missing" in text for text in arm.warnings
        )


@pytest.mark.parametrize("who", ["session", "rank"])
def test_two_ranks_killed_before_their_first_round_can_be_completed(
    cli: Cli, tmp_path: Path, who: str
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter.py").write_text((FAKE / "adapter.py").read_text())
    (adapter / "adapter.yaml").write_text((FAKE / "adapter.yaml").read_text() + "launcher: torchrun\n")
    arm = {"codebase": "fake", "options": {"step_s": 0.2, "pid_file": str(tmp_path / "pids")}}
    recipe = cli.recipe(arms=[arm], baseline={})
    more = ("--set", "workload.ranks=2", "--set", "measure.launches=1")
    process = cli.start("run", recipe, "--adapters", adapter, "--results", cli.results, *more)
    folder = wait_for_blocks(cli, 1)
    process.kill() if who == "session" else os.kill(pids(tmp_path / "pids")[-1], signal.SIGKILL)
    process.communicate(timeout=60)
    retry = ["--retry-failed"] if who == "rank" else []
    done = cli("run", "--resume", folder, "--adapters", adapter, "--results", cli.results, *retry)
    assert done.code == 0, done.err
    assert cli.arm("fake")["status"] == "ok"
    assert not any(alive(pid) for pid in pids(tmp_path / "pids"))


def test_killed_session_leaves_no_forked_worker_and_no_server(cli: Cli, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter.py").write_text((FAKE / "adapter.py").read_text())
    (adapter / "adapter.yaml").write_text((FAKE / "adapter.yaml").read_text() + "preload: [numpy]\n")
    recipe = cli.recipe(arms=[SLOW], measure={"quiet": "off", "warmup": 1, "steps": 2, "rounds": 500})
    process = cli.start("run", recipe, "--aa", "--adapters", adapter, "--results", cli.results)
    wait_for_blocks(cli, 5)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 3
    process.kill()
    process.communicate()
    assert not psutil.wait_procs(children, timeout=10)[1]


def test_two_sessions_at_once_on_one_results_folder_keep_apart(cli: Cli) -> None:
    recipe = cli.recipe()
    arguments = ("run", recipe, "--adapters", FAKE, "--results", cli.results)
    processes = [cli.start(*arguments) for _ in range(2)]
    for process in processes:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert len(cli.runs()) == 2
    for folder in cli.runs():
        assert [arm.blocks for arm in Run(folder).arms()] == [6, 6]


def test_run_being_measured_cannot_be_resumed(cli: Cli, tmp_path: Path) -> None:
    process = cli.start("run", long_recipe(cli, tmp_path), "--adapters", FAKE, "--results", cli.results)
    folder = wait_for_blocks(cli, 2)
    second = cli("run", "--resume", folder, "--adapters", FAKE, "--results", cli.results)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert second.code == 2
    assert "another bench session" in second.err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_full_disk_keeps_finished_blocks_and_resume_completes_run(cli: Cli, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mount.returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        cli.results = disk / "results"
        filler = disk / "filler"
        process = cli.start(
            "run", long_recipe(cli, tmp_path), "--adapters", FAKE, "--results", cli.results,
            "--set", "measure.rounds=20",
        )  # fmt: skip
        folder = wait_for_blocks(cli, 6)
        with filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 1024)
            except OSError:
                pass
        _, err = process.communicate(timeout=60)
        assert process.returncode == 4
        assert "No space left" in err
        assert "--resume" in err
        assert not any(alive(pid) for pid in pids(tmp_path / "pids"))
        kept = Run(folder).journal()
        assert len(kept) >= 6

        filler.unlink()
        shutil.copytree(cli.results, tmp_path / "roomier")
        moved = tmp_path / "roomier" / folder.relative_to(cli.results)
        done = cli("run", "--resume", moved, "--adapters", FAKE, "--results", tmp_path / "roomier")
        assert done.code == 0, done.err
        assert Run(moved).journal()[: len(kept)] == kept
        assert {arm.status for arm in Run(moved).arms()} == {"ok"}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


def test_missing_environment_fails_its_arm_and_names_the_fix(cli: Cli, tmp_path: Path) -> None:
    adapter = tmp_path / "elsewhere"
    shutil.copytree(FAKE, adapter)
    text = (adapter / "adapter.yaml").read_text().replace("name: fake\n", "name: elsewhere\n", 1)
    (adapter / "adapter.yaml").write_text(
        text + "environment: {kind: own, steps: [{packages: [numpy==2.4.6]}]}\n"
    )
    recipe = cli.recipe(arms=[SLOW, {"codebase": "elsewhere"}])
    done = cli.run(recipe, "--adapters", adapter, env={**os.environ, "BENCH_CACHE": str(tmp_path / "cache")})
    assert done.code == 4
    failure = cli.arm("elsewhere")["failure"]
    assert failure["reason"] == "environment"
    assert "bench env create elsewhere" in failure["message"]
    assert cli.arm("slow")["status"] == "ok"


def test_json_output_is_one_document_also_when_arm_fails(cli: Cli) -> None:
    done = cli.run(cli.recipe(arms=faulty(raise_at=4)), "--json")
    document = json.loads(done.out)
    assert document["exit_code"] == done.code == 4
    assert {arm["id"]: arm["status"] for arm in document["arms"]} == {"slow": "ok", "faulty": "failed"}
