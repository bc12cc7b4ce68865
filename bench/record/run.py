"""What a run leaves on disk, and the only way to read and write it.

    results/<recipe>/<utc-time>-<id>/
        run.json             schema version, recipe as resolved, plan, machine, environments, git revisions
        blocks.jsonl         journal: one line per finished block, appended while measuring
        arms/<arm>.json      one record per arm, written atomically when the arm ends
        samples/<arm>.parquet    raw samples of that arm
        predictions/<arm>.json   detections in COCO results format; of a train_eval arm <arm>-<steps>.json
        ground_truth/<split>.json    what the predictions were evaluated against, in COCO format
        checkpoints/<arm>.npz    weights of a train_eval arm after its last step, in its codebase's own names
        state/<arm>-<steps>      what a train_eval arm needs to go on; gone when the arm has ended
        logs/<arm>-<launch>.log  what the codebase printed

Everything is data: nothing read here is ever evaluated or unpickled.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ValidationError

from bench.errors import BenchError, near, storing, telling
from bench.record.models import ArmRecord, Block, Revision, RunRecord
from bench.record.names import file_name
from bench.record.places import Places
from bench.record.samples import (
    Columns,
    block_columns,
    problem_of,
    read_columns,
    samples_columns,
    write_columns,
)
from bench.record.software import git_diff, git_revision

if TYPE_CHECKING:
    import pandas as pd

JOURNAL = "blocks.jsonl"

ModelT = TypeVar("ModelT", bound=BaseModel)


#: Lists of numbers in a record: one line instead of one for each. No text of JSON holds a line break.
NUMBERS = re.compile(r"\[\n[-+\deE.,\s\[\]]+\]")

#: What to do when a run folder cannot be written.
KEPT = "what was measured so far is kept; make room and complete it with: bench run --resume RUN"


def write_atomic(path: Path, text: str | bytes, *, measured: bool = False) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part.

    Args:
        path: The file.
        text: Its content.
        measured: It is a part of a run, which goes on once there is room.

    Raises:
        BenchError: It cannot be written; of a part of a run a StorageError.
    """
    data = text.encode() if isinstance(text, str) else text
    with storing(path, KEPT) if measured else telling("cannot be written", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def _read_model(path: Path, model: type[ModelT]) -> ModelT:
    hint = "bench list runs shows what is there"
    try:
        with telling("cannot be read", path):
            if not path.exists():
                raise BenchError("record not found", where=str(path), hint=hint)
            return model.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = first["msg"].removeprefix("Value error, ")
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        problem = f"{field}: {message}{more}" if field else f"{message}{more}"
        raise BenchError(f"not a valid record: {problem}", where=str(path)) from None


class Run:
    """One run folder. ``cache``: the cache folder of the session that measures it."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder = folder
        self.places = Places(folder.absolute(), cache)
        self.sessions: tuple[Run, ...] = (self,)

    # -- reading -------------------------------------------------------------------------------------------------

    def record(self) -> RunRecord:
        """What was asked for, where and with what."""
        return _read_model(self.folder / "run.json", RunRecord)

    def arms(self) -> list[ArmRecord]:
        """Records of the arms that ended, in plan order."""
        paths = {path.stem: path for path in (self.folder / "arms").glob("*.json")}
        records = []
        for arm in (arm for arm in self.record().arms if arm in paths):
            records.append(_read_model(paths[arm], ArmRecord))
            if records[-1].id != arm:
                raise BenchError(f"id: '{records[-1].id}' is not the name of the file", where=str(paths[arm]))
        return records

    def status(self) -> str:
        """The status of the record; `killed` when it says running and no session holds the folder any more."""
        return self.status_of(self.record())

    def status_of(self, record: RunRecord) -> str:
        """`status`, of a record that was read before."""
        return "killed" if record.status == "running" and not _held(self.folder / ".lock") else record.status

    def samples(self, arm: str) -> pd.DataFrame:
        """`columns` as a table."""
        import pandas as pd

        return pd.DataFrame(self.columns(arm))

    def columns(self, arm: str) -> Columns:
        """Raw samples of an arm (`SAMPLE_COLUMNS`).

        Of an arm that has not ended, or whose table is torn, those of the journal.

        Raises:
            BenchError: a time that is not positive and finite, or a torn table and no journal.
        """
        path = self.folder / "samples" / f"{file_name(arm)}.parquet"
        problem = None
        if path.exists():
            try:
                return self._sound(arm, path, read_columns(path))
            except ValueError as error:
                problem = str(error)
        found = samples_columns([block for block in self.journal() if block.arm == arm])
        if problem is not None and not found["round"].size:
            raise BenchError(f"{problem}; the journal has no samples of {arm} either", where=str(path))
        return self._sound(arm, self.folder / JOURNAL, found)

    def block_seconds(self, arm: str) -> npt.NDArray[np.float64]:
        """Seconds per step of each measured block [N]."""
        return block_columns(self.columns(arm))["s_per_step"]

    def _sound(self, arm: str, path: Path, samples: Columns) -> Columns:
        if problem := problem_of(samples):
            raise BenchError(f"{arm}: {problem}", where=str(path), hint="measure this arm again")
        return samples

    def loss_curve(self, arm: str) -> dict[str, list[float]]:
        """Losses of every step of a train_eval arm, by name; empty for other arms."""
        curve: dict[str, list[float]] = {}
        for block in self.journal():
            if block.arm == arm:
                for name, values in block.losses.items():
                    curve.setdefault(name, []).extend(
                        math.nan if value is None else value for value in values
                    )
        return curve

    def journal(self) -> list[Block]:
        """Finished blocks. A torn line, left by a kill or a full disk, is not a finished block."""
        path = self.folder / JOURNAL
        blocks = []
        for line in path.read_bytes().split(b"\n") if path.exists() else ():
            with contextlib.suppress(ValidationError):
                blocks.append(Block.model_validate_json(line))
        return blocks

    # -- writing -------------------------------------------------------------------------------------------------

    def write_record(self, record: RunRecord) -> None:
        """Write `run.json`, without anything of this machine's folders and names."""
        values = record.model_dump(mode="json")
        for name in ("recipe", "recipe_path"):
            values[name] = self.places.recipe(values[name])
        values["command"] = [self.places.argument(one) for one in record.command]
        self._write("run.json", values)

    def write_arm(self, record: ArmRecord, samples: Columns | pd.DataFrame) -> None:
        """Samples first: an arm's record never speaks of samples that are not there."""
        path = self.folder / "samples" / f"{record.id}.parquet"
        with storing(path, KEPT):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            write_columns(samples, temporary)
            os.replace(temporary, path)
        values = record.model_dump(mode="json")
        values["workload"] = self.places.recipe(values["workload"])
        self._write(f"arms/{record.id}.json", values)

    def _write(self, name: str, values: Any) -> None:
        text = json.dumps(self.places.portable(values), indent=1, ensure_ascii=False)
        write_atomic(
            self.folder / name, NUMBERS.sub(lambda found: "".join(found[0].split()), text), measured=True
        )

    def note_revision(self, folder: Path, name: str) -> Revision:
        """The revision of a source folder; changes that are not committed are stored as `diffs/<name>.diff`."""
        revision = Revision.model_validate(git_revision(folder))
        if revision.dirty and (diff := git_diff(folder)):
            revision.diff = f"diffs/{name}.diff"
            write_atomic(self.folder / revision.diff, self.places.text(diff), measured=True)
        return revision

    def append_block(self, block: Block) -> None:
        """One line, handed to the system before this returns, so that a later kill cannot lose it.

        A line that a full disk tore is ended by the newline that the next one starts with.
        """
        path = self.folder / JOURNAL
        values = block.model_dump(mode="json", exclude=None if block.losses else {"losses"})
        line = json.dumps(self.places.portable(values), separators=(",", ":")).encode()
        with storing(path, KEPT), path.open("ab") as file:
            file.write(b"\n" + line + b"\n")


def _held(lock: Path) -> bool:
    """Whether a session holds this lock."""
    try:
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def find_runs(root: Path) -> list[Path]:
    """All run folders below `root`, oldest first: by the UTC second in the name, then by the time of the record."""
    return [path.parent for path in sorted(root.glob("*/*/run.json"), key=_began)]


def _began(record: Path) -> tuple[str, float, str]:
    name = record.parent.name
    try:
        return name[:16], record.stat().st_mtime, name
    except OSError:  # removed meanwhile
        return name[:16], 0.0, name


def _is_result(folder: Path) -> bool:
    """Whether a run was measured for its own sake, and did not end on bad input."""
    try:
        record = json.loads((folder / "run.json").read_text())
    except (OSError, ValueError):
        return True  # whoever opens it is told
    if not isinstance(record, dict) or record.get("kind", "run") != "run":
        return not isinstance(record, dict)
    return record.get("status") != "failed" or any((folder / "arms").glob("*.json"))


def resolve_run(name: str, root: Path) -> Path:
    """A run by folder, by id (or its beginning), or `latest`: no check, no calibration, none that measured nothing."""
    if (Path(name) / "run.json").exists():
        return Path(name)
    runs = find_runs(root)
    if name == "latest" and (found := next(filter(_is_result, reversed(runs)), None)):
        return found
    matches = [run for run in runs if run.name.startswith(name) or run.name.endswith(f"-{name}")]
    if len(matches) == 1:
        return matches[0]
    problem = "several runs match" if matches else "run not found"
    meant = near(name, ["latest", *(run.name for run in runs)], cutoff=0.8)
    raise BenchError(f"{problem}: {name}", hint=meant or f"bench list runs shows the runs in {root}")
