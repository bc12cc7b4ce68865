"""A group of workers is ended twice, by whoever started it and by its stack."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from bench.measure.process import LaunchSpec, WorkerGroup


def test_group_that_was_ended_can_be_stopped(tmp_path: Path) -> None:
    spec = LaunchSpec(Path(sys.executable), "python", 1, {}, tmp_path / "log")
    ours, theirs = socket.socketpair()
    with theirs, WorkerGroup(spec) as group:
        group._connections, group._buffers = [ours], [bytearray()]
    group.stop()
