"""One session at a time: a lock that ends with its process, on any file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from bench.errors import BenchError
from bench.measure.scratch import started

#: What file systems without flock answer (some NFS and Lustre).
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}


@contextlib.contextmanager
def exclusive(path: Path, *, then_shared: bool = False) -> Iterator[bool]:
    """Whether this process has the lock; it has it until the end of the block.

    Args:
        path: The file of the lock.
        then_shared: Share it from then on, had or not: it is given to nobody until all who share it have ended.

    Raises:
        BenchError: The file of the lock cannot be opened; a link is never followed.
    """
    descriptor = _open(path)
    owner, held = None, False
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            owner = path.with_name(f"{path.name}.owner")
            held = _own(owner)
        if then_shared:
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield held
    finally:
        os.close(descriptor)
        if owner is not None and held:
            owner.unlink(missing_ok=True)


def _open(path: Path) -> int:
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):  # another user's lock may be read only
        try:
            return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            problem = error
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                break
    text = "is a link" if problem.errno == errno.ELOOP else f"cannot be locked: {problem.strerror}"
    hint = "BENCH_CACHE names a cache folder of your own" if path.name == "measuring.lock" else None
    raise BenchError(text, where=str(path), hint=hint) from None


def _own(path: Path) -> bool:
    """The lock of a file system without flock: a file that names its owner. That of an ended process counts no more."""
    mine = f"{os.uname().nodename} {os.getpid()} {started(os.getpid())}"
    for _ in range(2):
        with contextlib.suppress(FileExistsError):
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "w") as file:
                file.write(mine)
            return True
        with contextlib.suppress(OSError, ValueError):
            host, pid, ticks = path.read_text().split()
            if host != os.uname().nodename or started(int(pid)) == int(ticks):
                return False
            path.unlink()
    return False
