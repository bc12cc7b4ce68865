"""Whether a difference is no larger than what rounding makes of the same fact in the same arms.

An arm that differs is watched a second time, with images that were moved by two units in the last place. All that this
changes is how the arm rounds from there on, so the distance of its facts to the first time is what its own rounding
does to them. Two arms whose rounding is as large cannot be told apart by such a fact: it shows neither equal nor other
work.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.judge.fact import VALUES, Fact
from bench.judge.facts import observed
from bench.record.models import ArmRecord

#: No difference above this is explained, however an arm rounds.
LARGEST = 0.1
#: Times the root of the sum of squares of what both arms' rounding does.
REACH = 3.0
CLOSING = " after the timed blocks"


def possible(differences: Sequence[Fact]) -> bool:
    """Whether all these are of values, and small."""
    return all(one.explained_by >= VALUES and one.apart <= LARGEST for one in differences)


def explains(differences: Sequence[Fact], arm: ArmRecord, baseline: ArmRecord) -> bool:
    """Whether rounding does as much to each of these facts, in these arms."""
    if not possible(differences) or not all(one.audit.get("shaken") for one in (arm, baseline)):
        return False
    responses = [_responses(one) for one in (arm, baseline)]
    return all(
        one.apart <= REACH * sum(of.get(_place(one.name), 0.0) ** 2 for of in responses) ** 0.5
        for one in differences
    )


def _responses(arm: ArmRecord) -> dict[str, float]:
    """How far each fact moved; of steps after the timed blocks, which have no second time, the most in any step."""
    again = arm.model_copy(update={"audit": {"ranks": arm.audit["shaken"]}})
    moved: dict[str, float] = {}
    for fact in observed(again, arm):
        if fact.known:
            late = _place(fact.name.replace(" in step", f"{CLOSING} in step"))
            for name in (fact.name, late):
                moved[name] = max(moved.get(name, 0.0), fact.apart)
    return moved


def _place(name: str) -> str:
    """The name of a fact; of steps after the timed blocks without the step's number."""
    return name.partition(" in step")[0] if CLOSING in name else name
