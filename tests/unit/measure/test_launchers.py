"""Command lines of launchers, and who may connect to a session."""

from __future__ import annotations

import socket
import subprocess
import threading
from pathlib import Path

import pytest

from bench.measure.launchers import Node, Rendezvous, allocated, command
from bench.measure.listening import listening, welcome, write_script
from bench.recipe.workload import Workload
from bench.worker.channel import Channel

TWO = (Node("10.0.0.1"), Node("10.0.0.2", ("ssh", "10.0.0.2")))


def test_nodes_are_those_of_the_allocation() -> None:
    variables = {"BENCH_NODES": "10.0.0.1 10.0.0.2 10.0.0.3", "BENCH_NODE_COMMAND": "ssh -q {host}"}
    assert allocated(2, variables) == (Node("10.0.0.1"), Node("10.0.0.2", ("ssh", "-q", "10.0.0.2")))
    assert len(allocated(1, {})) == 1
    with pytest.raises(ValueError, match="the arm needs 3 nodes, and 2 are given"):
        allocated(3, {"BENCH_NODES": "a b"})


@pytest.mark.parametrize("launcher", ["torchrun", "paddle"])
def test_all_nodes_meet_at_the_first(launcher: str) -> None:
    at = Rendezvous(TWO, 4321)
    lines = [" ".join(command(launcher, Path("python"), 4, Path("logs"), at, node)) for node in (0, 1)]  # type: ignore[arg-type]
    assert all("10.0.0.1:4321" in line and "127.0.0.1" not in line for line in lines)
    assert all("nnodes=2" in line and "per-node=2" in line.replace("_", "-") for line in lines)
    assert all("max-restarts=0" in line or "max_restart=0" in line for line in lines)
    assert "10.0.0.2" in lines[1]


def test_one_rank_needs_no_launcher() -> None:
    assert list(command("torchrun", Path("python"), 1, Path("logs"))) == ["python", "-m", "bench.worker"]


def test_only_who_knows_the_word_is_let_in(tmp_path: Path) -> None:
    with listening(tmp_path / "s", (Node("127.0.0.1"), Node("127.0.0.2"))) as (server, address):
        wrong = address[:-1] + ("0" if address[-1] != "0" else "1")
        for told, let_in in ((wrong, False), (address, True)):
            thread = threading.Thread(target=Channel, args=[told])
            thread.start()
            connection, _ = server.accept()
            assert welcome(connection, address) is let_in
            thread.join()
            connection.close()


def test_one_machine_has_a_unix_socket(tmp_path: Path) -> None:
    with listening(tmp_path / "s", (Node("localhost"),)) as (server, address):
        assert server.family == socket.AF_UNIX
        assert address == str(tmp_path / "s")


def test_script_carries_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOREIGN", "1")
    argv = ["sh", "-c", "echo $MINE; echo [$FOREIGN]; pwd"]
    script = write_script(tmp_path / "n.sh", argv, {"MINE": "it's; mine"}, tmp_path, ["FOREIGN"])
    assert script.stat().st_mode & 0o077 == 0
    done = subprocess.run(["sh", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:3] == ["it's; mine", "[]", str(tmp_path)]


def test_devices_say_ranks_nodes_and_batch() -> None:
    work = Workload.model_validate({"model": "m", "devices": {"nodes": 2, "per_node": 4, "global_batch": 16}})
    assert (work.ranks, work.nodes, work.batch_size) == (8, 2, 2)
    with pytest.raises(ValueError, match="no multiple of 3 ranks"):
        Workload.model_validate({"model": "m", "devices": {"nodes": 3, "global_batch": 16}})
    with pytest.raises(ValueError, match="cannot be spread evenly"):
        Workload.model_validate({"model": "m", "ranks": 3, "nodes": 2})
