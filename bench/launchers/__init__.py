"""How the worker processes of one launch are started: one process per rank, all in one process group of their own.

Every launcher is a command line; what they have in common (environment, log, socket, killing) is in `process.py`.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Launcher = Literal["local", "torchrun", "paddle"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command(launcher: Launcher, python: Path, ranks: int, logs: Path) -> Sequence[str]:
    """The command that starts `ranks` workers. One rank never needs a launcher."""
    worker = ["-m", "bench.worker"]
    if ranks == 1 or launcher == "local":
        return [str(python), *worker]
    if launcher == "torchrun":
        rendezvous = ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
        return [str(python), "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *rendezvous, *worker]
    flags = [f"--nproc_per_node={ranks}", f"--log_dir={logs}", f"--master=127.0.0.1:{free_port()}"]
    # Paddle's launcher takes a script or a program, never `-m`: the program is the interpreter itself.
    return [str(python), "-m", "paddle.distributed.launch", *flags, str(python), *worker]
