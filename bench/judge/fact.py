"""One thing that has to be equal for two arms to do equal work, and what may explain that it is not."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

#: Factors of a recipe that make a difference of each kind of fact expected.
SIZES = frozenset(
    {"model", "size", "batch_size", "images", "count", "annotations", "dataset", "mode", "ranks"}
)
INPUT = SIZES | {"task"}
WORK = SIZES | {"frozen_stages", "frozen_bn"}
VALUES = WORK | {"precision", "lr", "momentum", "weight_decay", "seed", "weights", "conventions", "optimizer"}
TYPES = frozenset({"precision", "device"})
POSTPROCESS = frozenset({"task", "score_threshold", "max_detections"})


@dataclass(frozen=True)
class Fact:
    """One thing that has to be equal; None is not known. ``only_with_others``: alone, a difference is a note."""

    name: str
    baseline: Any
    arm: Any
    tolerance: float = 0.0
    explained_by: frozenset[str] = frozenset()
    only_with_others: bool = False
    distance: float | None = None
    """Where the values are shown but something else is compared; in units of the tolerance's."""

    @property
    def known(self) -> bool:
        return self.baseline is not None and self.arm is not None

    @property
    def apart(self) -> float:
        """How far the values are from each other, in units of the tolerance's."""
        if self.distance is not None:
            return self.distance
        if _is_number(self.baseline) and _is_number(self.arm):
            largest = max(abs(self.baseline), abs(self.arm), 1e-300)
            return float(max(0.0, abs(self.arm - self.baseline) - 1e-12) / largest)
        return 0.0 if self.baseline == self.arm else math.inf

    @property
    def agrees(self) -> bool:
        return bool(self.apart <= self.tolerance)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


#: What tells facts of one kind apart.
_PLACE = re.compile(
    r" (?:in|of) (?:step|launch|rank|image|session) \d+| after the timed blocks|, session \d+|(?<=timed step) \d+"
)


@dataclass(frozen=True)
class Agreement:
    """Facts of one kind that agree: the one that comes nearest to its tolerance, and how many there are."""

    fact: str
    baseline: Any
    arm: Any
    apart: float
    tolerance: float
    count: int


def kind_of(fact: str) -> str:
    """The name of a fact without step, launch, rank, image and session."""
    return _PLACE.sub("", fact)


def agreements(facts: Iterable[Fact]) -> tuple[Agreement, ...]:
    """Those that are known and agree, by kind."""
    kinds: dict[str, list[Fact]] = {}
    for fact in facts:
        if fact.known and fact.agrees:
            kinds.setdefault(kind_of(fact.name), []).append(fact)
    nearest = {kind: max(found, key=lambda one: one.apart - one.tolerance) for kind, found in kinds.items()}
    return tuple(
        Agreement(kind, one.baseline, one.arm, one.apart, one.tolerance, len(kinds[kind]))
        for kind, one in nearest.items()
    )


def unknown(name: str, explained_by: frozenset[str] = frozenset()) -> Fact:
    return Fact(name, None, None, explained_by=explained_by)
