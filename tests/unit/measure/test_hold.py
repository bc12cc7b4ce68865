"""Timed steps with learning rate 0."""

from __future__ import annotations

import itertools
from typing import Any

from bench.worker.__main__ import Rotation, Worker
from bench.worker.api import Job


class Learning:
    """A codebase of one weight."""

    def __init__(self) -> None:
        workload = {"task": "train", "ema": False, "input": {"mode": "shared"}}
        self.job = Job(workload, {}, {}, [], [], {}, None, "", 1, 0, 1, "")
        self.weight, self.factor, self.marks = 0.0, 1.0, itertools.count(0, 1000)

    def step(self, value: Any) -> Any:
        self.weight += self.factor
        return value

    def scale_learning_rate(self, factor: float) -> None:
        self.factor = factor

    def synchronize(self) -> None:
        pass

    def mark(self) -> int:
        return next(self.marks)

    def marks_ns(self, marks: list[int]) -> list[int]:
        return marks

    def loss_values(self, _: Any) -> dict[str, float]:
        return {"loss": 1.0}

    def squares(self) -> dict[str, float]:
        return {"weights": self.weight**2, "average": float("nan")}

    def current_threads(self) -> int:
        return 3


def test_weights_are_held_where_the_recipe_says_so() -> None:
    worker, adapter = Worker(), Learning()
    worker.adapter, worker.phases = adapter, [("step", adapter.step)]
    worker.source = Rotation(["a", "b"])
    reply = worker.run_block(steps=2, settle=1, first=1)
    assert adapter.weight == 3
    assert (reply["batches"], reply["threads"]) == ([1, 0], 3)
    assert reply["busy_processors"] >= 0
    assert reply["done"].pop("later") >= 0
    reply["done"].pop("earlier")
    assert reply["done"] == {"weights": 9, "steps": 3}, "what is not finite is left out"
    worker.run_block(steps=2, settle=1, hold=True)
    assert adapter.weight == 3
