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
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.errors import BenchError, StorageError

SCHEMA_VERSION = 1

ModelT = TypeVar("ModelT", bound=BaseModel)

Status = Literal["ok", "failed", "partial"]

#: Columns of a samples table: one row per step and rank.
SAMPLE_COLUMNS = {
    "launch": "int32",  # 0-based
    "round": "int32",  # 0-based within the launch; -1 for the warm-up
    "position": "int32",  # place of the arm in the order of that round
    "rank": "int32",
    "step": "int32",  # 0-based within the block
    "start_ns": "int64",  # worker's monotonic clock at the start of the step
    "duration_ns": "int64",  # start of this step to start of the next (the last: to the end of the block)
}


class RecordModel(BaseModel):
    """Records of a newer minor schema may hold more keys; they are kept, not refused."""

    model_config = ConfigDict(extra="allow")


class Failure(RecordModel):
    """Why an arm failed."""

    reason: Literal["crash", "killed", "oom", "hang", "exception", "nan", "protocol", "environment", "audit"]
    message: str
    stage: str = ""
    """The message the worker was answering: hello, prepare, run_block, …"""
    launch: int = 0
    log: str = ""
    """Path of the log, relative to the run folder."""
    log_tail: list[str] = Field(default_factory=list)


class Memory(RecordModel):
    """One memory pass, per rank. Bytes."""

    rank: int = 0
    launch: int = 0
    host_baseline_bytes: int | None = None
    """Resident set after the framework was imported, before the model was built."""
    host_peak_bytes: int | None = None
    """Highest resident set over the pass."""
    allocated_bytes: int | None = None
    reserved_bytes: int | None = None
    device_bytes: int | None = None
    described: bool = False
    """The audit looked at the work in this process before, and what it needs for that is in the figures."""


class ArmRecord(RecordModel):
    """Identity, facts and outcome of one arm; the raw samples are beside it."""

    schema_version: int = SCHEMA_VERSION
    id: str
    """File-safe name, unique in the run."""
    codebase: str
    label: str
    """How reports name the arm: the codebase, and the levels that tell it from its neighbours."""
    levels: dict[str, Any] = Field(default_factory=dict)
    """Factor → level of this arm (without the codebase)."""
    cell: str
    """Arms with the same cell are interleaved and compared with each other."""
    workload: dict[str, Any]
    """The resolved workload (bench.workload.Workload)."""
    options: dict[str, Any] = Field(default_factory=dict)
    status: Status
    failure: Failure | None = None
    launches: int = 0
    blocks: int = 0
    steps: int = 0
    description: dict[str, Any] = Field(default_factory=dict)
    """What the worker said of the work (bench.worker.api.Description)."""
    environment: dict[str, Any] = Field(default_factory=dict)
    """python, packages {name: version}, git {revision, dirty}, variables {name: value}."""
    phases: dict[str, list[float]] = Field(default_factory=dict)
    """Phase → seconds per step, one value per step of the phase passes (data, forward, backward, …)."""
    operators: dict[str, list[float]] = Field(default_factory=dict)
    """Operator → seconds in a step, and `step` → seconds of all of it, one value per operator pass."""
    memory: list[Memory] = Field(default_factory=list)
    losses: list[dict[str, Any]] = Field(default_factory=list)
    """First and last losses of each launch: {launch, step, losses: {name: value}}."""
    predictions: dict[str, Any] | None = None
    """{path, images, detections, seconds, phases} of the prediction pass."""
    evaluated: dict[str, Any] | None = None
    """What every evaluation is of: {split, checksum, image_ids, ground_truth (path)}."""
    evaluations: list[dict[str, Any]] = Field(default_factory=list)
    """One per evaluation: step (None: of task eval), train_s (seconds of all steps so far), predictions (as above),
    bbox and segm (bench.evaluation.Evaluation, without the image ids)."""
    input: dict[str, Any] = Field(default_factory=dict)
    """Of a train_eval arm: what decided order and augmentation: SHA-256 of the schedule of its batches, seed, flip."""
    warnings: list[str] = Field(default_factory=list)

    def memory_counted(self) -> list[Memory]:
        """The memory passes of processes that had not described their work before, if there are any: tools of the
        audit are no memory of the codebase.
        """
        return [one for one in self.memory if not one.described] or self.memory


class RunRecord(RecordModel):
    """What was asked for, where and with what."""

    schema_version: int = SCHEMA_VERSION
    id: str
    recipe: dict[str, Any]
    """The recipe as resolved, factors and overrides applied."""
    recipe_path: str = ""
    command: list[str] = Field(default_factory=list)
    started_utc: str
    ended_utc: str | None = None
    status: Literal["running", "complete", "interrupted", "failed"] = "running"
    bench_version: str
    git: dict[str, Any] = Field(default_factory=dict)
    machine: dict[str, Any] = Field(default_factory=dict)
    load_before: list[float] = Field(default_factory=list)
    load_after: list[float] = Field(default_factory=list)
    dataset: dict[str, Any] = Field(default_factory=dict)
    """Per dataset used: path, images, checksum."""
    arms: list[str] = Field(default_factory=list)
    """Ids of all planned arms, in plan order."""
    baseline: dict[str, Any] = Field(default_factory=dict)
    """Factor or `codebase` → level; the arm of a cell group that the others are compared with."""
    aa: bool = False
    check: dict[str, Any] | None = None
    """Of a run of `bench check`: revisions, verdict, comparisons."""
    warnings: list[str] = Field(default_factory=list)


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
            "no such record", where=str(path), hint="bench list runs shows what is there"
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


def samples_frame(blocks: list[dict[str, Any]]) -> pd.DataFrame:
    """Journal lines as a samples table.

    A block is ``{arm, launch, round, position, ranks: [{start_ns: [...], end_ns: int}, ...]}``; the duration of a
    step is from its start to the start of the next, of the last step to the end of the block.
    """
    rows: list[tuple[int, ...]] = []
    for block in blocks:
        for rank, times in enumerate(block["ranks"]):
            edges = [*times["start_ns"], times["end_ns"]]
            for step, (start, end) in enumerate(itertools.pairwise(edges)):
                rows.append(
                    (block["launch"], block["round"], block["position"], rank, step, start, end - start)
                )
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS)).astype(SAMPLE_COLUMNS)


def block_times(samples: pd.DataFrame) -> pd.DataFrame:
    """Seconds per step of each measured block: columns launch, round, position, steps, s_per_step.

    A step of several ranks lasts as long as its slowest rank (max over ranks), then the block is averaged.
    """
    measured = samples[samples["round"] >= 0]
    keys = ["launch", "round", "position"]
    steps = measured.groupby([*keys, "step"], as_index=False)["duration_ns"].max()
    blocks = steps.groupby(keys)["duration_ns"].agg(["mean", "size"]).reset_index()
    timed: pd.DataFrame = blocks.assign(s_per_step=blocks["mean"] / 1e9, steps=blocks["size"])
    return timed[[*keys, "steps", "s_per_step"]]


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
    problem = "several runs match" if matches else "no such run"
    raise BenchError(f"{problem}: {name}", hint=f"bench list runs shows the runs in {root}")
