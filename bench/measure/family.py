"""Processes below this one: all of them, and what becomes of those whose parent ends."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

PR_SET_CHILD_SUBREAPER = 36


def oom_kills() -> int:
    """Processes that the kernel killed for want of memory since it started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return 0


def descendants(pid: int) -> list[psutil.Process]:
    """All processes below one: also those in sessions of their own, and those with another environment."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return []


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """What workers leave behind becomes a child of this process, and ends at the end of the block at the latest."""
    before = {process.pid for process in descendants(os.getpid())}
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        for process in descendants(os.getpid()):
            if process.pid not in before:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def is_running(process: psutil.Process) -> bool:
    """Whether it is the process that it was, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
