"""The cells of a store as run folders, so that everything that reads runs reads them too.

Cells of one plan, measured with the same code, become one run. Where a cell was measured stands in `RunRecord.cells`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from bench.errors import BenchError, telling
from bench.record.models import RunRecord
from bench.record.names import file_name
from bench.record.run import JOURNAL, Run
from bench.record.store import SUFFIX, Store, members

#: Of these a cell's own files are copied into the run; the journals and records are joined.
_JOINED = ("run.json", JOURNAL)


@dataclass(frozen=True)
class _Cell:
    key: str
    record: RunRecord
    plan: str
    """Equal for the cells of one run."""


def collect(store: Store, recipe: str, root: Path, keys: Sequence[str] | None = None) -> list[Run]:
    """Run folders of the finished cells of a recipe, below `root/<recipe>/`; one that is there already stays.

    Args:
        store: Where the cells are.
        recipe: Name of the recipe.
        root: A results folder.
        keys: Only these; by default all.

    Raises:
        BenchError: The store cannot be read, or holds what is no cell.
    """
    _named(recipe)
    found = sorted(store.keys(recipe) if keys is None else set(keys) & store.keys(recipe))
    cells = [_cell(store, recipe, key) for key in found]
    return [_joined(store, recipe, run, root) for run in _runs(cells)]


def _cell(store: Store, recipe: str, key: str) -> _Cell:
    where = f"{recipe}/{key}{SUFFIX}"
    text = members(store.read(recipe, key), where).get("run.json", b"")
    try:
        record = RunRecord.model_validate_json(text)
    except ValidationError as error:
        raise BenchError(f"not a packed cell: {error.errors()[0]['msg']}", where=where) from None
    if len(record.cells) != 1:
        raise BenchError("not a packed cell: its record is not of one cell", where=where)
    same = [record.recipe, record.bench_version, record.git.revision, record.baseline, record.aa]
    return _Cell(key, record, json.dumps(same, sort_keys=True))


def _runs(cells: Sequence[_Cell]) -> list[list[_Cell]]:
    """Cells of one plan; a cell that was measured twice, with other environments, begins another run."""
    runs: list[tuple[str, dict[str, _Cell]]] = []
    for cell in sorted(cells, key=lambda one: (one.record.started_utc, one.key)):
        (name,) = cell.record.cells
        fitting = (members for plan, members in runs if plan == cell.plan and name not in members)
        if (members := next(fitting, None)) is None:
            runs.append((cell.plan, members := {}))
        members[name] = cell
    return [
        sorted(run.values(), key=lambda one: next(iter(one.record.cells.values())).index) for _, run in runs
    ]


def _joined(store: Store, recipe: str, cells: Sequence[_Cell], root: Path) -> Run:
    """One run folder of some cells."""
    record = _record([cell.record for cell in cells])
    digest = hashlib.sha256(" ".join(cell.key for cell in cells).encode()).hexdigest()[:6]
    record.id = _named(f"{record.started_utc.replace('-', '').replace(':', '')[:15]}Z-{digest}")
    folder = root / recipe / record.id
    if (folder / "run.json").exists():
        return Run(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".collect-", dir=folder.parent))
    try:
        with telling("cannot be written", folder):
            for cell in cells:
                _unpack(members(store.read(recipe, cell.key), f"{recipe}/{cell.key}{SUFFIX}"), temporary)
            Run(temporary).write_record(record)
            temporary.chmod(0o755)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Run(folder)


def _named(text: str) -> str:
    """A text of a store that becomes the name of a folder. Raises BenchError for one that would lead elsewhere."""
    try:
        return file_name(text)
    except ValueError as error:
        raise BenchError(f"the store holds what is no cell: {error}") from None


def _unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Add the files of a cell to a run folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name == JOURNAL:
            with path.open("ab") as journal:
                journal.write(content)
        elif name not in _JOINED and not path.exists():
            path.write_bytes(content)


def _record(records: Sequence[RunRecord]) -> RunRecord:
    """The record of all cells together; what holds for one only stays with it."""
    record = records[0].model_copy(deep=True)
    record.cells = {name: cell for one in records for name, cell in one.cells.items()}
    record.arms = [arm for one in records for arm in one.arms]
    record.started_utc = min(one.started_utc for one in records)
    record.ended_utc = max((one.ended_utc or "" for one in records), default="") or None
    record.status = "complete" if all(one.status == "complete" for one in records) else "failed"
    record.dataset = {name: found for one in records for name, found in one.dataset.items()}
    record.warnings = list(dict.fromkeys(warning for one in records for warning in one.warnings))
    planned = max(cell.planned for cell in record.cells.values())
    if missing := planned - len(record.cells):
        record.warnings.append(f"{missing} of {planned} cells are not in the store")
    kinds = {cell.fingerprint for cell in record.cells.values()}
    if len(kinds) > 1:
        record.warnings.append(
            f"the cells were measured on {len(kinds)} kinds of machines; arms of unlike machines are not compared"
        )
    return record
