"""What is common to all parts of a record, and what a served arm has in its own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat


class RecordModel(BaseModel):
    """A record may hold more keys than the schema; they are kept, not refused."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)


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
