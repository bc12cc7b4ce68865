"""`bench check` and `bench calibrate`: two revisions side by side, or a stored run, until `bench.gate` has decided.

A check is an ordinary session whose plan holds every arm of the checked codebase twice, as base and as head, each
importing the codebase from a git work tree of its own. When all planned launches are measured the session asks for
more; the `Referee` answers with what `gate.decide` still needs, as long as the budget lasts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from bench import gate, interrupts, machine, stats
from bench.audit import audit_run, baseline_of
from bench.checkouts import Source, temporary_folder
from bench.codebases import Codebase
from bench.data import open_dataset
from bench.errors import BenchError, ExitCode, did_you_mean
from bench.evaluation import evaluate
from bench.gate import Metric, Verdict
from bench.plan import Arm, Checkout, Plan, work_key
from bench.progress import Lines, Quiet
from bench.recipe import LoadedRecipe
from bench.record import ArmRecord, Memory, Run, block_times
from bench.session import Session, new_run
from bench.workload import Workload

SIDES = ("base", "head")
FIRST_LAUNCHES = 3
"""Measured before the plan of looks is fixed, which needs to know how many launches fit the budget."""
FEWEST_LAUNCHES = 6
"""With fewer a regression could not be confirmed."""
SPARE = 1.05
"""Launches are planned as if they took this much longer, so that the last look comes before the budget ends."""

TIME_METRICS = ("s/iter", "images/s", "FPS")
METRICS_OF_TASK = {
    "train": ("s/iter", "images/s", "max memory", "EMA cost"),
    "infer": ("FPS", "s/iter", "images/s", "max memory", "AP"),
    "eval": ("FPS", "s/iter", "images/s", "max memory", "AP"),
}
"""The first one is always checked, the others when they are given a tolerance."""

State = Literal["pass", "fail", "inconclusive", "error"]


@dataclass(frozen=True)
class Comparison:
    """One metric of one arm: what was asked, what was found."""

    arm: str
    metric: Metric
    decision: gate.Decision

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
    comparisons: tuple[Comparison, ...] = ()
    notes: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    run: str = ""
    elapsed_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        document = {name: value for name, value in vars(self).items() if name != "comparisons"}
        document["comparisons"] = [
            {
                "name": one.name,
                "arm": one.arm,
                "metric": one.metric.name,
                "better": one.metric.better,
                "tolerance": one.metric.tolerance,
                **{key: finite(value) for key, value in dataclasses.asdict(one.decision).items()},
            }
            for one in self.comparisons
        ]
        return document


def finite(value: Any) -> Any:
    """JSON has no infinity: an open end of an interval is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@dataclass(frozen=True)
class Settings:
    """``metrics``: those with a tolerance or weight of their own, by name."""

    metrics: Mapping[str, Metric]
    budget_s: float
    inconclusive_is: Literal["inconclusive", "pass", "fail"] = "inconclusive"
    false_alarm: float = 0.01
    false_pass: float = 0.05

    def metrics_of(self, task: str) -> list[Metric]:
        if task not in METRICS_OF_TASK:
            raise BenchError(
                f"bench check has no metric for task {task}", hint="check task train, infer or eval"
            )
        default, *others = METRICS_OF_TASK[task]
        chosen = [default, *(name for name in others if name in self.metrics)]
        return [self.metrics.get(name) or gate.metric(name) for name in chosen]

    def refuse_unused(self, tasks: Iterable[str]) -> None:
        known = {name for task in tasks for name in METRICS_OF_TASK.get(task, ())}
        for name in set(self.metrics) - known:
            raise BenchError(
                f"no arm of this recipe has {name}", hint=f"they have {', '.join(sorted(known))}"
            )

    def exit_code(self, state: gate.State) -> int:
        if state == "inconclusive" and self.inconclusive_is != "inconclusive":
            state = self.inconclusive_is
        return {"pass": ExitCode.SUCCESS, "fail": ExitCode.REGRESSION}.get(state, ExitCode.INCONCLUSIVE)


def read_settings(
    tolerances: Sequence[str], weights: Sequence[str], budget_s: float, inconclusive_is: str = "inconclusive"
) -> Settings:
    """From the command line: `--tolerance s/iter=3%`, `--weight FPS=2`."""
    given_tolerances, given_weights = _numbers("tolerance", tolerances), _numbers("weight", weights)
    metrics = {
        name: gate.metric(name, given_tolerances.get(name), given_weights.get(name, 1.0))
        for name in {**given_tolerances, **given_weights}
    }
    choices: dict[str, Literal["inconclusive", "pass", "fail"]] = {
        "inconclusive": "inconclusive", "pass": "pass", "fail": "fail",
    }  # fmt: skip
    if inconclusive_is not in choices:
        raise BenchError(f"--inconclusive-is {inconclusive_is}", hint=did_you_mean(inconclusive_is, choices))
    return Settings(metrics, budget_s, choices[inconclusive_is])


def _numbers(option: str, texts: Sequence[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        try:
            found[name] = float(value[:-1]) / 100 if value.endswith("%") else float(value)
        except ValueError:
            found[name] = math.nan
        if not name or not math.isfinite(found[name]):
            raise BenchError(
                f"--{option} {text}: expected METRIC=NUMBER", hint=f"for example --{option} s/iter=3%"
            )
    return found


# -- values of launches ---------------------------------------------------------------------------------------


def badness(run: Run, arm: ArmRecord, target: Metric, cache: Path) -> pd.Series[float]:
    """`Metric.badness` of an arm's measured values, indexed by launch and round."""
    if target.name == "AP":
        return pd.Series(target.badness([_average_precision(run, arm, cache)]), index=_index([(0, 0)]))
    if target.name == "max memory":
        values = memory_bytes(arm, arm.memory)  # of both revisions alike, tools of the audit included
        return pd.Series(target.badness(list(values.values())), index=_index([(x, 0) for x in values]))
    seconds = block_times(run.samples(arm.id)).set_index(["launch", "round"])["s_per_step"].sort_index()
    if target.name == "EMA cost":
        plain = _without_ema(run, arm)
        without = block_times(run.samples(plain.id)).set_index(["launch", "round"])["s_per_step"]
        cost = (1 - without / seconds).dropna()
        return pd.Series(target.badness(cost), index=cost.index)
    images = int(arm.workload["batch_size"]) * int(arm.workload["ranks"])
    values_per_block = seconds if target.name == "s/iter" else images / seconds
    return pd.Series(target.badness(values_per_block), index=seconds.index)


def _index(keys: list[tuple[int, int]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_tuples(keys, names=["launch", "round"])


def memory_bytes(arm: ArmRecord, passes: Sequence[Memory]) -> dict[int, int]:
    """Max memory of each launch in ``passes``: over ranks, allocated on the device, or resident on a CPU."""
    name = "allocated_bytes" if arm.workload["device"] == "cuda" else "host_peak_bytes"
    peaks: dict[int, int] = {}
    for one in passes:
        value = getattr(one, name)
        if value is not None:
            peaks[one.launch] = max(peaks.get(one.launch, 0), value)
    if not peaks:
        raise BenchError(f"{arm.id} has no max memory", hint="measure it: --set measure.memory_steps=2")
    return peaks


def _average_precision(run: Run, arm: ArmRecord, cache: Path) -> float:
    if arm.predictions is None:
        raise BenchError(f"{arm.id} has no predictions to take AP of", hint="measure.predict must be true")
    detections = run.folder / arm.predictions["path"]
    if arm.evaluated:
        truth, image_ids = run.folder / arm.evaluated["ground_truth"], arm.evaluated["image_ids"]
    else:
        workload = Workload.model_validate(arm.workload)
        dataset = open_dataset(workload.input, workload.task, cache)
        truth, image_ids = dataset.annotations, dataset.image_ids
    found = evaluate(truth, detections, "bbox", image_ids=image_ids).metrics["AP"]
    if found is None:
        raise BenchError(f"{arm.id}: AP of images without objects is undefined")
    return found


def _without_ema(run: Run, arm: ArmRecord) -> ArmRecord:
    wanted = {**arm.levels, "ema": False}
    found = next((a for a in run.arms() if a.label == arm.label and a.levels == wanted), None)
    if found is None:
        raise BenchError(
            f"EMA cost of {arm.id} needs the same arm without EMA", hint="factors: {ema: [off, on]}"
        )
    return found


def _metrics_of(settings: Settings, arm: ArmRecord) -> list[Metric]:
    """EMA cost is a matter of arms that have it."""
    metrics = settings.metrics_of(arm.workload["task"])
    return [one for one in metrics if one.name != "EMA cost" or arm.workload["ema"]]


def interleaved(
    run: Run, pairs: Sequence[str], settings: Settings, cache: Path
) -> dict[tuple[str, str], tuple[Metric, stats.Floats]]:
    """Worsening of each launch by (arm, metric): head against base, paired by launch and round."""
    arms = {arm.id: arm for arm in run.arms()}
    found = {}
    for name in pairs:
        base, head = (arms[side_id(name, side)] for side in SIDES)
        for target in _metrics_of(settings, head):
            worse = (badness(run, head, target, cache) - badness(run, base, target, cache)).dropna()
            launches = worse.index.get_level_values("launch")
            found[name, target.name] = target, gate.launch_means(launches, worse)
    return found


# -- measuring ------------------------------------------------------------------------------------------------


def side_id(arm: str, side: str) -> str:
    return f"{arm}-{side}"


def doubled(plan: Plan, checkouts: Mapping[str, Mapping[str, Checkout | None]]) -> tuple[Plan, list[str]]:
    """The arms of the checked codebases twice, side by side in their cells, and the names of the pairs.

    ``checkouts``: codebase → side → where it is imported from.
    """
    checked = [arm for arm in plan.arms if arm.codebase in checkouts]
    if not checked:
        raise BenchError(
            f"no arm of this recipe is of {', '.join(checkouts)}",
            hint=f"it has {', '.join(dict.fromkeys(arm.codebase for arm in plan.arms))}: --source CODEBASE=PATH",
        )

    def side_of(arm: Arm, side: str) -> Arm:
        checkout = checkouts[arm.codebase][side]
        return replace(arm, id=side_id(arm.id, side), label=f"{arm.label} ({side})", checkout=checkout)

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
    only = {"phase_steps": 0, "predict": "AP" in settings.metrics, "time_budget_s": None}
    if "max memory" not in settings.metrics:
        only["memory_steps"] = 0
    return replace(plan, measure=plan.measure.model_copy(update={**only, **changes}))


class PerLaunch(Lines):
    """What a check says while it measures: a line per look, and failures; blocks would be too many."""

    def stage(self, arm: Arm, launch: int, stage: str) -> None: ...

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None: ...


@dataclass
class Referee:
    """Says how many launches a check still needs. ``verdict``: of the launches so far."""

    run: Run
    pairs: Sequence[str]
    settings: Settings
    cache: Path
    say: Callable[[str], None]
    started: float = field(default_factory=time.monotonic)
    plan: gate.Plan | None = None
    verdict: Verdict | None = None
    found: dict[tuple[str, str], tuple[Metric, stats.Floats]] = field(default_factory=dict)
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
            return self._judge(gate.Plan(), out_of_budget=True)
        launch_s = (elapsed_s - self._first_s) / (launches - 1)
        if self.plan is None:  # before the first look: what is seen later must not change it
            fit = launches + int((self.settings.budget_s - elapsed_s) / (SPARE * launch_s))
            rates = self.settings.false_alarm, self.settings.false_pass
            self.plan = gate.Plan.within(max(fit, FEWEST_LAUNCHES), *rates)
        more = self._judge(self.plan)
        if more and elapsed_s + more * launch_s > self.settings.budget_s:
            return self._judge(self.plan, out_of_budget=True)
        return more

    def _judge(self, plan: gate.Plan, out_of_budget: bool = False) -> int:
        self.found = interleaved(self.run, self.pairs, self.settings, self.cache)
        self.verdict = gate.decide(
            {_name(*key): value for key, value in self.found.items()}, plan, out_of_budget
        )
        for one in self.comparisons():
            found = one.decision
            worse = worse_text(one.metric, found)
            self.say(f"{one.name} after {found.launches} launches: worse by {worse}: {found.reason}")
        return self.verdict.more_launches

    def comparisons(self) -> tuple[Comparison, ...]:
        decisions = self.verdict.decisions if self.verdict else {}
        return tuple(
            Comparison(arm, target, decisions[_name(arm, metric)])
            for (arm, metric), (target, _) in self.found.items()
            if _name(arm, metric) in decisions
        )


def _name(arm: str, metric: str) -> str:
    return f"{arm}: {metric}"


def amount_text(target: Metric, share: float) -> str:
    """A worsening in the metric's terms: per cent of the baseline, or its own unit."""
    if not math.isfinite(share):
        return "unknown"
    return f"{100 * share:+.1f} %" if target.relative else f"{share:+.4f}"


def worse_text(target: Metric, decision: gate.Decision) -> str:
    """`+2.1 % [-0.3 %, +4.5 %]`; one launch has no interval."""
    value = amount_text(target, decision.worsening)
    if not math.isfinite(decision.high):
        return value
    return f"{value} [{amount_text(target, decision.low)}, {amount_text(target, decision.high)}]"


def check_revisions(
    loaded: LoadedRecipe,
    plan: Plan,
    codebases: Mapping[str, Codebase],
    sources: Sequence[Source],
    base: str,
    head: str,
    settings: Settings,
    results: Path,
    cache: Path,
    *,
    notes: Sequence[str] = (),
    quiet: bool,
) -> Result:
    """Measure two revisions interleaved on this machine until the gate has decided or the budget is spent.

    The work trees are removed whatever happens; the run is kept in ``results``. Raises BenchError for bad input.
    """
    revisions = {"base": base, "head": head}
    commits = {(s.codebase.name, side): s.commit(revisions[side]) for s in sources for side in SIDES}
    notes = [*notes, *_revision_notes(sources, commits)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupts.handled())
        folder = stack.enter_context(temporary_folder(cache))
        checkouts: dict[str, dict[str, Checkout | None]] = {source.codebase.name: {} for source in sources}
        for source in sources:
            for side in SIDES:
                name = source.codebase.name
                tree = source.checkout(commits[name, side], folder / f"{name}-{side}")
                checkouts[name][side] = stack.enter_context(tree)
        chosen, pairs = doubled(lean(plan, settings, launches=1), checkouts)
        chosen = replace(chosen, name=f"{plan.name}-check")
        settings.refuse_unused(arm.workload.task for arm in chosen.arms)
        run, code, referee = _measure_pairs(
            loaded, chosen, pairs, codebases, settings, results, cache, quiet=quiet
        )
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
    if outcome.exit_code or referee.verdict is None:
        errors = [f"{a.id} failed in {a.failure.stage}: {a.failure.message}" for a in arms if a.failure]
        outcome = replace(
            outcome,
            exit_code=outcome.exit_code or ExitCode.ARM_FAILED,
            errors=tuple(errors or ["interrupted"]),
        )
    else:
        state: Any = referee.verdict.state
        outcome = replace(
            outcome, state=state, exit_code=settings.exit_code(state), comparisons=referee.comparisons()
        )
        notes = [*notes, *_unequal_work(arms, referee.pairs)]
    outcome = replace(outcome, notes=(*notes, *record.warnings))
    record.check = outcome.as_json()
    run.write_record(record)
    return outcome


def _measure_pairs(
    loaded: LoadedRecipe,
    plan: Plan,
    pairs: Sequence[str],
    codebases: Mapping[str, Codebase],
    settings: Settings,
    results: Path,
    cache: Path,
    *,
    quiet: bool,
) -> tuple[Run, int, Referee]:
    run, record = new_run(loaded, plan, results, ["bench", *sys.argv[1:]])
    record.check = {}  # so that a check which is killed is no part of a history
    shown: Quiet = Quiet() if quiet else PerLaunch()
    referee = Referee(run, pairs, settings, cache, shown.note)
    session = Session(plan, run, record, codebases, cache, shown, more_launches=referee.more_launches)
    return run, session.execute(), referee


def _revision_notes(sources: Sequence[Source], commits: Mapping[tuple[str, str], str]) -> Iterator[str]:
    for source in sources:
        name = source.codebase.name
        if commits[name, "base"] == commits[name, "head"]:
            yield f"{name}: base and head are the same commit, so this shows the noise"
        if machine.git_revision(source.repository / source.folder).get("dirty"):
            yield f"{name}: uncommitted changes in {source.repository} are not part of the check"


def _unequal_work(arms: Sequence[ArmRecord], pairs: Sequence[str]) -> Iterator[str]:
    """A revision may change the work on purpose, but a reader of its time has to know."""
    by_id = {arm.id: arm for arm in arms}
    for name in pairs:
        base, head = (by_id[side_id(name, side)] for side in SIDES)
        found = audit_run([base, head], {"codebase": base.label})
        for verdict in found.values():
            if not verdict.equal:
                yield f"{name}: the two revisions do unequal work: {'; '.join(map(str, verdict.differences))}"


# -- stored runs ----------------------------------------------------------------------------------------------


def check_stored(
    head: Run, base: Run, settings: Settings, cache: Path, reference: str | None = None, **about: Any
) -> Result:
    """Judge a run against an earlier one, arm by arm.

    On machines of one kind times are compared as they are. On others they are compared as ratios to a reference arm
    that both runs measured: ``reference`` (label or codebase), else the recipe's baseline; without one that is a
    BenchError.
    """
    records = {"base": base.record(), "head": head.record()}
    same = machine.fingerprint(records["base"].machine) == machine.fingerprint(records["head"].machine)
    earlier = {_identity(arm): arm for arm in base.arms() if arm.status == "ok"}
    arms = [arm for arm in head.arms() if arm.status == "ok" and _identity(arm) in earlier]
    settings.refuse_unused(arm.workload["task"] for arm in arms)
    through = {"codebase": reference} if reference else records["head"].baseline
    found: dict[tuple[str, str], tuple[Metric, stats.Floats, stats.Floats]] = {}
    used: dict[str, None] = {}
    for arm in arms:
        for target in _metrics_of(settings, arm):
            sides = badness(base, earlier[_identity(arm)], target, cache), badness(head, arm, target, cache)
            if target.name in TIME_METRICS and (reference or not same):
                fixed = baseline_of(arm, arms, through)
                if fixed is None:
                    wanted = f"'{reference}'" if reference else "that both runs measured"
                    because = "" if same else "the runs are of different machines, and "
                    raise BenchError(
                        f"{because}{arm.id} has no reference arm {wanted}",
                        hint="measure an arm that does not change in both runs and name it: --reference ARM",
                    )
                if fixed.id == arm.id:
                    continue
                used[fixed.label] = None
                theirs = (
                    badness(base, earlier[_identity(fixed)], target, cache),
                    badness(head, fixed, target, cache),
                )
                sides = (sides[0] - theirs[0]).dropna(), (sides[1] - theirs[1]).dropna()
            means = [gate.launch_means(side.index.get_level_values("launch"), side) for side in sides]
            found[arm.id, target.name] = target, means[0], means[1]
    plan = gate.Plan(settings.false_alarm, settings.false_pass)
    verdict = gate.decide_stored({_name(*key): value for key, value in found.items()}, plan)
    state: Any = verdict.state
    how = "stored run of a machine of the same kind" if same else "stored run of ANOTHER machine"
    if used:
        how += f", through the reference arm {', '.join(used)} measured in both (ratio of ratios)"
    notes = list(about.pop("notes", ()))
    missing = [arm.id for arm in head.arms() if arm not in arms]
    if missing:
        notes.append(f"not in both runs, so not compared: {', '.join(missing)}")
    notes.append("not interleaved: what the machine did between the two runs is part of the difference")
    return Result(
        recipe=str(records["head"].recipe.get("name", "")),
        base=base.folder.name,
        head=head.folder.name,
        how=how,
        state=state,
        exit_code=settings.exit_code(state),
        comparisons=tuple(
            Comparison(arm, target, verdict.decisions[_name(arm, metric)])
            for (arm, metric), (target, _, _) in found.items()
        ),
        notes=tuple(notes),
        run=str(head.folder),
        **about,
    )


def _identity(arm: ArmRecord) -> tuple[str, str]:
    return arm.label, work_key(arm.codebase, arm.workload, arm.options)


def check_against_run(
    loaded: LoadedRecipe,
    plan: Plan,
    codebases: Mapping[str, Codebase],
    base: Run,
    settings: Settings,
    results: Path,
    cache: Path,
    *,
    reference: str | None = None,
    quiet: bool,
) -> Result:
    """Measure the recipe now, as `bench run` does, and judge it against a stored run."""
    started = time.monotonic()
    plan = lean(plan, settings, time_budget_s=settings.budget_s)
    settings.refuse_unused(arm.workload.task for arm in plan.arms)
    run, record = new_run(loaded, plan, results, ["bench", *sys.argv[1:]])
    shown: Quiet = Quiet() if quiet else PerLaunch()
    code = Session(plan, run, record, codebases, cache, shown).execute()
    elapsed_s = round(time.monotonic() - started, 1)
    warnings = run.record().warnings
    if code:
        errors = [f"{a.id} failed in {a.failure.stage}: {a.failure.message}" for a in run.arms() if a.failure]
        about = plan.name, base.folder.name, run.folder.name, "stored run"
        return Result(*about, "error", code, errors=tuple(errors or ["interrupted"]), run=str(run.folder),
                      elapsed_s=elapsed_s, notes=tuple(warnings))  # fmt: skip
    return check_stored(run, base, settings, cache, reference, elapsed_s=elapsed_s, notes=warnings)
