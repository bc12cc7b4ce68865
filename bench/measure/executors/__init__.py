"""Who starts the cells of a plan, and where: each by `bench run --cell KEY`. The store has the results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Task:
    """One cell to measure on other machines."""

    key: str
    name: str
    nodes: int
    """Machines that it needs at once."""
    estimate_s: float
    command: tuple[str, ...]
    """What measures it."""


@dataclass(frozen=True)
class Watch:
    """What an executor asks and tells while it waits."""

    done: Callable[[], set[str]]
    """Keys that the store has."""
    say: Callable[[str], None]
    poll_s: float = 5.0


class Executor(Protocol):
    """Starts cells and waits until each is in the store, or is known to be lost."""

    def run(self, tasks: Sequence[Task], watch: Watch, logs: Path) -> None:
        """Raises BenchError when the engine refuses."""
        ...
