"""What was worked out of stored runs, kept in the cache: thousands of runs are read once, not at every command.

An entry holds as long as the files of its run folder have the same names, sizes and times. Without a cache that can be
written, everything is worked out anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

#: So many new runs are worth several processes.
MANY = 500
#: Entries that each write looks at, to drop those whose run is gone.
FORGOTTEN = 100


def stamp(folder: Path) -> str:
    """Of the files that records and samples are read from: their names, sizes and times of change."""
    seen = hashlib.sha256()
    for part in ("", "arms", "samples"):
        with contextlib.suppress(OSError), os.scandir(folder / part) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if part or entry.name in ("run.json", "blocks.jsonl"):
                    facts = entry.stat()
                    seen.update(
                        f"{part}/{entry.name} {facts.st_size} {facts.st_mtime_ns}\n".encode(errors="replace")
                    )
    return seen.hexdigest()[:32]


def worked_out(
    folders: Sequence[Path], work: Callable[[Path], Any], cache: Path | None, version: str
) -> Iterator[Any]:
    """`work(folder)` of every run folder, in their order.

    Args:
        folders: Run folders.
        work: A function of a module; it returns JSON values and raises nothing.
        cache: Where the results are kept; None: nowhere.
        version: Of `work`: results of another one are not used.
    """
    names = [str(folder.resolve()) for folder in folders]
    stamps = {name: stamp(folder) for name, folder in zip(names, folders, strict=True)}
    path = None if cache is None else cache / "index" / f"{version}.sqlite"
    kept = _read(path, stamps) if path else {}
    new = [(name, folder) for name, folder in zip(names, folders, strict=True) if name not in kept]
    values = _all(work, [folder for _, folder in new])
    fresh = {name: value for (name, _), value in zip(new, values, strict=True)}
    if path and fresh:
        _write(path, [(name, stamps[name], json.dumps(value)) for name, value in fresh.items()])
    for name in names:
        yield fresh[name] if name in fresh else json.loads(kept[name])


def _all(work: Callable[[Path], Any], folders: Sequence[Path]) -> list[Any]:
    if len(folders) < MANY or (os.cpu_count() or 1) < 2 or not hasattr(os, "fork"):
        return [work(folder) for folder in folders]
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        return list(pool.map(work, folders, chunksize=50))


def _read(path: Path, stamps: Mapping[str, str]) -> dict[str, str]:
    """Folder → result, where the stamp is the same; nothing where there is no index, or a damaged one."""
    with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(_open(path)) as index:
        rows = index.execute("SELECT folder, stamp, result FROM runs")
        return {folder: result for folder, mark, result in rows if stamps.get(folder) == mark}
    return {}


def _write(path: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    for _ in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(_open(path)) as index, index:
                index.executemany("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", rows)
                some = index.execute("SELECT folder FROM runs ORDER BY random() LIMIT ?", (FORGOTTEN,))
                gone = [(folder,) for (folder,) in some.fetchall() if not os.path.isdir(folder)]
                index.executemany("DELETE FROM runs WHERE folder = ?", gone)
            return
        except sqlite3.DatabaseError as error:
            if isinstance(
                error, sqlite3.OperationalError
            ):  # locked, or read-only: the next command tries again
                return
            path.unlink(missing_ok=True)  # torn by a full disk
        except OSError:
            return


def _open(path: Path) -> sqlite3.Connection:
    index = sqlite3.connect(path, timeout=5)
    index.execute("CREATE TABLE IF NOT EXISTS runs (folder TEXT PRIMARY KEY, stamp TEXT, result TEXT)")
    return index
