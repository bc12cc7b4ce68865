"""Files of strangers."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from bench.errors import BenchError, telling


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
