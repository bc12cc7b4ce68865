"""What is common to all parts of a record, and parts of an arm: memory passes, serving."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

#: Phases of a step by what it does, in the order in which they happen.
PHASES = {"train": ("data", "forward", "backward", "optimizer", "ema"), "infer": ("data", "network", "post")}
EVERY_PHASE = tuple(dict.fromkeys((*PHASES["train"], *PHASES["infer"])))


class RecordModel(BaseModel):
    """A record may hold more keys than the schema; they are kept, not refused."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


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


class Served(RecordModel):
    """What MLPerf's load generator found in one scenario; a request is one batch."""

    launch: int
    """Launch, from 0."""
    scenario: Literal["SingleStream", "Offline", "Server"]
    """The generator's name of it."""
    samples: Annotated[int, Field(ge=0)]
    """Requests answered."""
    samples_per_s: FiniteFloat
    """Requests answered per second."""
    p50_ms: FiniteFloat | None = None
    """Median latency in milliseconds. None, as of the others: too few requests, or Offline."""
    p90_ms: FiniteFloat | None = None
    """90th percentile."""
    p99_ms: FiniteFloat | None = None
    """99th percentile."""
    asked_per_s: FiniteFloat | None = None
    """Of Server: requests per second that were made."""
    p99_bound_ms: FiniteFloat | None = None
    """Of Server: 99 % of the answers have to come within so many milliseconds."""
    within: bool | None = None
    """Of Server: they did."""
    valid: bool = False
    """The generator calls its result valid, which takes more requests than most short runs make."""
