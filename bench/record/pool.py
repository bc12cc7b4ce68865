"""Sessions of one recipe, on machines of one kind, as one run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from pydantic import ValidationError

from bench.errors import BenchError
from bench.recipe.schema import Recipe
from bench.record.differences import differences, named
from bench.record.machine import fingerprint
from bench.record.models import ArmRecord, Facts, RunRecord
from bench.record.run import Run
from bench.record.samples import Columns


class PooledRun(Run):
    """Several runs that a report reads as one. Launches are numbered through; samples have a column `session`.

    Args:
        sessions: At least two runs.

    Raises:
        BenchError: The runs are of other recipes, data, arms or kinds of machines, or one is named twice.
    """

    def __init__(self, sessions: Sequence[Run]) -> None:
        super().__init__(sessions[0].folder)
        self.sessions = tuple(sessions)
        folders = [run.folder.resolve() for run in sessions]
        if twice := next((one for one in folders if folders.count(one) > 1), None):
            raise BenchError("this run is named twice", where=str(twice), hint="name every session once")
        for run, record in zip(self.sessions[1:], self._records[1:], strict=True):
            if problem := next(_problems(self._records[0], record), None):
                hint = "to report the runs side by side: --apart"
                raise BenchError(problem, where=str(run.folder), hint=hint)

    @cached_property
    def _records(self) -> list[RunRecord]:
        return [run.record() for run in self.sessions]

    @cached_property
    def _arms(self) -> list[dict[str, ArmRecord]]:
        return [{arm.id: arm for arm in run.arms()} for run in self.sessions]

    @cached_property
    def _first_launches(self) -> list[int]:
        """Number of the first launch of each session, the same for all arms."""
        firsts, first = [], 0
        for run, arms in zip(self.sessions, self._arms, strict=True):
            firsts.append(first)
            launches = [launch for arm in _measured(arms) for launch in run.columns(arm)["launch"]]
            first += int(max(launches, default=-1)) + 1
        return firsts

    def record(self) -> RunRecord:
        """The first session's, with the warnings of all."""
        first = self._records[0].model_copy(deep=True)
        first.id = f"{first.id}-{len(self.sessions)}-sessions"
        states = {record.status for record in self._records}
        first.status = next(
            (one for one in ("running", "failed", "interrupted") if one in states), "complete"
        )
        first.ended_utc = self._records[-1].ended_utc
        first.warnings = [f"{record.id}: {text}" for record in self._records for text in record.warnings]
        first.warnings += self._changes()
        return first

    def _changes(self) -> Iterator[str]:
        """What else than the day differs between the sessions."""
        revisions = {record.git.revision for record in self._records}
        if len(revisions) > 1:
            yield f"the sessions ran with {len(revisions)} revisions of bench"
        for record, arms in zip(self._records[1:], self._arms[1:], strict=True):
            changed: dict[str, list[str]] = {}
            for name in self._arms[0].keys() & arms.keys():
                for text in _changed(self._arms[0][name], arms[name]):
                    changed.setdefault(text, []).append(name)
            for text, names in sorted(changed.items()):
                first, *more = sorted(names)
                others = f" and {len(more)} more" if more else ""
                who = "all arms" if more and len(names) == len(arms) else f"{first}{others}"
                yield f"{record.id}: {who} {text}"
        if any(arm.evaluations or arm.predictions for arm in self._arms[0].values()):
            yield f"accuracy is that of the first session, {self._records[0].id}"

    def arms(self) -> list[ArmRecord]:
        """Each arm once. One that failed in a session is partial, and keeps what the other sessions measured."""
        ids = dict.fromkeys(arm for arms in self._arms for arm in arms)
        return [self._arm(arm) for arm in self._records[0].arms if arm in ids]

    def _arm(self, arm: str) -> ArmRecord:
        found = [(number, arms[arm]) for number, arms in enumerate(self._arms) if arm in arms]
        sound = [(number, one) for number, one in found if one.status != "failed"]
        if not sound:
            return found[0][1]
        pooled = sound[0][1].model_copy(deep=True)
        pooled.memory, pooled.losses, pooled.served, pooled.warnings = [], [], [], []
        if sound[0][0]:  # accuracy is read from the folder of the first session
            pooled.evaluations, pooled.predictions = [], None
        for number, one in sound:
            first = self._first_launches[number]
            pooled.memory += [part.model_copy(update={"launch": part.launch + first}) for part in one.memory]
            pooled.losses += [part.model_copy(update={"launch": part.launch + first}) for part in one.losses]
            pooled.served += [part.model_copy(update={"launch": part.launch + first}) for part in one.served]
            pooled.warnings += [text for text in one.warnings if text not in pooled.warnings]
            if one is not sound[0][1]:
                pooled.averaging += one.averaging
                tables = ("phases", "operators", "energy", "conditions")
                for into, more in ((getattr(pooled, name), getattr(one, name)) for name in tables):
                    for name, seconds in more.items():
                        into[name] = [*into.get(name, []), *seconds]
        for field in ("launches", "blocks", "steps"):
            setattr(pooled, field, sum(getattr(one, field) for _, one in sound))
        pooled.warnings += list(self._missing(arm))
        if len(sound) < len(self.sessions) or any(one.status != "ok" for _, one in sound):
            pooled.status = "partial"
        return pooled

    def _missing(self, arm: str) -> Iterator[str]:
        for record, arms in zip(self._records, self._arms, strict=True):
            if arm not in arms:
                yield f"session {record.id} has no record of this arm"
            elif (failure := arms[arm].failure) is not None:
                yield f"failed in session {record.id}: {failure.reason}: {failure.message}"

    def columns(self, arm: str) -> Columns:
        """Raw samples of an arm in all sessions (`SAMPLE_COLUMNS`, and `session` from 0)."""
        tables: list[Columns] = []
        for number, (run, arms) in enumerate(zip(self.sessions, self._arms, strict=True)):
            if arm in _measured(arms):
                tables.append(run.columns(arm))
                tables[-1]["launch"] = tables[-1]["launch"] + np.int32(self._first_launches[number])
                tables[-1]["session"] = np.full_like(tables[-1]["launch"], number)
        if not tables:
            found = super().columns(arm)
            return {**found, "session": np.zeros_like(found["launch"])}
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def _measured(arms: Mapping[str, ArmRecord]) -> list[str]:
    return [name for name, arm in arms.items() if arm.status != "failed"]


def _changed(began: ArmRecord, now: ArmRecord) -> Iterator[str]:
    """What else than the day differs between an arm in the first session and in a later one."""
    if packages := list(differences(began.environment.packages, now.environment.packages)):
        yield f"ran with other packages: {named(packages)}"
    if began.weights and began.weights.source == "file" and began.weights != now.weights:
        yield "began with other weights"
    if began.environment.git.revision != now.environment.git.revision:
        yield f"ran another revision of {now.codebase}"


def _with_defaults(recipe: Facts) -> Facts:
    """With the settings that an older bench did not know, which did not do what they ask for."""
    try:
        return Recipe.model_validate(recipe).model_dump(mode="json")
    except ValidationError:
        return recipe


def _problems(first: RunRecord, other: RunRecord) -> Iterator[str]:
    """Why a run is no session of the first one's recipe."""
    one, two = ({**_with_defaults(record.recipe), "aa": record.aa} for record in (first, other))
    if changed := list(differences(one, two)):
        yield f"not a session of the recipe of {first.id}: {named(changed)}"
    if first.arms != other.arms:
        yield f"other arms than in {first.id}: {named(sorted({*first.arms} ^ {*other.arms}))}"
    checksums = ({name: one.checksum for name, one in record.dataset.items()} for record in (first, other))
    if changed := list(differences(*checksums)):
        yield f"other data than in {first.id}: {named(changed)}"
    kinds = [fingerprint(record.machine) for record in (first, other)]
    for cell, placed in first.cells.items():  # measured where it says, perhaps on unlike machines
        if cell in other.cells and kinds[0] == kinds[1]:
            kinds = [placed.fingerprint, other.cells[cell].fingerprint]
    if kinds[0] != kinds[1]:
        yield f"a machine of another kind ({kinds[1]}) than that of {first.id} ({kinds[0]})"
