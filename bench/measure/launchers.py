"""Command lines that start the workers of an arm: on one machine, or on several that an allocation gives.

Ranks find each other by a rendezvous at the first node: c10d of torchrun, the master of `paddle.distributed.launch`.
The number of nodes is fixed and nothing restarts: a rank that dies is a failed arm.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Launcher = Literal["local", "torchrun", "paddle"]

#: Where the ranks of one machine meet.
HERE = "localhost"

NODES_VARIABLE, COMMAND_VARIABLE = "BENCH_NODES", "BENCH_NODE_COMMAND"
_SLURM = "srun --overlap --nodes=1 --ntasks=1 --nodelist={name}"


@dataclass(frozen=True)
class Node:
    """A machine of a launch. ``prefix``: what runs a command there; empty for this machine."""

    host: str
    prefix: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rendezvous:
    """Where the launchers of all nodes meet."""

    nodes: tuple[Node, ...]
    port: int
    """On the first node; 0: one that the launcher chooses, for one node."""


def allocated(count: int, environment: Mapping[str, str] | None = None) -> tuple[Node, ...]:
    """The nodes of a launch; this machine is the first.

    They are named by `BENCH_NODES`, and a command runs there by `BENCH_NODE_COMMAND` (`ssh {host}`); inside of an
    allocation of Slurm they are its nodes, by `srun`.

    Args:
        count: Machines that the arm needs.
        environment: Variables; by default those of this process.

    Raises:
        ValueError: The allocation has fewer nodes.
    """
    if count == 1:
        return (Node(HERE),)
    variables = os.environ if environment is None else environment
    hosts = {host: host for host in variables.get(NODES_VARIABLE, "").split()}
    command = variables.get(COMMAND_VARIABLE, "ssh {host}")
    if not hosts and (listed := variables.get("SLURM_JOB_NODELIST")):
        hosts, command = _nodes_of_slurm(listed), _SLURM
    if len(hosts) < count:
        raise ValueError(
            f"the arm needs {count} nodes, and {len(hosts) or 'none'} are given: run it by --executor slurm, or set "
            f"{NODES_VARIABLE}='HOST1 HOST2' with this machine first, and {COMMAND_VARIABLE}='ssh {{host}}'"
        )
    first, *others = list(hosts.items())[:count]
    started = (
        Node(host, tuple(shlex.split(command.replace("{host}", host).replace("{name}", name))))
        for name, host in others
    )
    return (Node(first[1]), *started)


def _nodes_of_slurm(listed: str) -> dict[str, str]:
    """Names of an allocation's nodes, the one of this process first → the addresses that Slurm knows them by."""
    asked = subprocess.run(
        ["scontrol", "--oneliner", "show", "node", listed],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    found = {}
    for line in asked.stdout.splitlines():
        facts = dict(word.partition("=")[::2] for word in line.split() if "=" in word)
        if "NodeName" in facts:
            found[facts["NodeName"]] = facts.get("NodeAddr", facts["NodeName"])
    here = os.environ.get("SLURMD_NODENAME", "")
    return dict(sorted(found.items(), key=lambda item: item[0] != here))


def meeting(nodes: tuple[Node, ...]) -> Rendezvous:
    """A rendezvous of these nodes at a port that is free now."""
    with socket.socket() as probe:
        probe.bind((nodes[0].host, 0))
        return Rendezvous(nodes, int(probe.getsockname()[1]))


def command(
    launcher: Launcher, python: Path, ranks: int, logs: Path, at: Rendezvous | None = None, node: int = 0
) -> Sequence[str]:
    """The command that starts the workers of one node. One rank never needs a launcher.

    Args:
        launcher: Of the codebase.
        python: Interpreter of the codebase.
        ranks: Of all nodes together.
        logs: A folder for what a launcher writes itself.
        at: The rendezvous; None: of one machine.
        node: Number of the node, from 0.
    """
    worker = ["-m", "bench.worker"]
    if ranks == 1 or launcher == "local":
        return [str(python), *worker]
    at = at or meeting((Node(HERE),))
    count, host = len(at.nodes), at.nodes[node].host
    master = f"{at.nodes[0].host}:{at.port}"
    if launcher == "torchrun":
        flags = [
            f"--nnodes={count}",
            f"--nproc-per-node={ranks // count}",
            "--max-restarts=0",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={master}",
            f"--rdzv-conf=is_host={int(node == 0)}",
            f"--rdzv-id={at.port}",
            f"--local-addr={host}",
        ]
        return [str(python), "-m", "torch.distributed.run", *flags, *worker]
    flags = [
        f"--nproc_per_node={ranks // count}",
        f"--log_dir={logs}",
        f"--master={master}",
        "--max_restart=0",
    ]
    if count > 1:
        flags += [f"--nnodes={count}", f"--rank={node}", f"--host={host}"]
    # Paddle's launcher takes a script or a program, never `-m`: the program is the interpreter itself.
    return [str(python), "-m", "paddle.distributed.launch", *flags, str(python), *worker]
