"""Files of strangers."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from bench.errors import BenchError, telling

Item = TypeVar("Item")


def read_file(path: Path) -> bytes:
    """The content of a regular file: a device or a pipe, also behind a link, may have no end.

    Raises:
        BenchError: It is none, or cannot be read.
    """
    with telling("cannot be read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for a writer
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BenchError("not a regular file", where=str(path))
            return file.read()


#: Who is told how far a long preparation is, and how often.
TOLD: ContextVar[Callable[[str], None] | None] = ContextVar("TOLD", default=None)
EVERY_S = 10.0


def watched(items: Sequence[Item], doing: str) -> Iterator[Item]:
    """The items; every ten seconds `TOLD` hears how many are done."""
    told_s, tell = time.monotonic(), TOLD.get()
    for done, item in enumerate(items):
        if tell is not None and time.monotonic() - told_s >= EVERY_S:
            told_s = time.monotonic()
            tell(f"{doing}: {done:,} of {len(items):,}")
        yield item
