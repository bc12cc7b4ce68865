"""Which arm is compared with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.record.models import ArmRecord


def baseline_of(arm: ArmRecord, arms: Sequence[ArmRecord], baseline: Mapping[str, Any]) -> ArmRecord | None:
    """The arm that this one is compared with: same cell, same levels but those that the baseline names."""
    if not baseline:
        return None

    def fits(other: ArmRecord) -> bool:
        return other.cell == arm.cell and all(
            wanted in (other.codebase, other.label) if key == "codebase" else other.levels.get(key) == wanted
            for key, wanted in baseline.items()
        )

    return next((other for other in arms if fits(other)), None)
