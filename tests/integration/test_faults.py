"""Whatever a codebase, a user or the machine does: one failed arm, nothing measured lost, no process left."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from bench.record.run import Run
from tests.conftest import FAKE, Cli, Finished, alive, pids
from tests.helpers.runs import wait_for_blocks

SLOW: dict[str, Any] = {"codebase": "fake", "label": "slow", "options": {"step_s": 0.02}}


def faulty(**options: Any) -> list[dict[str, Any]]:
    return [SLOW, {"codebase": "fake", "label": "faulty", "options": {"step_s": 0.001, **options}}]


def start(cli: Cli, recipe: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    """A run in the background."""
    return cli.start("run", recipe, "--adapters", FAKE, "--results", cli.results, *arguments, **options)


#: Arm → options, reason of its failure, text of its message.
FAILURES: dict[str, tuple[dict[str, Any], str, str]] = {
    "killed": ({"kill_at": 4}, "killed", "SIGKILL"),
    "crashed": ({"crash_at": 4}, "crash", "exit code 9"),
    "raised": ({"raise_at": 4}, "exception", "raised as asked"),
    "surrogate": ({"raise_at": 4, "says": r"\ud800"}, "exception", r"raised as asked\ud800"),
    "no number": ({"nan_at": 4}, "nan", "loss = nan"),
    "hung": ({"hang_at": 4}, "hang", "deadline"),
    "unprepared": ({"prepare": "raise"}, "exception", "prepare failed as asked"),
    "gone": ({"prepare": "exit"}, "crash", "exit code 7"),
    "never ready": ({"prepare": "hang"}, "hang", "deadline"),
}
#: Arm → options of codebases that are odd, and measured all the same.
ODD: dict[str, dict[str, Any]] = {
    "garbage": {"garbage": r"\x00\x1b[31m{]"},
    "half": {"says": r"\ud800"},
    "parent": {"child": "children"},
    "orphan": {"orphan": "orphans"},
}


@dataclass(frozen=True)
class Sick:
    """One run of a healthy arm among faulty and odd ones."""

    cli: Cli
    done: Finished

    def arm(self, label: str) -> dict[str, Any]:
        return self.cli.arm(label.replace(" ", "-"))


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Sick:
    folder = tmp_path_factory.mktemp("sick")
    options = {label: fault for label, (fault, _, _) in FAILURES.items()}
    options |= {
        label: {
            key: str(folder / value) if key in ("child", "orphan") else value for key, value in odd.items()
        }
        for label, odd in ODD.items()
    }
    arms = [
        {
            "codebase": "fake",
            "label": label,
            "options": {"step_s": 0.001, "pid_file": str(folder / "pids"), **more},
        }
        for label, more in options.items()
    ]
    cli = Cli(folder)
    recipe = cli.recipe(arms=[SLOW, *arms])
    return Sick(cli, cli.run(recipe, "--set", "measure.deadline_s=4", "--json"))


@pytest.mark.parametrize("label", FAILURES)
def test_faulty_codebase_fails_its_arm(sick: Sick, label: str) -> None:
    options, reason, text = FAILURES[label]
    failed = sick.arm(label)
    assert failed["status"] == "failed"
    assert failed["failure"]["reason"] == reason
    assert text in failed["failure"]["message"]
    if "prepare" not in options:  # step 4 is in the second block: the first one was measured and stays
        assert failed["blocks"] >= 1


def test_other_arms_go_on_and_no_process_is_left(sick: Sick) -> None:
    assert sick.done.code == 4, sick.done.err
    healthy = sick.arm("slow")
    assert healthy["status"] == "ok"
    assert healthy["blocks"] == 6
    assert len(pids(sick.cli.folder / "pids")) >= len(FAILURES) + 2 * len(ODD)
    assert not any(alive(pid) for pid in pids(sick.cli.folder / "pids"))


def test_json_output_is_one_document_also_when_arms_fail(sick: Sick) -> None:
    document = json.loads(sick.done.out)
    assert document["exit_code"] == sick.done.code == 4
    states = {arm["id"]: arm["status"] for arm in document["arms"]}
    assert states["slow"] == states["garbage"] == "ok"
    assert states["raised"] == "failed"


def test_log_tail_of_failed_arm_shows_where_codebase_raised(sick: Sick) -> None:
    tail = "\n".join(sick.arm("raised")["failure"]["log_tail"])
    assert "Traceback" in tail
    assert "ValueError: raised as asked" in tail


def test_garbage_on_standard_output_disturbs_neither_messages_nor_terminal(sick: Sick) -> None:
    assert sick.arm("garbage")["status"] == "ok"
    assert "\x1b[31m{]" not in sick.done.out + sick.done.err
    log = sick.cli.runs()[-1] / "logs" / "garbage-0.log"
    assert b"\x1b[31m{]" in log.read_bytes()


@pytest.mark.parametrize("label", ["parent", "orphan"])
def test_process_that_left_workers_group_does_not_outlive_run(sick: Sick, label: str) -> None:
    left = pids(sick.cli.folder / next(iter(ODD[label].values())))
    assert sick.arm(label)["status"] == "ok"
    assert len(left) == 2  # one a launch
    assert not any(alive(pid) for pid in left)


def test_half_of_surrogate_pair_is_written_as_its_escape(sick: Sick) -> None:
    assert sick.arm("half")["status"] == "ok"
    assert sick.arm("half")["losses"][0]["losses"].keys() == {r"loss\ud800"}


def test_detections_that_cannot_be_fail_their_arm_alone(cli: Cli) -> None:
    finds = ["nan", "negative", "foreign", "label"]
    arms = [
        {"codebase": "fake", "label": find, "options": {"step_s": 0.001, "finds": find}} for find in finds
    ]
    done = cli.run(
        cli.recipe(arms=[SLOW, *arms]), "--set", "workload.task=infer", "--set", "measure.launches=1"
    )
    assert done.code == 4, done.err
    for find in finds:
        assert cli.arm(find)["failure"]["reason"] == "exception", find
        assert "of image" in cli.arm(find)["failure"]["message"]
    assert cli.arm("slow")["status"] == "ok"


def test_damaged_weights_fail_their_arm_alone(cli: Cli, tmp_path: Path) -> None:
    whole, bomb = io.BytesIO(), io.BytesIO()
    np.savez_compressed(whole, a=np.zeros(100))
    np.savez_compressed(bomb, a=np.zeros(2**26))
    files = {"garbage": b"no archive", "cut": whole.getvalue()[:-40], "bomb": bomb.getvalue()}
    for name, content in files.items():
        (tmp_path / f"{name}.npz").write_bytes(content)
    arms = [{"codebase": "fake", "label": name, "weights": str(tmp_path / f"{name}.npz")} for name in files]
    done = cli.run(cli.recipe(arms=[SLOW, *arms]), "--set", "measure.launches=1")
    assert done.code == 4, done.err
    for name in files:
        failure = cli.arm(name)["failure"]
        assert failure["reason"] == "environment", name
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
    first = start(cli, cli.recipe(), "--set", "measure.rounds=2000")
    wait_for_blocks(cli, 2)
    second = cli.run(cli.recipe(), cwd=tmp_path)  # a process of its own
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert (first.returncode, second.code) == (130, 0)
    for folder in cli.runs():
        assert any("another bench session" in text for text in Run(folder).record().warnings)


def long_recipe(cli: Cli, tmp_path: Path) -> Path:
    arms = [{"codebase": "fake", "label": label, "options": {"step_s": 0.03, "pid_file": str(tmp_path / "pids")}}
            for label in ("slow", "fast")]  # fmt: skip
    return cli.recipe(arms=arms, measure={"warmup": 1, "steps": 2, "rounds": 15, "launches": 2})


@pytest.mark.parametrize(
    ("number", "blocks"),
    [
        (signal.SIGINT, 0),
        (signal.SIGHUP, 7),
        *(
            pytest.param(number, blocks, marks=pytest.mark.nightly)
            for blocks in (0, 7)
            for number in (signal.SIGQUIT, signal.SIGTERM)
        ),
        (signal.SIGINT, 7),
    ],
)
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
    assert len(pairs[0] & pairs[1]) == 30


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


@pytest.mark.parametrize("who", ["session", pytest.param("rank", marks=pytest.mark.nightly)])
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
    recipe = cli.recipe(arms=[SLOW], measure={"warmup": 1, "steps": 2, "rounds": 500})
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
    process = start(cli, long_recipe(cli, tmp_path), "--set", "measure.rounds=2000")
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
