"""What the gate judges: metrics, tolerances and settings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from bench.errors import BenchError, ExitCode, did_you_mean
from bench.judge.steady import Floats

#: Share of a launch's rounds that is left out at either end.
TRIMMED = 0.25

State = Literal["pass", "fail", "inconclusive", "undecided"]


# -- what is compared --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metric:
    """How a metric gets worse, and how much of that is tolerated.

    ``better``: the direction of improvement. ``relative``: the tolerance is a share of the baseline (0.02:
    2 %), else in the metric's own unit. ``exact``: the metric has no noise (AP of fixed weights), so a
    single value decides. ``weight``: share of the false-alarm budget among several comparisons.
    """

    name: str
    better: Literal["lower", "higher"]
    tolerance: float
    relative: bool = True
    exact: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        share = self.relative and self.better == "higher"
        if not 0 <= self.tolerance < (1 if share else math.inf):
            allowed = "between 0 and 1" if share else "0 or more"
            problem = f"{self.name}: tolerance must be {allowed}, got {self.tolerance}"
            raise BenchError(problem, hint="for example --tolerance s/iter=3%")
        if self.weight <= 0:
            raise BenchError(f"{self.name}: weight must be above 0, got {self.weight}")

    @property
    def limit(self) -> float:
        """The tolerance on the scale of `worsening`."""
        if not self.relative:
            return self.tolerance
        return math.log1p(self.tolerance) if self.better == "lower" else -math.log1p(-self.tolerance)

    def badness(self, values: npt.ArrayLike) -> Floats:
        """Values on a scale where larger is worse and differences are comparable: their logarithm, or themselves."""
        given = np.asarray(values, dtype=np.float64)
        scaled = np.log(given) if self.relative else given
        return scaled if self.better == "lower" else -scaled

    def worsening(self, base: npt.ArrayLike, head: npt.ArrayLike) -> Floats:
        """How much worse head is than base, element by element."""
        difference: Floats = self.badness(head) - self.badness(base)
        return difference

    def share(self, worsening: float) -> float:
        """A worsening as people say it: 0.05 for 5 % more time, or 5 % fewer images per second."""
        if not self.relative:
            return worsening
        if self.better == "lower":
            return math.expm1(worsening) if worsening < 700 else math.inf
        return -math.expm1(-worsening) if worsening > -700 else -math.inf


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("s/iter", "lower", 0.02),
        Metric("images/s", "higher", 0.02),
        Metric("FPS", "higher", 0.02),
        Metric("max memory", "lower", 0.02),
        Metric("AP", "higher", 0.001, relative=False, exact=True),
        Metric("EMA cost", "lower", 0.01, relative=False),
    )
}


def metric(name: str, tolerance: float | None = None, weight: float = 1.0) -> Metric:
    """A metric by name, with its own tolerance and weight. Raises `BenchError` for an unknown name."""
    if name not in METRICS:
        raise BenchError(f"unknown metric '{name}'", hint=did_you_mean(name, METRICS))
    known = METRICS[name]
    return replace(known, tolerance=known.tolerance if tolerance is None else tolerance, weight=weight)


TIME_METRICS = ("s/iter", "images/s", "FPS")
METRICS_OF_TASK = {
    "train": ("s/iter", "images/s", "max memory", "EMA cost"),
    "infer": ("FPS", "s/iter", "images/s", "max memory", "AP"),
    "eval": ("FPS", "s/iter", "images/s", "max memory", "AP"),
}


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
                f"bench check cannot judge task '{task}'", hint="check task train, infer or eval"
            )
        default, *others = METRICS_OF_TASK[task]
        chosen = [default, *(name for name in others if name in self.metrics)]
        return [self.metrics.get(name) or metric(name) for name in chosen]

    def refuse_unused(self, tasks: Iterable[str]) -> None:
        known = {name for task in tasks for name in METRICS_OF_TASK.get(task, ())}
        for name in set(self.metrics) - known:
            raise BenchError(
                f"no arm of this recipe measures {name}", hint=f"they measure {', '.join(sorted(known))}"
            )

    def exit_code(self, state: State) -> int:
        if state == "inconclusive" and self.inconclusive_is != "inconclusive":
            state = self.inconclusive_is
        return {"pass": ExitCode.SUCCESS, "fail": ExitCode.REGRESSION}.get(state, ExitCode.INCONCLUSIVE)


def read_settings(
    tolerances: Sequence[str], weights: Sequence[str], budget_s: float, inconclusive_is: str = "inconclusive"
) -> Settings:
    """From the command line: `--tolerance s/iter=3%`, `--weight FPS=2`."""
    given_tolerances, given_weights = _numbers("tolerance", tolerances), _numbers("weight", weights)
    metrics = {
        name: metric(name, given_tolerances.get(name), given_weights.get(name, 1.0))
        for name in {**given_tolerances, **given_weights}
    }
    choices: dict[str, Literal["inconclusive", "pass", "fail"]] = {
        "inconclusive": "inconclusive", "pass": "pass", "fail": "fail",
    }  # fmt: skip
    if inconclusive_is not in choices:
        raise BenchError(
            f"--inconclusive-is must be inconclusive, pass or fail, got '{inconclusive_is}'",
            hint=did_you_mean(inconclusive_is, choices),
        )
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
