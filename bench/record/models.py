"""The schema of a run's record."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Status = Literal["ok", "failed", "partial"]


class RecordModel(BaseModel):
    """Records of a newer minor schema may hold more keys; they are kept, not refused."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


class Failure(RecordModel):
    """Why an arm failed."""

    reason: Literal["crash", "killed", "oom", "hang", "exception", "nan", "protocol", "environment", "audit"]
    """What happened."""
    message: str
    """The message of the failure."""
    stage: str = ""
    """The message the worker was answering: hello, prepare, run_block, …"""
    launch: int = 0
    """Launch in which it happened, from 0."""
    log: str = ""
    """Path of the log, relative to the run folder."""
    log_tail: list[str] = Field(default_factory=list)
    """Last lines of the log."""


class Memory(RecordModel):
    """One memory pass, per rank. Bytes."""

    rank: int = 0
    """Rank of the process."""
    launch: int = 0
    """Launch, from 0."""
    host_baseline_bytes: int | None = None
    """Resident set after the framework was imported, before the model was built."""
    host_peak_bytes: int | None = None
    """Highest resident set over the pass."""
    allocated_bytes: int | None = None
    """Peak of allocated memory of the device."""
    reserved_bytes: int | None = None
    """Peak of reserved memory of the device."""
    device_bytes: int | None = None
    """Memory of the process by NVML."""
    described: bool = False
    """The audit looked at the work in this process before, and what it needs for that is in the figures."""


class ArmRecord(RecordModel):
    """Identity, facts and outcome of one arm; the raw samples are beside it."""

    schema_version: int = SCHEMA_VERSION
    """Version of this schema."""
    id: str
    """File-safe name, unique in the run."""
    codebase: str
    """Name of the codebase."""
    label: str
    """How reports name the arm: the codebase, and the levels that tell it from its neighbours."""
    levels: dict[str, Any] = Field(default_factory=dict)
    """Factor → level of this arm (without the codebase)."""
    cell: str
    """Arms with the same cell are interleaved and compared with each other."""
    baseline: str | None = None
    """Id of the arm that this one is compared with; its own id, if it is the baseline."""
    workload: dict[str, Any]
    """The resolved workload (bench.recipe.workload.Workload)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Options of the arm."""
    status: Status
    """ok, failed, or partial after an interruption."""
    failure: Failure | None = None
    """Why the arm failed."""
    launches: int = 0
    """Launches that were measured."""
    blocks: int = 0
    """Blocks that were measured."""
    steps: int = 0
    """Steps that were measured."""
    description: dict[str, Any] = Field(default_factory=dict)
    """What the worker said of the work (bench.worker.api.Description)."""
    audit: dict[str, Any] = Field(default_factory=dict)
    """What was observed of a few steps: ``ranks``, one `bench.worker.audit.audit` per rank, in canonical names."""
    environment: dict[str, Any] = Field(default_factory=dict)
    """python, packages {name: version}, git {revision, dirty}, variables {name: value}."""
    phases: dict[str, list[float]] = Field(default_factory=dict)
    """Phase → seconds per step, one value per step of the phase passes (data, forward, backward, …)."""
    operators: dict[str, list[float]] = Field(default_factory=dict)
    """Operator → seconds in a step, and `step` → seconds of all of it, one value per operator pass."""
    memory: list[Memory] = Field(default_factory=list)
    """Memory passes."""
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
    """What the reader of a report must know."""

    def memory_counted(self) -> list[Memory]:
        """The memory passes of processes that had not described their work before, if there are any: tools of the
        audit are no memory of the codebase.
        """
        return [one for one in self.memory if not one.described] or self.memory


class RunRecord(RecordModel):
    """What was asked for, where and with what."""

    schema_version: int = SCHEMA_VERSION
    """Version of this schema."""
    id: str
    """Name of the run folder."""
    recipe: dict[str, Any]
    """The recipe as resolved, factors and overrides applied."""
    recipe_path: str = ""
    """File of the recipe."""
    command: list[str] = Field(default_factory=list)
    """Command line."""
    started_utc: str
    """Time of the start."""
    ended_utc: str | None = None
    """Time of the end."""
    status: Literal["running", "complete", "interrupted", "failed"] = "running"
    """State of the run."""
    bench_version: str
    """Version of bench."""
    git: dict[str, Any] = Field(default_factory=dict)
    """Revision of bench, and whether the work tree had changes."""
    machine: dict[str, Any] = Field(default_factory=dict)
    """Processor, memory, devices, system."""
    load_before: list[float] = Field(default_factory=list)
    """Load averages before the run."""
    load_after: list[float] = Field(default_factory=list)
    """Load averages after the run."""
    dataset: dict[str, Any] = Field(default_factory=dict)
    """Per dataset used: path, images, checksum."""
    arms: list[str] = Field(default_factory=list)
    """Ids of all planned arms, in plan order."""
    baseline: dict[str, Any] = Field(default_factory=dict)
    """Factor or `codebase` → level; the arm of a cell group that the others are compared with."""
    aa: bool = False
    """Whether the baseline was measured against itself."""
    check: dict[str, Any] | None = None
    """Of a run of `bench check`: revisions, verdict, comparisons."""
    warnings: list[str] = Field(default_factory=list)
    """What the reader of a report must know."""
