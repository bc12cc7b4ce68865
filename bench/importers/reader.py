"""Lines of log files as bytes: rotated, compressed, with any line ends and encoding, or the outputs of a notebook."""

from __future__ import annotations

import codecs
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from bench.errors import BenchError, telling

CHUNK_BYTES = 1 << 20
#: A line longer than this is no log line; the file is binary, or its newlines are lost.
MAX_LINE_BYTES = 1 << 24
_MAX_NOTEBOOK_BYTES = 1 << 28

# Colours, also where the escape character was lost on the way or replaced by its name.
_ANSI = re.compile(
    rb"\x1b\[[0-9;?]{0,40}[ -/]{0,10}[@-~]|\x1b[@-Z\\-_]"
    rb"|(?:\^\[|\\x1b|\\033|\\u001b|\xe2\x90\x9b)?\[\d{1,3}(?:;\d{1,3}){0,9}m"
)


def lines(path: Path) -> Iterator[tuple[bytes, bool]]:
    """Lines without colours and line ends, and whether a newline ended each: only the last line may lack one.

    A carriage return within a line (progress bars) ends a line, too. Raises BenchError.
    """
    rest = b""
    for chunk in _notebook(path) if path.suffix == ".ipynb" else _chunks(path):
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            raise BenchError("not a text log: a line of more than 16 MB", where=str(path))
        for line in whole:
            yield from ((part, True) for part in _clean(line))
    if rest:
        *parts, last = _clean(rest)
        yield from ((part, True) for part in parts)
        yield last, False


def _open(path: Path) -> BinaryIO:
    with telling("cannot read", path):
        return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


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


def _notebook(path: Path) -> Iterator[bytes]:
    """What the cells of a Jupyter notebook printed, in their order."""
    with _open(path) as file:
        content = file.read(_MAX_NOTEBOOK_BYTES + 1)
    if len(content) > _MAX_NOTEBOOK_BYTES:
        raise BenchError("a notebook of more than 256 MB", where=str(path))
    try:
        cells = json.loads(content)["cells"]
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        texts = [(output.get("name"), _printed(output)) for output in outputs]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BenchError(
            "not a Jupyter notebook, or a damaged one",
            where=str(path),
            hint="copy the printed lines into a text file and import that",
        ) from None
    stream: Any = None
    for name, text in texts:
        if name != stream:
            yield b"\n"
            stream = name
        yield text.encode("utf-8", "replace")


def _printed(output: Any) -> str:
    text = output["text"] if "text" in output else output.get("data", {}).get("text/plain", "")
    return text if isinstance(text, str) else "".join(text)


def _clean(line: bytes) -> list[bytes]:
    if b"\x1b" in line or b"[0m" in line or b"m[" in line:
        line = _ANSI.sub(b"", line)
    return line.rstrip(b"\r").split(b"\r")


def text(line: bytes) -> str:
    """A line for a person to read: UTF-8, or else the Chinese encoding that the reference's tools also write."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        return line.decode("gb18030", "replace")
