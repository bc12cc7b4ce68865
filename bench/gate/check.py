"""`bench check` and `bench calibrate`: two revisions side by side, or a stored run, until `bench.gate` has decided.

A check is an ordinary session whose plan holds every arm of the checked codebase twice, as base and as head, each
importing the codebase from a git work tree of its own. When all planned launches are measured the session asks for
more; the `Referee` answers with what `gate.decide` still needs, as long as the budget lasts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Literal

from bench.errors import BenchError, ExitCode
from bench.gate.checkouts import Source
from bench.gate.decide import FEWEST_LAUNCHES, Decision, Launches, Ruling, Schedule, Spread, decide
from bench.gate.metrics import Metric, Settings
from bench.gate.values import NOTHING, SIDES, interleaved, side_id, value_of
from bench.judge.audit import audit_run
from bench.judge.numbers import significant
from bench.measure import interrupts
from bench.measure.progress import Lines, Quiet
from bench.measure.scratch import own_folder
from bench.measure.session import Kind, Session, new_run
from bench.recipe.codebases import Codebase
from bench.recipe.load import LoadedRecipe
from bench.recipe.plan import Arm, Checkout, Plan
from bench.record.models import ArmRecord, RunRecord
from bench.record.run import Run
from bench.record.software import git_revision
from bench.report.text import counted

FIRST_LAUNCHES = 3
"""Measured before the plan of looks is fixed, which needs to know how many launches fit the budget."""
SPARE = 1.05
"""Launches are planned as if they took this much longer, so that the last look comes before the budget ends."""
State = Literal["pass", "fail", "inconclusive", "error"]


@dataclass(frozen=True)
class Judgement:
    """One metric of one arm: what was asked, what was found."""

    arm: str
    metric: Metric
    decision: Decision
    values: tuple[float, float] | None = None
    """Of base and head, in the metric's own unit; None: not known."""

    @property
    def name(self) -> str:
        return f"{self.arm}: {self.metric.name}"


@dataclass(frozen=True)
class Result:
    """Outcome of a check. ``base`` and ``head`` name what was compared; ``how``: in which way; ``errors``: why
    nothing could be judged, in which case there are no comparisons."""

    recipe: str
    base: str
    head: str
    how: str
    state: State
    exit_code: int
    comparisons: tuple[Judgement, ...] = ()
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    run: str = ""
    elapsed_s: float = 0.0
    machine: str = ""
    command: str = ""
    """What repeats the check."""

    def as_json(self) -> dict[str, Any]:
        document = {name: value for name, value in vars(self).items() if name != "comparisons"}
        document["comparisons"] = [
            {
                "name": one.name,
                "arm": one.arm,
                "metric": one.metric.name,
                "better": one.metric.better,
                "tolerance": one.metric.tolerance,
                "values": one.values,
                **{key: finite(value) for key, value in dataclasses.asdict(one.decision).items()},
            }
            for one in self.comparisons
        ]
        return document


def finite(value: Any) -> Any:
    """JSON has no infinity: an open end of an interval is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def doubled(plan: Plan, checkouts: Mapping[str, Mapping[str, Checkout | None]]) -> tuple[Plan, list[str]]:
    """The arms of the checked codebases twice, side by side in their cells, and the names of the pairs.

    ``checkouts``: codebase → side → where it is imported from.
    """
    checked = [arm for arm in plan.arms if arm.codebase in checkouts]
    if not checked:
        raise BenchError(
            f"no arm of this recipe measures {', '.join(checkouts)}",
            hint=f"it has {', '.join(dict.fromkeys(arm.codebase for arm in plan.arms))}: --source CODEBASE=PATH",
        )

    def side_of(arm: Arm, side: str) -> Arm:
        checkout = checkouts[arm.codebase][side]
        return replace(
            arm,
            id=side_id(arm.id, side),
            label=f"{arm.label} ({side})",
            checkout=checkout,
            model=checkout.config(arm.own_name) if checkout else arm.model,
            baseline=side_id(arm.id, SIDES[0]),
        )

    cells = [
        tuple(side_of(arm, side) for arm in cell for side in SIDES if arm.codebase in checkouts)
        for cell in plan.cells
    ]
    baseline = {**plan.baseline, "codebase": f"{checked[0].label} (base)"}  # for reports of the run
    return replace(plan, cells=tuple(cell for cell in cells if cell), baseline=baseline), [
        a.id for a in checked
    ]


def lean(plan: Plan, settings: Settings, **changes: Any) -> Plan:
    """Without the passes that no metric needs."""
    only = {
        "quiet": "off",
        "phase_steps": min(1, plan.measure.phase_steps),
        "predict": "AP" in settings.metrics,
        "time_budget_s": None,
    }
    if any(one.phase for one in settings.metrics.values()):
        only["phase_steps"] = max(3, plan.measure.phase_steps)
    if "max memory" not in settings.metrics:
        only["memory_steps"] = 0
    return replace(plan, measure=plan.measure.model_copy(update={**only, **changes}))


class PerLaunch(Lines):
    """What a check says while it measures: a line per look, and failures; blocks would be too many."""

    def stage(self, arm: Arm, launch: int, stage: str) -> None: ...

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None: ...


@dataclass(frozen=True)
class Subject:
    """A recipe that the gate measures, how it judges, and where runs and calibrations are kept."""

    loaded: LoadedRecipe
    plan: Plan
    codebases: Mapping[str, Codebase]
    settings: Settings
    results: Path
    cache: Path
    quiet: bool = False

    @property
    def listener(self) -> Quiet:
        return Quiet() if self.quiet else PerLaunch()

    def new_run(self, plan: Plan, kind: Kind) -> tuple[Run, RunRecord]:
        return new_run(self.loaded, plan, self.results, ["bench", *sys.argv[1:]], kind)

    def execute(
        self, plan: Plan, run: Run, record: RunRecord, more_launches: Callable[[], int] = lambda: 0
    ) -> int:
        """Measure a run. Returns the exit code."""
        session = Session(
            plan, run, record, self.codebases, self.cache, self.listener, more_launches=more_launches
        )
        return session.execute()


@dataclass
class Referee:
    """Says how many launches a check still needs. ``ruling``: of the launches so far."""

    run: Run
    pairs: Sequence[str]
    settings: Settings
    cache: Path
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    calibrated: Mapping[str, Spread] = field(default_factory=dict)
    plan: Schedule | None = None
    ruling: Ruling | None = None
    found: dict[tuple[str, str], tuple[Metric, Launches]] = field(default_factory=dict)
    _first_s: float = math.nan
    """When the first launch ended; it alone also prepared data and weights."""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    def more_launches(self) -> int:
        arms = self.run.arms()
        if any(arm.failure is not None for arm in arms):
            return 0
        launches, elapsed_s = min(arm.launches for arm in arms), self.elapsed_s
        if launches < FIRST_LAUNCHES:
            self._first_s = elapsed_s
            interleaved(
                self.run, self.pairs, self.settings, self.cache
            )  # a metric without values ends it here
            missing = FIRST_LAUNCHES - launches
            if elapsed_s * (1 + missing / launches) <= self.settings.budget_s:
                return missing
            return self._judge(Schedule(), out_of_budget=True)
        launch_s = (elapsed_s - self._first_s) / (launches - 1)
        if self.plan is None:  # before the first look: what is seen later must not change it
            fit = launches + int((self.settings.budget_s - elapsed_s) / (SPARE * launch_s))
            rates = self.settings.false_alarm, self.settings.false_pass
            self.plan = Schedule.within(max(fit, FEWEST_LAUNCHES), *rates)
        more = self._judge(self.plan)
        if more and elapsed_s + more * launch_s > self.settings.budget_s:
            return self._judge(self.plan, out_of_budget=True)
        return more

    def _judge(self, plan: Schedule, out_of_budget: bool = False) -> int:
        self.found = interleaved(self.run, self.pairs, self.settings, self.cache, self.calibrated)
        self.ruling = decide({_name(*key): value for key, value in self.found.items()}, plan, out_of_budget)
        for one in self.comparisons():
            found = one.decision
            change = change_text(one.metric, found)
            self.say(f"{one.name} after {counted(found.launches, 'launch')}: {change}: {found.reason}")
        return self.ruling.more_launches

    def comparisons(self) -> tuple[Judgement, ...]:
        decisions = self.ruling.decisions if self.ruling else {}
        return tuple(
            Judgement(arm, target, decisions[_name(arm, metric)])
            for (arm, metric), (target, _) in self.found.items()
            if _name(arm, metric) in decisions
        )


def _name(arm: str, metric: str) -> str:
    return f"{arm}: {metric}"


def amount_text(target: Metric, worsening: float) -> str:
    """What becomes of a metric that worsens so much: per cent of the base's, a factor from 2 on, or its own unit."""
    if math.isnan(worsening):
        return "no value"
    change = worsening if target.better == "lower" else -worsening
    if not target.relative:
        return f"{change:+.4f}"
    if math.isinf(change):
        return "any" if change > 0 else "none"
    return f"{significant(1 + change, 2)}×" if change >= 1 or change <= -0.5 else f"{100 * change:+.1f} %"


def change_text(target: Metric, decision: Decision) -> str:
    """`+2.1 % [-0.3 %, +4.5 %] (worse)`: the metric's own change; one launch has no interval."""
    value, ends = amount_text(target, decision.worsening), (decision.low, decision.high)
    judged = "worse" if decision.worsening > 0 else "better" if decision.worsening < 0 else "unchanged"
    if not all(map(math.isfinite, ends)):
        return f"{value} ({judged}; one launch: no interval)"
    low, high = (amount_text(target, end) for end in (ends if target.better == "lower" else reversed(ends)))
    return f"{value} [{low}, {high}] ({judged})"


def check_revisions(
    subject: Subject,
    sources: Sequence[Source],
    base: str,
    head: str,
    *,
    calibrated: Mapping[str, Spread] = NOTHING,
    notes: Sequence[str] = (),
) -> Result:
    """Measure two revisions interleaved on this machine until the gate has decided or the budget is spent.

    The work trees are removed whatever happens. ``calibrated``: spread of the launches of each arm against itself.
    Raises BenchError for bad input.
    """
    plan, settings = subject.plan, subject.settings
    revisions = {"base": base, "head": head}
    commits = {(s.codebase.name, side): s.commit(revisions[side]) for s in sources for side in SIDES}
    notes = [*notes, *_revision_notes(sources, commits)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        folder = stack.enter_context(own_folder([subject.cache / "worktrees"]))
        checkouts: dict[str, dict[str, Checkout | None]] = {source.codebase.name: {} for source in sources}
        for source in sources:
            for side in SIDES:
                name = source.codebase.name
                tree = source.checkout(commits[name, side], folder / f"{name}-{side}")
                checkouts[name][side] = stack.enter_context(tree)
        chosen, pairs = doubled(lean(plan, settings, launches=1), checkouts)
        chosen = replace(chosen, name=f"{plan.name}-check")
        settings.refuse_unused(arm.workload.task for arm in chosen.arms)
        run, record = subject.new_run(chosen, "check")
        record.check = {}  # so that a check which is killed is no part of a history
        say = subject.listener.note
        referee = Referee(run, pairs, settings, subject.cache, say, calibrated=calibrated)
        code = subject.execute(chosen, run, record, referee.more_launches)
    texts = {side: ", ".join(f"{s.codebase.name} {commits[s.codebase.name, side][:10]}" for s in sources)
             for side in SIDES}  # fmt: skip
    outcome = Result(
        recipe=plan.name,
        base=f"{base} ({texts['base']})",
        head=f"{head} ({texts['head']})",
        how="interleaved on this machine",
        state="error",
        exit_code=code,
        run=str(run.folder),
        elapsed_s=round(referee.elapsed_s, 1),
    )
    return _concluded(outcome, run, referee, settings, notes)


def _concluded(
    outcome: Result, run: Run, referee: Referee, settings: Settings, notes: Sequence[str]
) -> Result:
    """The outcome with the verdict, or with what failed; stored with the run."""
    record, arms = run.record(), run.arms()
    if outcome.exit_code or referee.ruling is None:
        errors = [f"{a.id} failed in {a.failure.stage}: {a.failure.message}" for a in arms if a.failure]
        outcome = replace(
            outcome,
            exit_code=outcome.exit_code or ExitCode.ARM_FAILED,
            errors=tuple(errors or ["interrupted"]),
        )
    else:
        state: Any = referee.ruling.state
        outcome = replace(
            outcome,
            state=state,
            exit_code=settings.exit_code(state),
            comparisons=tuple(_with_values(one, run, arms, referee.cache) for one in referee.comparisons()),
        )
        notes = [*notes, *_unequal_work(arms, referee.pairs), *_changed_phases(arms, referee.pairs)]
    outcome = replace(
        outcome,
        notes=(*notes, *record.warnings),
        machine=str(record.machine.get("cpu", {}).get("model") or ""),
        command=shlex.join(record.command),
    )
    record.check = outcome.as_json()
    run.write_record(record)
    return outcome


def _with_values(one: Judgement, run: Run, arms: Sequence[ArmRecord], cache: Path) -> Judgement:
    by_id = {arm.id: arm for arm in arms}
    base, head = (value_of(run, by_id[side_id(one.arm, side)], one.metric, cache) for side in SIDES)
    return replace(one, values=(base, head))


#: A phase is named that changed by this share of the step.
TELLING_PHASE = 0.02


def _changed_phases(arms: Sequence[ArmRecord], pairs: Sequence[str]) -> Iterator[str]:
    """The phase of a step whose median changed most, where that is a part of the step worth a word."""
    by_id = {arm.id: arm for arm in arms}
    for name in pairs:
        base, head = (by_id[side_id(name, side)].phases for side in SIDES)
        medians = {one: (median(base[one]), median(head[one])) for one in base if head.get(one) and base[one]}
        step_s = sum(first for first, _ in medians.values())
        phase = max(medians, key=lambda one: abs(medians[one][1] - medians[one][0]), default=None)
        if phase and abs(medians[phase][1] - medians[phase][0]) > TELLING_PHASE * step_s:
            first, second = (significant(1000 * value) for value in medians[phase])
            yield f"{name}: of the step, {phase} changed most: {first} ms → {second} ms (medians)"


def _revision_notes(sources: Sequence[Source], commits: Mapping[tuple[str, str], str]) -> Iterator[str]:
    for source in sources:
        name = source.codebase.name
        if commits[name, "base"] == commits[name, "head"]:
            yield f"{name}: base and head are the same commit, so this shows the noise"
        if git_revision(source.repository / source.folder).get("dirty"):
            yield f"{name}: uncommitted changes in {source.repository} are not part of the check"


def _unequal_work(arms: Sequence[ArmRecord], pairs: Sequence[str]) -> Iterator[str]:
    """A revision may change the work on purpose, but a reader of its time has to know."""
    by_id = {arm.id: arm for arm in arms}
    for name in pairs:
        base, head = (by_id[side_id(name, side)] for side in SIDES)
        found = audit_run([base, head], {"codebase": base.label})
        for verdict in found.values():
            if verdict.differences:
                yield f"{name}: the two revisions do unequal work: {'; '.join(map(str, verdict.differences))}"
