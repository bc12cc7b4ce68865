"""Recipes: YAML files that say what to measure. Read strictly; every error names file, line and the likely fix.

Precedence: `--set key=value` over the recipe over the recipes it `extends` over the defaults below.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field

from bench.errors import BenchError, did_you_mean
from bench.recipe.workload import Strict, Workload

Path_ = tuple[str | int, ...]


def _word(value: object) -> object:
    """`off` without quotes is a boolean in YAML."""
    return "off" if value is False else value


class ArmSpec(Strict):
    """One codebase to measure, possibly with settings of its own."""

    codebase: str
    """Name of a codebase (`bench list codebases`)."""
    label: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    """Name in reports; needed when a codebase appears twice."""
    model: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    """A model of this arm only, by the codebase's name of it: a config file, a name of its zoo, `module:function`."""
    config: dict[str, Any] = {}
    """Changes of that model's configuration, in the codebase's own notation."""
    options: dict[str, Any] = {}
    """Settings of this codebase's adapter (its README lists them)."""
    variables: dict[str, str] = {}
    """Environment variables of this arm only."""
    weights: str | None = None
    """Start from this file: a checkpoint in the codebase's own format, or an `.npz` in the codebase's own names."""
    python: str | None = None
    """Interpreter of this arm: `/opt/conda/envs/det/bin/python`."""
    environment: str | None = None
    """Environment of this arm: a name of `bench env adopt` or `bench env create --as`."""
    source: str | None = None
    """Folder that this arm's codebase is imported from, before what is installed: a checkout."""

    @property
    def name(self) -> str:
        """The name in reports."""
        return self.label or self.codebase


class Serve(Strict):
    """What a `serve` arm is asked by MLPerf's load generator, in every launch."""

    seconds: Annotated[float, Field(gt=0, le=86400)] = 10.0
    """Least time of a scenario, and of each rate that Server tries."""
    p99_ms: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """Server: the highest rate at which 99 % of requests are answered within so many milliseconds. null: not asked."""


class Measure(Strict):
    """How much is measured, and in what order."""

    warmup: Annotated[int, Field(ge=1, le=100_000)] = 3
    """Steps of a launch before anything counts."""
    steps: Annotated[int, Field(ge=1, le=100_000)] = 2
    """Consecutive steps of a block, timed between two synchronisations."""
    settle: Annotated[int, Field(ge=0, le=100_000)] = 0
    """Untimed steps at the start of every block, for steps so short that cold caches would show."""
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 5
    """Visits to every arm in each launch."""
    launches: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Fresh worker processes per arm, one after the other."""
    until: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Add launches until every interval has this half width (0.03: 3 %); `launches` is then the most."""
    hold_weights: bool = False
    """Time training with learning rate 0 after the audit: the work of an R-CNN's step depends on its weights, and so
    stays what it was. The optimizer's arithmetic is the same."""
    interleave: bool = True
    """False measures one arm after the other: only to show what that costs in certainty."""
    quiet: Annotated[Literal["wait", "mark", "off"], BeforeValidator(_word)] = "wait"
    """wait: wait up to 30 s for other processes to end, and mark; mark: mark rounds that others disturbed, and measure
    others in their place; off: neither."""
    time_budget_s: Annotated[float, Field(gt=0, le=1e9)] | None = None
    """No new round is started after this many seconds of measuring."""
    phase_steps: Annotated[int, Field(ge=0, le=100_000)] = 2
    """Steps of the phase pass of each launch."""
    memory_steps: Annotated[int, Field(ge=0, le=100_000)] = 2
    """Steps of the memory pass of each launch."""
    serve: Serve = Serve()
    """Of `serve` arms: how long, and which bound of latency."""
    predict: bool = True
    """Write the detections of every image once (inference arms)."""
    keep_checkpoints: bool = True
    """Keep the weights of every train_eval arm after its last step (170 MB of a Mask R-CNN R-50-FPN)."""
    deadline_s: Annotated[float, Field(gt=0, le=1e7)] = 900.0
    """A worker that takes longer to answer one message is hung: its arm fails."""


class EnvironmentSpec(Strict):
    """Settings of every worker process."""

    threads: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Threads of one process; by default the processors it may use, divided by the ranks."""
    affinity: list[Annotated[int, Field(ge=0, le=65535)]] | None = None
    """Processors the workers may use."""
    variables: dict[str, str] = {}
    """Environment variables of every worker."""


def _named(value: Any) -> Any:
    return {"codebase": value} if isinstance(value, str) else value


class Recipe(Strict):
    """The whole recipe. `factors` are varied over their cartesian product, but for what `exclude` names."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Name of the recipe and of the folder of its runs."""
    description: str = ""
    """What the report says below its title."""
    workload: Workload
    """The work."""
    arms: Annotated[list[Annotated[ArmSpec, BeforeValidator(_named)]], Field(min_length=1)]
    """What is measured: names of codebases, or mappings."""
    factors: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    """Factor → its levels."""
    exclude: list[dict[str, Any]] = []
    """Combinations that are not measured: `{codebase: torchvision, ema: true}`."""
    baseline: Annotated[dict[str, Any], BeforeValidator(_named)] = {}
    """The arm that the others are compared with: a codebase, or levels `{codebase: torchvision, ema: false}`."""
    measure: Measure = Measure()
    """How much is measured."""
    environment: EnvironmentSpec = EnvironmentSpec()
    """Settings of the workers."""


# -- Factors -----------------------------------------------------------------------------------------------------


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Model classes anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for part in typing.get_args(annotation):
            yield from models_in(part)


FactorRoot = Literal["workload", "environment", "options"]


def factor_target(name: str) -> tuple[FactorRoot, tuple[str, ...]]:
    """What a factor varies: a field of the workload (`ema`, `input.mode`, `size`), `threads`, or `options.<name>`."""
    parts = tuple(name.split("."))
    if parts[0] == "options" and len(parts) == 2:
        return "options", parts[1:]
    if name == "threads":
        return "environment", parts
    if name == "devices":
        return "workload", parts
    nested = len(parts) == 2 and parts[0] in ("input", "optimizer")
    if parts[0] in Workload.model_fields and (len(parts) == 1 or nested):
        inner = next(models_in(Workload.model_fields[parts[0]].annotation), None)
        if len(parts) == 1 or (inner is not None and parts[1] in inner.model_fields):
            return "workload", parts
    if len(parts) == 1:
        for outer in ("input", "optimizer"):
            inner = next(models_in(Workload.model_fields[outer].annotation))
            if name in inner.model_fields:
                return "workload", (outer, name)
    known = [*Workload.model_fields, "devices", "size", "mode", "images", "lr", "threads", "options.<name>"]
    hint = (
        "its dtype is the field precision: [float32, bfloat16]"
        if name == "amp"
        else did_you_mean(name, known)
    )
    raise BenchError(f"unknown factor '{name}'", hint=hint)


def level_text(level: Any) -> str:
    """A level as it stands in names and tables: `on`, `512x512`, `bfloat16`."""
    if isinstance(level, bool):
        return "on" if level else "off"
    if isinstance(level, list | tuple):
        return "x".join(str(part) for part in level)
    if isinstance(level, Mapping):
        return "-".join(f"{key}{level_text(value)}" for key, value in level.items())
    return str(level)
