"""Newline-delimited JSON between the session and its workers, over a Unix socket of their own.

Standard output belongs to the codebase, so it cannot carry messages. A named socket rather than inherited pipes,
because launchers such as torchrun close what they inherit; every rank connects by itself and says who it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import threading
from typing import Any, Dict

from bench.worker import PROTOCOL_VERSION

PR_SET_PDEATHSIG = 1
SOCKET_VARIABLE = "BENCH_WORKER_SOCKET"
TCP = "tcp://"


class ProtocolError(Exception):
    """The other side said something that is not a message of this version."""


def encode(message: Dict[str, Any]) -> bytes:
    return json.dumps({"version": PROTOCOL_VERSION, **message}, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Dict[str, Any]:
    """One line as a message. Raises ProtocolError for anything else."""
    try:
        message = json.loads(line)
    except ValueError:
        raise ProtocolError(f"not a JSON message: {line[:200]!r}") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError(f"not a message: {line[:200]!r}")
    if message.get("version") != PROTOCOL_VERSION:
        raise ProtocolError(
            f"protocol version {message.get('version')!r}, but this side speaks {PROTOCOL_VERSION}"
        )
    return message


class Channel:
    """The worker's end."""

    def __init__(self, path: str) -> None:
        if path.startswith(TCP):  # of a session on another machine: tcp://HOST:PORT/WORD
            place, _, word = path[len(TCP) :].rpartition("/")
            host, _, port = place.rpartition(":")
            self._socket = socket.create_connection((host, int(port)))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(word.encode() + b"\n")
        else:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.connect(path)
        self._reader = self._socket.makefile("rb")

    def send(self, **message: Any) -> None:
        self._socket.sendall(encode(message))

    def receive(self) -> Dict[str, Any]:
        """Wait for the next message, asleep in the kernel. Raises EOFError when the session is gone."""
        line = self._reader.readline()
        if not line:
            raise EOFError
        return decode(line)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()

    def die_with_session(self) -> None:
        """End this process group as soon as the session's end of the socket closes, even in the middle of a block.

        The thread sleeps in poll(2): it costs no processor time while it waits. Code that never lets it run is ended by
        the kernel, when the process that started this one ends; of several ranks that is their launcher.
        """
        if "RANK" not in os.environ and "PADDLE_TRAINER_ID" not in os.environ:
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        def watch() -> None:
            poller = select.poll()
            poller.register(self._socket, select.POLLRDHUP)
            while not poller.poll():
                pass
            os.killpg(os.getpgid(0), signal.SIGKILL)

        threading.Thread(target=watch, name="bench-watch", daemon=True).start()
