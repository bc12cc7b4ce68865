"""Which arm is compared with which: the only place that answers it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.recipe.plan import baseline_ids
from bench.record.models import ArmRecord


def baseline_of(arm: ArmRecord, arms: Sequence[ArmRecord], pattern: Mapping[str, Any]) -> ArmRecord | None:
    """The arm that this one is compared with; itself, where it is the baseline.

    Args:
        arm: One arm of a run.
        arms: All arms of the run.
        pattern: What the recipe says of the baseline. It decides for records that were made before an arm's record
            kept the id of its baseline.

    Returns:
        The baseline, or None where nothing is compared.
    """
    wanted = arm.baseline or baseline_ids(arms, pattern).get(arm.id)
    return next((other for other in arms if other.id == wanted), None)


def baselines_of(arms: Sequence[ArmRecord], pattern: Mapping[str, Any]) -> dict[str, ArmRecord | None]:
    """`baseline_of` of every arm of a run, by id."""
    by_id = {arm.id: arm for arm in arms}
    found = {} if all(arm.baseline for arm in arms) else baseline_ids(arms, pattern)
    return {arm.id: by_id.get(arm.baseline or found.get(arm.id, "")) for arm in arms}


def counterpart_of(arm: ArmRecord, arms: Sequence[ArmRecord], pattern: Mapping[str, Any]) -> ArmRecord | None:
    """The baseline's label at this arm's own levels: accuracy compares EMA with EMA."""
    baseline = baseline_of(arm, arms, pattern)
    if baseline is None:
        return None
    same = (other for other in arms if other.label == baseline.label and other.levels == arm.levels)
    return next(same, None)
