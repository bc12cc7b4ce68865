"""Folders that live as long as a process: each names its owner, and the next session clears those of ended ones."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bench.errors import StorageError

#: A Unix socket's path has at most 107 bytes; what is left is for names below the folder.
MAX_SOCKET_PATH = 100
_NAME = re.compile(r"bench-(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<started>\d+)-\w+")


def new_folder(parents: Iterable[Path], longest: int | None = None) -> Path:
    """A folder of this process's own, for one user.

    Args:
        parents: Places for it, the best one first.
        longest: Bytes that its path may have.

    Raises:
        StorageError: None of the places can be written, or all are too long.
    """
    problem = "no place for temporary files"
    for parent in parents:
        if longest is not None and len(os.fsencode(parent.absolute())) + 50 > longest:
            problem = f"the path of {parent} is too long"
            continue
        try:
            parent.mkdir(parents=True, exist_ok=True)
            prefix = f"bench-{_host()}-{os.getpid()}-{started(os.getpid())}-"
            return Path(tempfile.mkdtemp(prefix=prefix, dir=parent.absolute()))
        except OSError as error:
            problem = f"cannot write {parent}: {error.strerror or error}"
    raise StorageError(problem)


def socket_places() -> list[Path]:
    """Where the folder of a worker's socket may be: the temporary folder, or one whose path is short."""
    return [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp"), Path("/dev/shm")]


def clear_dead(parents: Iterable[Path]) -> list[Path]:
    """Remove the folders in these places whose owner has ended. Returns those removed; what resists stays."""
    removed = []
    for parent in dict.fromkeys(parents):
        with contextlib.suppress(OSError):
            for folder in parent.glob("bench-*"):
                match = _NAME.fullmatch(folder.name)
                if match is None or match["host"] != _host() or folder.is_symlink():
                    continue
                if started(int(match["pid"])) != int(match["started"]):
                    shutil.rmtree(folder, ignore_errors=True)
                    removed.append(folder)
    return removed


@contextlib.contextmanager
def own_folder(parents: Sequence[Path]) -> Iterator[Path]:
    """`new_folder`, which goes at the end of the block; those of ended processes go at the beginning."""
    clear_dead(parents)
    folder = new_folder(parents)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def started(pid: int) -> int:
    """When a process started, in ticks since the machine did; 0 when there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def _host() -> str:
    """The machine and its space of process ids: another container may share the folder."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]
