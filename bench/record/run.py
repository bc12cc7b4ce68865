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
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from pydantic import BaseModel, ValidationError

from bench.errors import BenchError, StorageError
from bench.record.models import ArmRecord, RunRecord
from bench.record.samples import samples_frame

ModelT = TypeVar("ModelT", bound=BaseModel)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot write {path}: {error.strerror or error}",
            hint="what was measured so far is kept; make room and complete it with: bench run --resume RUN",
        ) from error


def write_atomic(path: Path, text: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new one, never a part."""
    data = text.encode() if isinstance(text, str) else text
    with _storage_errors(path):
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
    try:
        return model.model_validate(json.loads(path.read_text()))
    except FileNotFoundError:
        raise BenchError(
            "record not found", where=str(path), hint="bench list runs shows what is there"
        ) from None
    except (ValueError, ValidationError) as error:
        raise BenchError(f"not a valid record: {error}", where=str(path)) from None


class Run:
    """One run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # -- reading -------------------------------------------------------------------------------------------------

    def record(self) -> RunRecord:
        return _read_model(self.folder / "run.json", RunRecord)

    def arms(self) -> list[ArmRecord]:
        """Records of the arms that ended, in plan order."""
        paths = {path.stem: path for path in (self.folder / "arms").glob("*.json")}
        planned = [arm for arm in self.record().arms if arm in paths]
        return [_read_model(paths[arm], ArmRecord) for arm in planned]

    def samples(self, arm: str) -> pd.DataFrame:
        """Raw samples of an arm (`SAMPLE_COLUMNS`); of an arm that has not ended, what the journal holds."""
        path = self.folder / "samples" / f"{arm}.parquet"
        if path.exists():
            return pd.read_parquet(path)
        return samples_frame([block for block in self.journal() if block["arm"] == arm])

    def loss_curve(self, arm: str) -> dict[str, list[float]]:
        """Losses of every step of a train_eval arm, by name; empty for other arms."""
        curve: dict[str, list[float]] = {}
        for block in self.journal():
            if block["arm"] == arm:
                for name, values in block.get("losses", {}).items():
                    curve.setdefault(name, []).extend(values)
        return curve

    def journal(self) -> list[dict[str, Any]]:
        """Finished blocks. A torn last line, left by a kill or a full disk, is not a finished block."""
        path = self.folder / "blocks.jsonl"
        blocks = []
        if path.exists():
            for line in path.read_bytes().split(b"\n"):
                try:
                    blocks.append(json.loads(line))
                except ValueError:
                    continue
        return blocks

    # -- writing -------------------------------------------------------------------------------------------------

    def write_record(self, record: RunRecord) -> None:
        write_atomic(self.folder / "run.json", record.model_dump_json(indent=1))

    def write_arm(self, record: ArmRecord, samples: pd.DataFrame) -> None:
        """Samples first: an arm's record never speaks of samples that are not there."""
        path = self.folder / "samples" / f"{record.id}.parquet"
        with _storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp")
            samples.to_parquet(temporary, index=False, compression="zstd")
            os.replace(temporary, path)
        write_atomic(self.folder / "arms" / f"{record.id}.json", record.model_dump_json(indent=1))

    def append_block(self, block: dict[str, Any]) -> None:
        """One line, handed to the system before this returns, so that a later kill cannot lose it.

        A line that a full disk tore is ended by the newline that the next one starts with.
        """
        path = self.folder / "blocks.jsonl"
        with _storage_errors(path), path.open("ab") as file:
            file.write(b"\n" + json.dumps(block, separators=(",", ":")).encode() + b"\n")


def find_runs(root: Path) -> list[Path]:
    """All run folders below `root`, oldest first (folder names start with the UTC time)."""
    return sorted((path.parent for path in root.glob("*/*/run.json")), key=lambda path: path.name)


def resolve_run(name: str, root: Path) -> Path:
    """A run by folder, by id (or its beginning), or `latest`."""
    if (Path(name) / "run.json").exists():
        return Path(name)
    runs = find_runs(root)
    if name == "latest" and runs:
        return runs[-1]
    matches = [run for run in runs if run.name.startswith(name) or run.name.endswith(f"-{name}")]
    if len(matches) == 1:
        return matches[0]
    problem = "several runs match" if matches else "run not found"
    raise BenchError(f"{problem}: {name}", hint=f"bench list runs shows the runs in {root}")
