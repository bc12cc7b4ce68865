"""The schema of a run's record."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "partial"]


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
    """The resolved workload (bench.recipe.workload.Workload)."""
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
    bbox and segm (bench.judge.accuracy.Evaluation, without the image ids)."""
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
