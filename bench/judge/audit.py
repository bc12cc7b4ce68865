"""Equal work, unequal work with its differences, or not shown: what each arm was seen to do, beside the baseline's.

An arm is *equal* when every fact of `bench.judge.facts` could be observed in both arms and agrees, *unequal* when one
differs, and else *not shown*. A factor that the two arms were chosen to differ in explains the facts it changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from bench.errors import BenchError
from bench.judge import rounding
from bench.judge.fact import Agreement, Fact, agreements, kind_of
from bench.judge.facts import declared, observed
from bench.judge.pairs import baselines_of
from bench.record.models import ArmRecord

#: Processors, below which a process that computes on at least one of them waits.
BUSY = 0.75
#: How many times as many the other arm has to keep busy: else both were disturbed.
MORE_BUSY = 1.5

Verdict = Literal["equal", "unequal", "not shown", "different models"]


@dataclass(frozen=True)
class Difference:
    """A fact that differs: the baseline's value, the arm's, and the tolerance that it broke."""

    fact: str
    baseline: Any
    arm: Any
    tolerance: float = 0.0

    def __str__(self) -> str:
        text = f"{self.fact}: {_shown(self.arm)}, the baseline has {_shown(self.baseline)}"
        if _is_number(self.arm) and _is_number(self.baseline) and self.baseline:
            text += f" ({(self.arm / self.baseline - 1) * 100:+.2f} %)"
        return text


@dataclass(frozen=True)
class Audit:
    """The verdict on one arm against the baseline of its comparison."""

    arm: str
    baseline: str
    differences: tuple[Difference, ...] = ()
    unknown: tuple[str, ...] = ()
    """Facts that could not be observed in both arms."""
    notes: tuple[str, ...] = ()
    """What a reader should know of arms that may still be equal."""
    models: tuple[str, str] | None = None
    """Where arm and baseline were given different models: the baseline's, and the arm's."""
    agreed: tuple[Agreement, ...] = field(default=(), metadata={"json": False})  # the records hold them
    """Of the first of several sessions."""

    @property
    def verdict(self) -> Verdict:
        if self.models:
            return "different models"
        if self.differences:
            return "unequal"
        return "not shown" if self.unknown else "equal"

    @property
    def equal(self) -> bool:
        return self.verdict == "equal"

    def as_json(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "baseline": self.baseline,
            "verdict": self.verdict,
            "equal": self.equal,
            "differences": [
                {"fact": d.fact, "baseline": d.baseline, "arm": d.arm, "tolerance": d.tolerance}
                for d in self.differences
            ],
            "unknown": list(self.unknown),
            "notes": list(self.notes),
            "models": list(self.models) if self.models else None,
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def audit(arm: ArmRecord, baseline: ArmRecord) -> Audit:
    """Compare an arm with the baseline of its comparison."""
    facts = _facts(arm, baseline)
    differences, unknown = _compared(facts)
    notes = [f"in the audit, {text}" for text in _randomness(arm, baseline)]
    notes += _waiting(baseline, arm)
    work = [fact for fact in differences if fact.only_with_others]
    others = [fact for fact in differences if not fact.only_with_others]
    rounded = bool(others) and rounding.explains(others, arm, baseline)
    if rounded or (not others and not unknown):
        # The same results, step by step and group by group, from other sums: an optimisation, not other work.
        first = {kind_of(fact.name): fact for fact in reversed(work)}
        results = (
            "with results that differ by less than rounding does" if rounded else "with the same results"
        )
        notes += [f"{_difference(fact)}, {results}" for fact in first.values()]
        unknown += [f"{fact.name} (differs by less than rounding does)" for fact in others]
        differences = []
    return Audit(
        arm.id,
        baseline.id,
        tuple(map(_difference, differences)),
        tuple(dict.fromkeys(unknown)),
        tuple(notes),
        models_of(arm, baseline),
        agreements(facts),
    )


def models_of(arm: ArmRecord, baseline: ArmRecord) -> tuple[str, str] | None:
    """The models of two arms, the baseline's first; None where both have the same.

    A model of a codebase's own is the same where its name and its file are. That two names or two codebases mean the
    same by their own names is never assumed.
    """
    first, second = baseline.workload.model, arm.workload.model
    same = first == second and baseline.model_sha256 == arm.model_sha256
    return None if same else (first, second)


def doubtful(arm: ArmRecord, baseline: ArmRecord) -> bool:
    """Whether arms of one model differ, and only so that rounding might explain it, which that of float64 cannot."""
    if arm.workload.precision == "float64":
        return False
    others = [fact for fact in _compared(_facts(arm, baseline))[0] if not fact.only_with_others]
    return bool(others) and rounding.possible(others) and models_of(arm, baseline) is None


def _facts(arm: ArmRecord, baseline: ArmRecord) -> list[Fact]:
    """All that no factor explains: what was observed, and what the codebases say of themselves where both do."""
    levels = {*arm.levels, *baseline.levels}
    factors = {name for name in levels if arm.levels.get(name) != baseline.levels.get(name)}
    factors |= {name.rpartition(".")[2] for name in factors}
    told = (fact for fact in declared(arm, baseline) if fact.known)
    return [fact for fact in (*observed(arm, baseline), *told) if not factors & fact.explained_by]


def _compared(facts: Sequence[Fact]) -> tuple[list[Fact], list[str]]:
    """Facts that differ, and the names of those that could not be observed."""
    differences = [fact for fact in facts if fact.known and not fact.agrees]
    return differences, [fact.name for fact in facts if not fact.known]


def _difference(fact: Fact) -> Difference:
    return Difference(fact.name, fact.baseline, fact.arm, fact.tolerance)


def _randomness(*arms: ArmRecord) -> list[str]:
    said = (
        text for arm in arms for rank in arm.audit.get("ranks", ()) for text in rank.get("randomness", ())
    )
    return list(dict.fromkeys(said))


def _waiting(*arms: ArmRecord) -> list[str]:
    """That one process mostly waited in timed blocks and the other did not: the audit compares work, not waiting."""
    known = [(arm.busy_processors, arm) for arm in arms if arm.busy_processors is not None]
    if len(known) < 2 or any(
        arm.workload.device != "cpu" or arm.workload.input.mode == "pipeline" for arm in arms
    ):
        return []
    (least, waiting), (most, _) = sorted(known, key=lambda one: one[0])
    if least >= BUSY or most < MORE_BUSY * least:
        return []
    return [
        f"{waiting.id} waited in timed blocks: it kept {least:.2f} processors busy, the other arm {most:.2f}"
    ]


def audit_run(arms: Sequence[ArmRecord], baseline: Mapping[str, Any]) -> dict[str, Audit]:
    """Verdicts by arm id, of all arms that have a baseline and were described."""
    verdicts = {}
    baselines = baselines_of(arms, baseline)
    for arm in arms:
        reference = baselines[arm.id]
        if reference is not None and reference.id != arm.id and arm.description and reference.description:
            try:
                verdicts[arm.id] = audit(arm, reference)
            except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as problem:
                where = f"arms/{arm.id}.json or arms/{reference.id}.json"
                raise BenchError(
                    f"the facts of its audit cannot be read: {problem!r}", where=where
                ) from problem
    return verdicts


def audit_sessions(sessions: Sequence[tuple[Sequence[ArmRecord], Mapping[str, Any]]]) -> dict[str, Audit]:
    """Verdicts by arm id over several runs: equal only where every session that measured an arm shows it.

    Args:
        sessions: The arms and the baseline of each run.
    """
    if len(sessions) == 1:
        return audit_run(*sessions[0])
    found: dict[str, list[tuple[int, Audit]]] = {}
    for number, (arms, baseline) in enumerate(sessions, 1):
        for arm, verdict in audit_run(arms, baseline).items():
            found.setdefault(arm, []).append((number, verdict))
    return {arm: _of_all(audits) for arm, audits in found.items()}


def _of_all(audits: Sequence[tuple[int, Audit]]) -> Audit:
    """All that any session has to say, each thing with its session."""
    return replace(
        audits[0][1],
        differences=tuple(
            replace(one, fact=f"{one.fact}, session {number}")
            for number, audit in audits
            for one in audit.differences
        ),
        unknown=tuple(f"{one}, session {number}" for number, audit in audits for one in audit.unknown),
        notes=tuple(dict.fromkeys(one for _, audit in audits for one in audit.notes)),
        models=next((audit.models for _, audit in audits if audit.models), None),
    )
