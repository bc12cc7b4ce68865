"""Recipe → arms → cells → rounds: what will be measured, in which order, and about how long it takes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bench.errors import BenchError, did_you_mean
from bench.recipe.codebases import Codebase, get_codebase
from bench.recipe.load import LoadedRecipe, validate_workload
from bench.recipe.models import MODELS
from bench.recipe.problems import as_one
from bench.recipe.schema import ArmSpec, Measure, factor_target, level_text
from bench.recipe.workload import CUDA_ONLY, SWITCHES, Workload
from bench.record.names import file_names

#: Combinations of arms and levels in one recipe, excluded ones counted.
MAX_COMBINATIONS = 10_000


@dataclass(frozen=True)
class Checkout:
    """One revision of a codebase in a work tree of its own, for `bench check`.

    ``source``: the folder of the ``tree`` that workers import from before any installed package. ``codebase``: its
    adapter, of the same revision where the tree holds it. ``adapters``: the tree's package of that name, when the
    tree is of this project. ``repository``: what the tree is of. ``configs_only``: the codebase itself is installed.
    """

    revision: str
    tree: Path
    source: Path
    codebase: Codebase
    adapters: Path | None = None
    repository: Path | None = None
    configs_only: bool = False

    def config(self, name: str) -> str | None:
        """A model's name; where it is a file of the repository, the file of this revision. Raises BenchError."""
        if not self.repository or not Path(name).is_relative_to(self.repository):
            return name or None
        file = Path(name).relative_to(self.repository)
        if not (self.tree / file).is_file():
            raise BenchError(f"{file} is not in revision {self.revision[:10]}", hint="commit it first")
        return str(self.tree / file)


@dataclass(frozen=True)
class Arm:
    """One codebase at one combination of levels."""

    id: str
    codebase: str
    label: str
    levels: Mapping[str, Any]
    cell: str
    workload: Workload
    options: Mapping[str, Any]
    variables: Mapping[str, str]
    threads: int | None
    checkout: Checkout | None = None
    weights: str | None = None
    """A file that goes before the workload's weights: a checkpoint of the codebase, or an ``.npz`` in its names."""
    model: str | None = None
    """The codebase's own name of the model, a file with its whole path. None: the workload's model."""
    python: str | None = None
    """An interpreter of the user's."""
    environment: str | None = None
    """A named environment."""
    source: Path | None = None
    """A folder that the codebase is imported from, before what is installed."""
    baseline: str | None = None
    """Id of the arm that this one is compared with; its own id, if it is the baseline."""

    @property
    def own_name(self) -> str:
        """The codebase's own name of the model, if the arm or its workload has one (`mmdet://NAME`); else empty."""
        return self.model or self.workload.model.partition("://")[2]


@dataclass(frozen=True)
class Plan:
    """All arms, in cells: arms of one cell are interleaved on one machine and compared with each other."""

    name: str
    cells: tuple[tuple[Arm, ...], ...]
    measure: Measure
    baseline: Mapping[str, Any]
    aa: bool

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(itertools.chain.from_iterable(self.cells))


def _matches(pattern: Mapping[str, Any], spec: ArmSpec, levels: Mapping[str, Any]) -> bool:
    """Whether a pattern of `exclude` fits an arm: by label or codebase, and by levels."""
    return all(
        wanted in (spec.codebase, spec.name) if key == "codebase" else levels[key] == wanted
        for key, wanted in pattern.items()
    )


class Placed(Protocol):
    """What decides which arm is a baseline: of a plan's arms and of stored ones."""

    @property
    def id(self) -> str: ...
    @property
    def codebase(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def levels(self) -> Mapping[str, Any]: ...
    @property
    def cell(self) -> str: ...


def baseline_ids(arms: Sequence[Placed], pattern: Mapping[str, Any]) -> dict[str, str]:
    """The baseline of each arm, by id.

    The baseline of a cell has all levels of the pattern. A label goes before the name of a codebase, which may have
    several arms. Raises BenchError when several arms of a cell fit.
    """
    found: dict[str, str] = {}
    if not pattern:
        return found
    cells: dict[str, list[Placed]] = {}
    for arm in arms:
        cells.setdefault(arm.cell, []).append(arm)
    for members in cells.values():
        levels = {name: level for name, level in pattern.items() if name != "codebase"}
        fitting = [arm for arm in members if all(arm.levels.get(k) == level for k, level in levels.items())]
        if (wanted := pattern.get("codebase")) is not None:
            labelled = [arm for arm in fitting if arm.label == wanted]
            fitting = labelled or [arm for arm in fitting if arm.codebase == wanted]
        if len(fitting) > 1:
            names = ", ".join(dict.fromkeys(arm.label for arm in fitting))
            raise BenchError(f"several arms fit the baseline: {names}", hint="name one by its label")
        if fitting:
            found |= {arm.id: fitting[0].id for arm in members}
    return found


def _apply_levels(
    loaded: LoadedRecipe, levels: Mapping[str, Any]
) -> tuple[Workload, dict[str, Any], int | None]:
    """The workload, options and threads of one combination of levels."""
    values = loaded.recipe.workload.model_dump()
    options: dict[str, Any] = {}
    threads = loaded.recipe.environment.threads
    where = loaded.place("workload")
    for factor, level in levels.items():
        root, path = factor_target(factor)
        if root == "options":
            options[path[0]] = level
        elif root == "environment":
            if not isinstance(level, int) or isinstance(level, bool) or level < 1:
                raise BenchError(
                    f"threads must be a positive number, got {level!r}", where=loaded.place("factors", factor)
                )
            threads = level
        else:
            target = values
            for part in path[:-1]:
                target = target[part]
            target[path[-1]] = level
            where = loaded.place("factors", factor)
    return validate_workload(values, where), options, threads


def switched(workload: Workload) -> dict[str, bool]:
    """Switches that a workload sets; on a CPU those of CUDA devices are off anyway."""
    values = {name: getattr(workload, name) for name in SWITCHES}
    if workload.device == "cpu":
        values |= {name: values[name] or None for name in CUDA_ONLY}
    return {name: value for name, value in values.items() if value is not None}


def has_option(codebase: Codebase, name: str) -> bool:
    return codebase.options is None or name in codebase.options


def check_offer(codebase: Codebase, workload: Workload) -> str | None:
    """Why a codebase cannot do a workload, or None when its adapter says it can."""
    model = workload.model
    scheme = model.partition("://")[0] if "://" in model else None
    if scheme is None and model not in codebase.models:
        return f"{codebase.name} offers no {model}: {codebase.why_missing(model)}"
    if scheme is not None and scheme not in codebase.schemes:
        return f"{codebase.name} takes no model of its own by name, only canonical ones (and no {scheme}:// models)"
    needed = {"eval": ("infer",), "serve": ("infer",), "train_eval": ("train", "infer")}.get(
        workload.task, (workload.task,)
    )
    if scheme is None and (lacking := set(needed) - set(codebase.models[model].tasks)):
        return f"{codebase.name} offers {model} not for {lacking.pop()}"
    offered: dict[str, tuple[Any, Sequence[Any]]] = {
        "input.mode": (workload.input.mode, codebase.inputs),
        "precision": (workload.precision, codebase.precisions),
        "device": (workload.device, codebase.devices),
    }
    for name, (value, values) in offered.items():
        on_cuda = value in codebase.cuda_precisions
        if on_cuda and workload.device == "cpu":
            return f"{codebase.name} offers {name} {value} on CUDA devices only, and the device is cpu"
        if value not in values and not on_cuda:
            return f"{codebase.name} offers {name} {', '.join(map(str, values))}, not {value}"
    if workload.ema and not codebase.ema:
        return f"{codebase.name} has no EMA"
    for name, value in switched(workload).items():
        if workload.device == "cpu" and name in CUDA_ONLY:
            return f"{name} is a switch of CUDA devices, and the device is cpu"
        if not has_option(codebase, name) and (value or name in ("cudnn_benchmark", "tf32")):
            return f"{codebase.name} has no switch {name}"
    if workload.ranks > codebase.max_ranks:
        return f"{codebase.name} runs on at most {codebase.max_ranks} rank(s), not {workload.ranks}"
    return None


def _check_model(loaded: LoadedRecipe, workload: Workload, codebases: Mapping[str, Codebase]) -> None:
    """An unknown model name is a typing error; a known one that a codebase lacks is a matter for `exclude`."""
    model = workload.model
    known = {*MODELS, *(name for codebase in codebases.values() for name in codebase.models)}
    schemes = {scheme for codebase in codebases.values() for scheme in codebase.schemes}
    if model in known or ("://" in model and model.partition("://")[0] in schemes):
        return
    place = ("factors", "model") if "model" in loaded.recipe.factors else ("workload", "model")
    if place[0] == "factors" and model in loaded.recipe.factors["model"]:
        place = (*place, loaded.recipe.factors["model"].index(model))  # type: ignore[assignment]
    raise BenchError(f"unknown model '{model}'", where=loaded.place(*place), hint=did_you_mean(model, known))


def _check_options(
    loaded: LoadedRecipe, codebase: Codebase, spec: ArmSpec, options: Mapping[str, Any], arm: str
) -> None:
    for name in options:
        if codebase.options is not None and name not in codebase.options:
            raise BenchError(
                f"{codebase.name} has no option '{name}'",
                where=arm if name in spec.options else loaded.place("factors", f"options.{name}"),
                hint=did_you_mean(name, codebase.options),
            )


def make_plan(loaded: LoadedRecipe, codebases: Mapping[str, Codebase], *, aa: bool = False) -> Plan:
    """Resolve a recipe into arms: every combination of levels and arms, less what it excludes.

    Args:
        loaded: A recipe that was checked for itself.
        codebases: The known ones, by name.
        aa: Measure the baseline's arm against itself: the difference is known to be nothing.

    Raises:
        BenchError: With the file and the line.
    """
    recipe = loaded.recipe
    specs, baseline, wrong = [], dict(recipe.baseline), []
    for index, spec in enumerate(recipe.arms):
        try:
            name = get_codebase(spec.codebase, codebases, loaded.place("arms", index)).name
            specs.append((index, spec.model_copy(update={"codebase": name, "label": spec.name})))
        except BenchError as error:
            wrong.append(error)
    if wrong:
        raise as_one(wrong, loaded.path)
    _refuse_too_many(loaded)
    if aa:
        wanted = baseline.get("codebase")
        fitting = (one for one in specs if wanted in (one[1].name, one[1].codebase))
        index, spec = next(fitting, specs[0])
        specs = [(index, spec.model_copy(update={"label": f"{spec.name} ({side})"})) for side in "AB"]
        baseline["codebase"] = f"{spec.name} (A)"
    arms = []
    for chosen_levels in itertools.product(*recipe.factors.values()):
        levels = dict(zip(recipe.factors, chosen_levels, strict=True))
        for index, spec in specs:
            if any(_matches(pattern, spec, levels) for pattern in recipe.exclude):
                continue
            try:
                arms.append(_make_arm(loaded, codebases, spec, levels, baseline, loaded.place("arms", index)))
            except BenchError as error:
                wrong.append(error)
    if wrong:
        raise as_one(wrong, loaded.path)
    if not arms:
        raise BenchError("exclude leaves nothing to measure", where=loaded.place("exclude"))
    ids, cell_ids = file_names(arm.id for arm in arms), file_names(arm.cell for arm in arms)
    arms = [replace(arm, id=ids[arm.id], cell=cell_ids[arm.cell]) for arm in arms]
    final = [arm.id for arm in arms]
    if twice := next((name for name in final if final.count(name) > 1), None):
        raise BenchError(f"two arms would be called '{twice}'", where=loaded.place("factors"))
    try:
        chosen = baseline_ids(arms, baseline)
    except BenchError as error:
        raise BenchError(error.message, where=loaded.place("baseline"), hint=error.hint) from None
    arms = [replace(arm, baseline=chosen.get(arm.id)) for arm in arms]
    cells = {arm.cell: tuple(other for other in arms if other.cell == arm.cell) for arm in arms}
    if any(len({arm.workload.task == "train_eval" for arm in cell}) > 1 for cell in cells.values()):
        raise BenchError(
            "a train_eval arm can be compared only with train_eval arms", where=loaded.place("baseline")
        )
    return Plan(recipe.name, tuple(cells.values()), recipe.measure, baseline, aa)


def _refuse_too_many(loaded: LoadedRecipe) -> None:
    """The product of the factors is counted before it is made."""
    recipe = loaded.recipe
    count = len(recipe.arms) * math.prod(map(len, recipe.factors.values()))
    if count > MAX_COMBINATIONS:
        raise BenchError(
            f"arms and factors make {count:,} combinations; at most {MAX_COMBINATIONS:,} are planned",
            where=loaded.place("factors") if recipe.factors else loaded.place("arms"),
        )


def _make_arm(
    loaded: LoadedRecipe,
    codebases: Mapping[str, Codebase],
    spec: ArmSpec,
    levels: dict[str, Any],
    baseline: Mapping[str, Any],
    place: str,
) -> Arm:
    label, codebase, own = spec.name, codebases[spec.codebase], None
    workload, options, threads = _apply_levels(loaded, levels)
    if spec.model is not None:
        model, own = codebase.model_of(spec.model)
        workload = workload.model_copy(update={"model": model})
    switches = {name: on for name, on in switched(workload).items() if has_option(codebase, name)}
    options = {**switches, **options, **spec.options}
    if spec.config:
        options[codebase.config_option] = {**options.get(codebase.config_option, {}), **spec.config}
    _check_options(loaded, codebase, spec, options, place)
    _check_model(loaded, workload, codebases)
    reason = check_offer(codebase, workload)
    if reason is not None:
        combination = ", ".join(f"{key}: {level_text(level)}" for key, level in levels.items())
        raise BenchError(
            reason,
            where=place,
            hint=f"leave it out explicitly, under exclude: - {{codebase: {label}, {combination}}}"
            if levels
            else "bench list models shows what each codebase offers",
        )
    shown = {key: level for key, level in levels.items() if len(loaded.recipe.factors[key]) > 1}
    return Arm(
        id="_".join([label, *(f"{key}-{level_text(level)}" for key, level in shown.items())]),
        codebase=spec.codebase,
        label=label,
        levels=levels,
        cell="_".join(f"{k}-{level_text(v)}" for k, v in levels.items() if k not in baseline) or "all",
        workload=workload,
        options=options,
        variables={**loaded.recipe.environment.variables, **spec.variables},
        threads=threads,
        weights=spec.weights,
        model=own,
        python=spec.python,
        environment=spec.environment,
        source=Path(spec.source).expanduser() if spec.source else None,
    )


def notes_of(plan: Plan, codebases: Mapping[str, Codebase]) -> list[str]:
    """On arms whose options, as an adapter knows, do not make their work the baseline's; on images twice in a batch."""
    arms = {arm.id: arm for arm in plan.arms}
    notes: dict[str, None] = {}
    for arm in plan.arms:
        work = arm.workload
        if work.images_per_step > work.input.wanted:
            images = f"{work.images_per_step} images a step, {work.input.wanted} in the input"
            notes[f"{arm.label}: {images}: each step has images more than once"] = None
        base = arms.get(arm.baseline or "", arm)
        for one, other in ((arm, base), (base, arm)):
            known = codebases.get(one.codebase)
            wanted = known.options_beside(other.codebase, arm.workload.model) if known else {}
            if arm.workload.model == base.workload.model and not wanted.items() <= one.options.items():
                text = ", ".join(f"{name}: {value}" for name, value in wanted.items())
                notes[f"{one.label} beside {other.label}: options: {{{text}}} make its work the other's"] = (
                    None
                )
    return list(notes)


def round_orders(arms: int, rounds: int, seed: int) -> list[list[int]]:
    """The order of arms in each round: the rows of a Williams square, each followed by its reverse.

    Over a pair of rounds every arm has the same mean place, so a drift of the machine that is linear over the pair
    falls on all arms alike. Over a square (as many rounds as arms, or twice as many of an odd number) every arm follows
    every other one equally often, so what one leaves behind, in caches or in heat, does too. Williams, 1949.
    """
    rng = random.Random(seed)
    zigzag = [place // 2 if place % 2 == 0 else arms - 1 - place // 2 for place in range(arms)]
    orders: list[list[int]] = []
    while len(orders) < rounds:
        names = rng.sample(range(arms), arms)
        shifts = range(
            max(1, arms // 2) if arms % 2 == 0 else arms
        )  # a reverse is a shift, of an even number
        for shift in rng.sample(shifts, len(shifts)):
            order = [names[(place + shift) % arms] for place in zigzag]
            orders += [order, order[::-1]]
    return orders[:rounds]


def work_key(codebase: str, workload: Workload, options: Mapping[str, Any]) -> str:
    """Arms with the same key do the same work and should take about the same time on one machine. Where a data set
    or a file of weights lies has no part in it."""
    input = workload.input
    files = {
        key: Path(value).name
        for key in ("dataset", "annotations", "eval_annotations", "images")
        if isinstance(value := getattr(input, key), str)
    }
    named = workload.model_copy(
        update={"input": input.model_copy(update=files), "weights": Path(workload.weights).name}
    )
    return repr((codebase, sorted(named.model_dump().items()), sorted(options.items())))
