"""Lines of log files as bytes, in bounded memory: rotated, compressed, coloured, with any line ends and encoding."""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from bench.errors import BenchError

CHUNK_BYTES = 1 << 20
#: A line longer than this is no log line; the file is binary, or its newlines are lost.
MAX_LINE_BYTES = 1 << 24

_ANSI = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")


def _open(path: Path) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise BenchError(f"cannot read: {error.strerror or error}", where=str(path)) from None


def _chunks(path: Path) -> Iterator[bytes]:
    """Chunks of a file as UTF-8 or, where it is not UTF-16 (PowerShell's `>`), as whatever bytes it holds."""
    with _open(path) as file:
        try:
            first = file.read(CHUNK_BYTES)
            if first[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                decoder = codecs.getincrementaldecoder("utf-16")("replace")
                while first:
                    yield decoder.decode(first).encode()
                    first = file.read(CHUNK_BYTES)
                return
            yield first.removeprefix(codecs.BOM_UTF8)
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
        except (OSError, EOFError) as error:
            raise BenchError(f"cannot read: {error}", where=str(path)) from None


def lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Lines without colours and line ends, and whether a newline ended each: only the last line may lack one.

    A carriage return within a line (progress bars) ends a line, too.
    """
    rest = b""
    for chunk in _chunks(path):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise BenchError("not a text log: a line of more than 16 MB", where=str(path))
        for line in whole:
            yield from ((part, True) for part in _clean(line))
    if rest:
        *whole, last = _clean(rest)
        yield from ((part, True) for part in whole)
        yield last, False


def _clean(line: bytes) -> list[bytes]:
    if b"\x1b" in line:
        line = _ANSI.sub(b"", line)
    return line.rstrip(b"\r").split(b"\r")


def text(line: bytes) -> str:
    """A line for a person to read: UTF-8, or else the Chinese encoding that the reference's tools also write."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("gb18030", "replace")
