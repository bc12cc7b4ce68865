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
from bench.record.parts import EVERY_PHASE, PHASES

#: Share of a launch's rounds that is left out at either end.
TRIMMED = 0.25

State = Literal["pass", "fail", "inconclusive", "undecided"]


# -- what is compared --------------------------------------------------------------------------------------


Statistic = Literal["trimmed", "mean", "p90", "p99"]


@dataclass(frozen=True)
class Metric:
    """How a metric gets worse, and how much of that is tolerated.

    ``better``: the direction of improvement. ``relative``: the tolerance is a share of the baseline (0.02:
    2 %), else in the metric's own unit. ``exact``: the metric has no noise (AP of fixed weights), so a
    single value decides. ``statistic``: what is taken of the rounds of a launch; the quantiles are of its steps.
    ``phase``: of a step, or an operator in it, whose growth is a share of the base's step.
    """

    name: str
    better: Literal["lower", "higher"]
    tolerance: float
    relative: bool = True
    exact: bool = False
    statistic: Statistic = "trimmed"
    phase: str = ""

    def __post_init__(self) -> None:
        most = 1.0 if self.relative and self.better == "higher" else math.inf
        if not 0 <= self.tolerance < most:
            raise BenchError(
                f"{self.name}: tolerance must be between 0 and {most:g}, got {self.tolerance}",
                hint=f"for example --tolerance '{self.name}=3%'",
            )

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


OPERATORS = ("deformable convolution",)
"""Those that adapters account for by themselves."""
METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("s/iter", "lower", 0.02),
        Metric("s/iter mean", "lower", 0.02, statistic="mean"),
        Metric("s/iter p90", "lower", 0.05, statistic="p90"),
        Metric("s/iter p99", "lower", 0.10, statistic="p99"),
        Metric("images/s", "higher", 0.02),
        Metric("FPS", "higher", 0.02),
        Metric("FPS mean", "higher", 0.02, statistic="mean"),
        Metric("max memory", "lower", 0.02),
        Metric("AP", "higher", 0.001, relative=False, exact=True),
        Metric("EMA cost", "lower", 0.01, relative=False),
        *(Metric(f"phase {phase}", "lower", 0.02, relative=False, phase=phase) for phase in EVERY_PHASE),
        *(Metric(f"operator {name}", "lower", 0.02, relative=False, phase=name) for name in OPERATORS),
    )
}
"""With their default tolerances. AP is a share in 0..1, EMA cost a share of the step (`bench.judge.ratio.cost`)."""


def metric(name: str, tolerance: float | None = None) -> Metric:
    """A metric by name, with its own tolerance. Raises `BenchError` for an unknown name."""
    if name not in METRICS:
        raise BenchError(f"unknown metric '{name}'", hint=did_you_mean(name, METRICS))
    known = METRICS[name]
    return replace(known, tolerance=known.tolerance if tolerance is None else tolerance)


TIME_METRICS = ("s/iter", "s/iter mean", "s/iter p90", "s/iter p99", "images/s", "FPS", "FPS mean")
METRICS_OF_TASK = {
    "train": ("s/iter", "s/iter mean", "s/iter p90", "s/iter p99", "images/s", "max memory", "EMA cost"),
    "infer": ("FPS", "FPS mean", "s/iter", "s/iter p90", "s/iter p99", "images/s", "max memory", "AP"),
}
METRICS_OF_TASK = {
    task: (*names, *(f"phase {one}" for one in PHASES[task]), *(f"operator {one}" for one in OPERATORS))
    for task, names in METRICS_OF_TASK.items()
}
METRICS_OF_TASK["eval"] = METRICS_OF_TASK["serve"] = METRICS_OF_TASK["infer"]


@dataclass(frozen=True)
class Settings:
    """``metrics``: those with a tolerance of their own, by name."""

    metrics: Mapping[str, Metric]
    budget_s: float
    inconclusive_is: Literal["inconclusive", "pass", "fail"] = "inconclusive"
    false_alarm: float = 0.01
    false_pass: float = 0.05

    def metrics_of(self, task: str) -> list[Metric]:
        """What is checked of an arm. The plain mean has the tolerance of the trimmed mean unless it has its own."""
        if task not in METRICS_OF_TASK:
            raise BenchError(
                f"bench check cannot judge task '{task}'", hint="check task train, infer or eval"
            )
        default, mean, *others = METRICS_OF_TASK[task]
        first = self.metrics.get(default) or metric(default)
        second = self.metrics.get(mean) or metric(mean, first.tolerance)
        return [first, second, *(self.metrics[name] for name in others if name in self.metrics)]

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
    tolerances: Sequence[str], budget_s: float, inconclusive_is: str = "inconclusive"
) -> Settings:
    """From the command line: `--tolerance s/iter=3%`, `--tolerance AP=0.002`."""
    metrics = {name: metric(name, tolerance) for name, tolerance in map(_tolerance, tolerances)}
    choices: dict[str, Literal["inconclusive", "pass", "fail"]] = {
        "inconclusive": "inconclusive", "pass": "pass", "fail": "fail",
    }  # fmt: skip
    if inconclusive_is not in choices:
        raise BenchError(
            f"--inconclusive-is must be inconclusive, pass or fail, got '{inconclusive_is}'",
            hint=did_you_mean(inconclusive_is, choices),
        )
    return Settings(metrics, budget_s, choices[inconclusive_is])


def _tolerance(text: str) -> tuple[str, float]:
    """`s/iter=3%` or `s/iter=0.03`. A bare number of 1 or more is refused: 5 would be 500 %."""
    name, _, value = text.rpartition("=")
    percent = value.endswith("%")
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise BenchError(
            f"--tolerance {text}: expected METRIC=SHARE", hint="for example --tolerance s/iter=3%"
        )
    if not percent and number >= 1:
        raise BenchError(
            f"--tolerance {text}: {value} is {100 * number:g} % without a per cent sign",
            hint=f"write --tolerance '{name}={value}%' or '{name}={number / 100:g}'",
        )
    return name, number / 100 if percent else number
