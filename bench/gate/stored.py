"""Judge stored runs: no new measurement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.errors import BenchError
from bench.gate.check import Judgement, Result, Subject, _name, lean
from bench.gate.decide import Schedule, Spread, Stored, decide_stored
from bench.gate.metrics import TIME_METRICS, Metric, Settings
from bench.gate.summaries import trimmed
from bench.gate.values import badness, metrics_of
from bench.judge.pairs import baseline_of
from bench.judge.steady import Floats
from bench.recipe.plan import baseline_ids, work_key
from bench.record import machine
from bench.record.models import ArmRecord
from bench.record.run import Run, find_runs

MIN_SESSIONS = 5
"""Stored runs of the same work, the baseline included, from which the spread between sessions is taken."""


def check_stored(
    head: Run,
    base: Run,
    settings: Settings,
    cache: Path,
    results: Path,
    reference: str | None = None,
    **about: Any,
) -> Result:
    """Judge a run against an earlier one, arm by arm.

    On machines of one kind times are compared as they are. On others they are compared as ratios to a reference arm
    that both runs measured. How much sessions differ is taken from the runs in ``results``; where they are too few
    the answer is inconclusive.

    Args:
        head: the run under check.
        base: the earlier run.
        settings: metrics, tolerances and error rates.
        cache: folder of data sets.
        results: folder of the stored runs.
        reference: label or codebase of the reference arm; by default the recipe's baseline.
        about: further fields of the result, such as ``notes``.

    Returns:
        The result.

    Raises:
        BenchError: for runs of different machines without a reference arm, or without a common arm.
    """
    same = _fingerprint(base) == _fingerprint(head)
    earlier = {_identity(arm) for arm in base.arms() if arm.status == "ok"}
    arms = [arm for arm in head.arms() if arm.status == "ok" and _identity(arm) in earlier]
    settings.refuse_unused(arm.workload.task for arm in arms)
    asked = list(_questions(arms, head, settings, reference, same=same))
    sessions = [run for run in map(Run, find_runs(results)) if run.folder.resolve() != head.folder.resolve()]
    found = {
        (one.arm.id, one.target.name): (
            one.target,
            Stored(
                one.launches(base, cache), one.launches(head, cache), _between(one, sessions, head, cache)
            ),
        )
        for one in asked
    }
    plan = Schedule(settings.false_alarm, settings.false_pass)
    ruling = decide_stored({_name(*key): value for key, value in found.items()}, plan)
    how = "stored run of a machine of the same kind" if same else "stored run of ANOTHER machine"
    used = dict.fromkeys(one.through.label for one in asked if one.through)
    if used:
        how += f", through the reference arm {', '.join(used)} measured in both (ratio of ratios)"
    state: Any = ruling.state
    return Result(
        recipe=str(head.record().recipe.get("name", "")),
        base=base.folder.name,
        head=head.folder.name,
        how=how,
        state=state,
        exit_code=settings.exit_code(state),
        comparisons=tuple(
            Judgement(arm, target, ruling.decisions[_name(arm, metric)])
            for (arm, metric), (target, _) in found.items()
        ),
        notes=(*about.pop("notes", ()), *_notes(head, arms)),
        run=str(head.folder),
        **about,
    )


def _questions(
    arms: list[ArmRecord], head: Run, settings: Settings, reference: str | None, *, same: bool
) -> Iterator[_Asked]:
    """Every metric of every arm but the times of the reference arm itself."""
    for arm in arms:
        for target in metrics_of(settings, arm):
            if target.phase:
                raise BenchError(
                    f"{target.name} is judged between revisions, not against a stored run",
                    hint="compare revisions: bench check --base REV",
                )
            through = _through(arm, target, arms, head, reference, same=same)
            if through is None or through.id != arm.id:
                yield _Asked(arm, target, through)


def _fingerprint(run: Run) -> str:
    return machine.fingerprint(run.record().machine)


def _notes(head: Run, arms: list[ArmRecord]) -> list[str]:
    """What the reader of a comparison of stored runs has to know."""
    missing = [arm.id for arm in head.arms() if arm not in arms]
    notes = [f"not in both runs, so not compared: {', '.join(missing)}"] if missing else []
    return [*notes, "not interleaved: what the machine did between the two runs is part of the difference"]


def _through(
    arm: ArmRecord, target: Metric, arms: list[ArmRecord], head: Run, reference: str | None, *, same: bool
) -> ArmRecord | None:
    """The arm whose time is taken out; None where times are compared as they are."""
    if target.name not in TIME_METRICS or (same and not reference):
        return None
    pattern = head.record().baseline
    if reference:
        wanted_id = baseline_ids(arms, {**pattern, "codebase": reference}).get(arm.id)
        fixed = next((other for other in arms if other.id == wanted_id), None)
    else:
        fixed = baseline_of(arm, arms, pattern)
    if fixed is None:
        wanted = f"'{reference}'" if reference else "that both runs measured"
        because = "" if same else "the runs are of different machines, and "
        raise BenchError(
            f"{because}{arm.id} has no reference arm {wanted}",
            hint="measure an arm that does not change in both runs and name it: --reference ARM",
        )
    return fixed


@dataclass(frozen=True)
class _Asked:
    """A metric of an arm, less that of the reference arm ``through``."""

    arm: ArmRecord
    target: Metric
    through: ArmRecord | None

    def launches(self, run: Run, cache: Path) -> Floats:
        """Badness of each launch [K] of the same work in a run. Raises KeyError where the run has no such arm."""
        arms = {_identity(arm): arm for arm in run.arms() if arm.status == "ok"}
        values = badness(run, arms[_identity(self.arm)], self.target, cache)
        if self.through:
            values = (values - badness(run, arms[_identity(self.through)], self.target, cache)).dropna()
        return np.array([self._launch(rounds) for _, rounds in values.groupby("launch")])

    def _launch(self, rounds: pd.Series[float]) -> float:
        given = np.asarray(rounds, dtype=np.float64)
        if self.target.statistic == "mean":
            return float(np.log(np.exp(given).mean()))
        return trimmed(given).value


def _between(one: _Asked, sessions: list[Run], head: Run, cache: Path) -> Spread:
    """Spread of the means of earlier sessions; changes of the code are part of it, which errs on the safe side."""
    means = []
    for run in sessions:
        try:
            record = run.record()
            if (
                record.aa
                or record.check is not None
                or (not one.through and _fingerprint(run) != _fingerprint(head))
            ):
                continue
            means.append(float(one.launches(run, cache).mean()))
        except (BenchError, KeyError, OSError, ValueError):
            continue  # it has no such arm, or cannot be read
    if len(means) < MIN_SESSIONS or one.target.exact:
        return Spread()
    return Spread(float(np.std(means, ddof=1)), len(means) - 1)


def _identity(arm: ArmRecord) -> tuple[str, str]:
    return arm.label, work_key(arm.codebase, arm.workload, arm.options)


def check_against_run(subject: Subject, base: Run, reference: str | None = None) -> Result:
    """Measure the recipe now, as `bench run` does, and judge it against a stored run."""
    started, settings = time.monotonic(), subject.settings
    plan = lean(subject.plan, settings, time_budget_s=settings.budget_s)
    settings.refuse_unused(arm.workload.task for arm in plan.arms)
    run, record = subject.new_run(plan, "check")
    code = subject.execute(plan, run, record)
    elapsed_s = round(time.monotonic() - started, 1)
    warnings = run.record().warnings
    if code:
        errors = [f"{a.id} failed in {a.failure.stage}: {a.failure.message}" for a in run.arms() if a.failure]
        sides = plan.name, base.folder.name, run.folder.name, "stored run"
        return Result(*sides, "error", code, errors=tuple(errors or ["interrupted"]), run=str(run.folder),
                      elapsed_s=elapsed_s, notes=tuple(warnings))  # fmt: skip
    about = {"elapsed_s": elapsed_s, "notes": warnings}
    return check_stored(run, base, settings, subject.cache, subject.results, reference, **about)
