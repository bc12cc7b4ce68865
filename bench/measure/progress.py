"""What a user sees while a run measures: a live bar in a terminal, plain lines elsewhere, nothing with `--quiet`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table
from rich.text import Text

from bench.judge.numbers import duration_text, ratio_text, significant
from bench.measure.live import SoFar
from bench.recipe.plan import Arm, Plan
from bench.record.models import Block, Failure
from bench.text_safety import for_terminal, shorten


class Quiet:
    """Says nothing."""

    def stage(self, arm: Arm, launch: int, stage: str) -> None: ...

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None: ...

    def failed(self, arm: Arm, failure: Failure) -> None: ...

    def note(self, text: str) -> None: ...


def describe_block(arm: Arm, launch: int, round_: int, s_per_step: float) -> str:
    turn = "warm-up" if round_ < 0 else f"round {round_ + 1}"
    return f"{arm.id}  launch {launch + 1}  {turn}  {significant(s_per_step, 4)} s/iter"


@dataclass
class Lines(Quiet):
    """One line per event, on standard error: standard output belongs to results."""

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    so_far: SoFar | None = None

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(for_terminal(text), style=style), soft_wrap=True)

    def stage(self, arm: Arm, launch: int, stage: str) -> None:
        self._say(f"{arm.id}  launch {launch + 1}  {stage}")

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None:
        text = describe_block(arm, launch, round_, s_per_step)
        if self.so_far is not None:
            self.so_far.add(arm.id, launch, round_, s_per_step)
            found = self.so_far.ratio(arm.id)
            text = f"{_place(self.so_far)} {text}{f'  ratio so far {ratio_text(found)}' if found else ''}"
        self._say(text)

    def failed(self, arm: Arm, failure: Failure) -> None:
        if self.so_far is not None:
            self.so_far.failed.add(arm.id)
        self._say(f"{arm.id} FAILED in {failure.stage}: {failure.reason}: {failure.message}", style="red")
        self._say(f"  log: {failure.log}")

    def note(self, text: str) -> None:
        self._say(text, style="yellow")


def _place(so_far: SoFar) -> str:
    """`[17/60, 20 s left]`."""
    left = so_far.left_s
    return f"[{so_far.done}/{so_far.total}{'' if left is None else f', {duration_text(left)} left'}]"


#: Arms of a cell that the live table shows.
MOST_ARMS = 12
#: Room that the bar with its times takes, and that the table's columns of numbers take.
BAR_WIDTH, NUMBERS_WIDTH = 50, 44


class Board(Progress):
    """A bar over all blocks, and below it the arms of the cell that is measured with their ratios so far."""

    table: Table | None = None

    @classmethod
    def get_default_columns(cls) -> tuple[ProgressColumn, ...]:
        text = TextColumn("{task.description}", markup=False)
        return BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), Remaining(), text

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        if self.table is not None:
            yield self.table


@dataclass
class Bar(Lines):
    """A board with the time that remains; failures and notes stay above it."""

    board: Board | None = None
    task: TaskID | None = None

    def stage(self, arm: Arm, launch: int, stage: str) -> None:
        self._update(f"{arm.id}  launch {launch + 1}  {stage}")

    def block(self, arm: Arm, launch: int, round_: int, s_per_step: float) -> None:
        if self.board is not None and self.so_far is not None:
            self.so_far.add(arm.id, launch, round_, s_per_step)
            self.board.table = _table(self.so_far, arm.cell, self.console.width)
        self._update(describe_block(arm, launch, round_, s_per_step))

    def failed(self, arm: Arm, failure: Failure) -> None:
        super().failed(arm, failure)
        self._update(f"{arm.id} failed")

    def _update(self, text: str) -> None:
        if self.board is not None and self.task is not None and self.so_far is not None:
            done, total = self.so_far.done, self.so_far.total
            text = shorten(for_terminal(text), max(20, self.console.width - BAR_WIDTH))
            self.board.update(self.task, description=text, completed=done, total=total)


def _table(so_far: SoFar, cell: str, width: int) -> Table:
    """The arms of a cell so far: where there is no room, ids lose their middle and numbers stay whole."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("arm", no_wrap=True)
    for title in ("s/iter", "ratio so far [95 %]", "rounds"):
        table.add_column(title, justify="right", no_wrap=True)
    arms = [arm for arm in so_far.arms.values() if arm.cell == cell]
    for arm in arms[:MOST_ARMS]:
        seconds = so_far.median_s(arm.id)
        ratio = so_far.ratio(arm.id)
        found = "baseline" if arm.baseline == arm.id else ratio_text(ratio) if ratio else ""
        if arm.id in so_far.failed:
            found = "failed"
        rounds = str(len(so_far.seconds.get(arm.id, ())))
        name = Text(
            shorten(for_terminal(arm.id), max(10, width - NUMBERS_WIDTH)),
            style="red" if found == "failed" else "",
        )
        table.add_row(
            name, "" if seconds is None or found == "failed" else significant(seconds, 4), found, rounds
        )
    if len(arms) > MOST_ARMS:
        table.caption = f"and {len(arms) - MOST_ARMS} more arms"
    return table


@contextlib.contextmanager
def listener(plan: Plan, *, quiet: bool, done: Iterable[Block] = ()) -> Iterator[Quiet]:
    """The display that suits the place: `done` are blocks of earlier sessions."""
    if quiet:
        yield Quiet()
        return
    so_far = SoFar(plan, done)
    if not sys.stderr.isatty():
        yield Lines(so_far=so_far)
        return
    console = Console(stderr=True, highlight=False)
    with Board(console=console) as board:
        task = board.add_task("starting", total=so_far.total, completed=so_far.done)
        yield Bar(console, so_far, board, task)
        board.table = None  # the outcome follows
