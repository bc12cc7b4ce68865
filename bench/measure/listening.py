"""Where workers connect to: a Unix socket on one machine, TCP with a word that only they know across several."""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
import shlex
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bench.measure.launchers import Node
from bench.worker.channel import TCP


@contextlib.contextmanager
def listening(path: Path, nodes: Sequence[Node]) -> Iterator[tuple[socket.socket, str]]:
    """A bound socket, and the address that workers are told.

    Args:
        path: Of a Unix socket, for one machine.
        nodes: Machines of the workers; the first one is this.
    """
    if len(nodes) == 1:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            server.bind(str(path))
            yield server, str(path)
        return
    with socket.create_server((nodes[0].host, 0)) as server:
        port = server.getsockname()[1]
        yield server, f"{TCP}{nodes[0].host}:{port}/{secrets.token_hex(16)}"


def welcome(connection: socket.socket, address: str) -> bool:
    """Whether who connects is a worker of this launch; others are sent away."""
    if not address.startswith(TCP):
        return True
    word, said = address.rpartition("/")[2].encode() + b"\n", b""
    connection.settimeout(10)
    with contextlib.suppress(OSError):
        while len(said) < len(word) and (more := connection.recv(len(word) - len(said))):
            said += more
    if hmac.compare_digest(said, word):
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return True
    connection.close()
    return False


def write_script(
    path: Path, argv: Sequence[str], environment: Mapping[str, str], folder: Path, foreign: Iterable[str]
) -> Path:
    """A script for another machine that starts a command with what the workers need of this environment.

    Args:
        path: Of the script; only its owner may read it.
        argv: The command.
        environment: Variables of the workers here.
        folder: The current folder of the command.
        foreign: Names of variables that must not be set there.
    """
    passed = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    lines = ["#!/bin/sh", f"cd {shlex.quote(str(folder))} || exit", f"unset {' '.join(foreign)}"]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in passed.items()]
    lines.append(f"exec {shlex.join(argv)}")
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700), "w") as file:
        file.write("\n".join([*lines, ""]))
    return path
