"""Training and evaluation logs of detection codebases, read as their tools wrote them.

    result = import_logs("auto", [Path("train.log")], from_iter=20, to_iter=1000)
    print(render(result))

`formats/` holds one module per log format, `stream` turns lines into events, `summary` events into rates and curves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from bench.errors import BenchError, did_you_mean
from bench.importers import reader
from bench.importers.clock import STAMP, Clock
from bench.importers.compare import compare_logs, render_comparison
from bench.importers.foreign import remedy
from bench.importers.format import Format
from bench.importers.formats import known_formats
from bench.importers.render import render, to_json
from bench.importers.stream import Stream
from bench.importers.summary import ImportResult, Summarizer

__all__ = [
    "ImportResult",
    "compare_logs",
    "import_logs",
    "known_formats",
    "render",
    "render_comparison",
    "to_json",
]

AUTO = "auto"
_LINES_SEARCHED_FOR_A_STAMP = 10_000


def import_logs(
    format: str,
    files: Sequence[Path],
    *,
    from_iter: int | None = None,
    to_iter: int | None = None,
) -> ImportResult:
    """Read a log. Several files are parts of one log (rotated): they are read in the order of their first times, or as
    given when one of them shows none.

    ``format`` is a name of `known_formats()` or `auto`; iterations are as the log counts them, the window is inclusive.
    Raises BenchError when a file cannot be read or holds nothing of the format(s).
    """
    formats = known_formats()
    if format != AUTO and format not in formats:
        raise BenchError(f"unknown log format '{format}'", hint=did_you_mean(format, [AUTO, *formats]))
    if not files:
        raise BenchError("no log file given")
    if from_iter is not None and to_iter is not None and from_iter >= to_iter:
        raise BenchError(f"the window is empty: from iteration {from_iter} to {to_iter}")
    chosen = list(formats.values()) if format == AUTO else [formats[format]]
    paths = _in_order(list(files))
    stream = Stream(chosen)
    summarizer = Summarizer(from_iter, to_iter)
    for path in paths:
        for event in stream.read(path):
            summarizer.add(event)
    log = summarizer.result()
    if not log.sections and not log.found:
        raise _nothing_found(format, paths, formats, log.broken_lines, stream.counts.not_read)
    train_lines = {name: count for name, count in stream.counts.train_lines.items() if count}
    return ImportResult(
        files=tuple(paths),
        from_iter=from_iter,
        to_iter=to_iter,
        lines=stream.counts.lines,
        size_bytes=sum(path.stat().st_size for path in paths),
        train_lines=train_lines,
        caveats={name: formats[name].caveats for name in train_lines},
        not_read=dict(stream.counts.not_read),
        log=log,
    )


def _in_order(paths: list[Path]) -> list[Path]:
    """Rotated files by their first stamp; `log.1` is older than `log`, whatever their names' order."""
    if len(paths) == 1:
        return paths
    starts = {path: _first_time_ms(path) for path in paths}
    return paths if None in starts.values() else sorted(paths, key=lambda path: starts[path] or 0)


def _first_time_ms(path: Path) -> int | None:
    for line in _first_lines(path):
        if (match := STAMP.match(line)) is not None:
            try:
                return Clock().read(match[1])
            except ValueError:
                continue
    return None


def _first_lines(path: Path) -> Iterator[bytes]:
    return (line for line, _ in islice(reader.lines(path), _LINES_SEARCHED_FOR_A_STAMP))


def _nothing_found(
    format: str, paths: list[Path], formats: Mapping[str, Format], broken: int, not_read: Mapping[str, int]
) -> BenchError:
    where = ", ".join(str(path) for path in paths)
    if not_read:
        tool = max(not_read, key=lambda name: not_read[name])
        return BenchError(f"this is a log of {tool}, which is not read", where=where, hint=remedy(tool))
    first = next((line for line in _first_lines(paths[0]) if line.strip()), b"")
    shown = reader.text(first)[:120]
    what = "of a known format" if format == AUTO else f"of the format '{format}'"
    also = f" ({broken} broken lines of it)" if broken else ""
    return BenchError(
        f"no training, evaluation or inference line {what}{also}; the file begins: {shown!r}",
        where=where,
        hint=f"known formats: {', '.join([AUTO, *formats])}",
    )
