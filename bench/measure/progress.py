"""What a user sees while a run measures: a live bar in a terminal, plain lines elsewhere, nothing with `--quiet`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.text import Text

from bench.recipe.plan import Arm, Plan
from bench.record.models import Failure
from bench.text_safety import for_terminal


class Quiet:
    """Says nothing."""

    def stage(self, arm: Arm, launch: int, stage: str) -> None: ...

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None: ...

    def failed(self, arm: Arm, failure: Failure) -> None: ...

    def note(self, text: str) -> None: ...


def describe_block(arm: Arm, launch: int, round_: int, s_per_step: float) -> str:
    turn = "warm-up" if round_ < 0 else f"round {round_ + 1}"
    return f"{arm.id}  launch {launch + 1}  {turn}  {s_per_step:.4g} s/iter"


@dataclass
class Lines(Quiet):
    """One line per event, on standard error: standard output belongs to results."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(for_terminal(text), style=style), soft_wrap=True)

    def stage(self, arm: Arm, launch: int, stage: str) -> None:
        self._say(f"{arm.id}  launch {launch + 1}  {stage}")

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None:
        self._say(describe_block(arm, launch, round_, s_per_step))

    def failed(self, arm: Arm, failure: Failure) -> None:
        self._say(f"{arm.id} FAILED in {failure.stage}: {failure.reason}: {failure.message}", style="red")
        self._say(f"  log: {failure.log}")

    def note(self, text: str) -> None:
        self._say(text, style="yellow")


@dataclass
class Bar(Lines):
    """A bar over all blocks, with the time that remains; failures and notes stay above it."""

    progress: Progress | None = None
    task: TaskID | None = None

    def stage(self, arm: Arm, launch: int, stage: str) -> None:
        if self.progress is not None and self.task is not None:
            description = for_terminal(f"{arm.id}  launch {launch + 1}  {stage}")
            self.progress.update(self.task, description=description)

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None:
        if self.progress is not None and self.task is not None:
            description = for_terminal(describe_block(arm, launch, round_, s_per_step))
            self.progress.update(self.task, description=description, advance=1)


@contextlib.contextmanager
def listener(plan: Plan, *, quiet: bool, done: int = 0) -> Iterator[Quiet]:
    """The display that suits the place: `done` blocks were measured by an earlier session."""
    if quiet:
        yield Quiet()
    elif not sys.stderr.isatty():
        yield Lines()
    else:
        console = Console(stderr=True, highlight=False)
        measure = plan.measure
        total = sum(
            len(arm.workload.turns())
            if arm.workload.task == "train_eval"
            else measure.launches * (measure.rounds + 1)  # + 1: the warm-up
            for arm in plan.arms
        )
        columns = (
            BarColumn(20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            Remaining(),
            TextColumn("{task.description}", markup=False),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("starting", total=total, completed=done)
            yield Bar(console, progress, task)
