"""Errors meant for the user: what is wrong, where, and what to do next. They end a command with an exit code."""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path


class ExitCode:
    """Process exit codes of every `bench` command."""

    SUCCESS = 0
    REGRESSION = 1
    BAD_INPUT = 2
    INCONCLUSIVE = 3
    ARM_FAILED = 4
    CRASH = 70
    INTERRUPTED = 130


class BenchError(Exception):
    """Bad input: one clear message, exit code 2.

    ``where`` is the place the user has to look at (``recipe.yaml:12``), ``hint`` the next thing to do.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, message: str, *, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"\n  {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint}"


class StorageError(BenchError):
    """The run folder cannot be written (disk full, no permission). What was measured before is kept."""

    exit_code = ExitCode.ARM_FAILED


@contextlib.contextmanager
def telling(problem: str, path: Path, hint: str | None = None) -> Iterator[None]:
    """What the system says of a file or folder in here is bad input: `PATH: cannot be read: No such file`."""
    try:
        yield
    except OSError as error:
        raise BenchError(f"{problem}: {error.strerror or error}", where=str(path), hint=hint) from None


def read_file(path: Path, most: int | None = None) -> bytes:
    """The content of a regular file: a device or a pipe, also behind a link, may have no end.

    Raises:
        BenchError: It is none, cannot be read, or is longer than so many bytes.
    """
    with telling("cannot be read", path):
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # opening a pipe must not wait for a writer
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BenchError("not a regular file", where=str(path))
            content = file.read(-1 if most is None else most + 1)
    if most is not None and len(content) > most:
        raise BenchError(f"longer than {most >> 10} KiB", where=str(path))
    return content


@contextlib.contextmanager
def storing(path: Path, hint: str | None = None) -> Iterator[None]:
    """What the system says of a file or folder that is written in here is a StorageError."""
    try:
        yield
    except OSError as error:
        if hint is not None and isinstance(error, FileNotFoundError):
            hint = "somebody removed its folder, and with it what was measured: measure again"
        raise StorageError(f"cannot write {path}: {error.strerror or error}", hint=hint) from error


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A hint that names the nearest known names; empty when none is as near as `cutoff` (1: the same)."""
    found = difflib.get_close_matches(name, sorted(known), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(found)}?" if found else ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint that names the nearest known names, or all of them when none is near."""
    names = sorted(known)
    return near(name, names) or (f"known: {', '.join(names)}" if names else "none is known")
