"""Facts of timed blocks: losses, weights and detections, which are read after the clock has stopped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from bench.judge import steps
from bench.judge.fact import VALUES, Fact
from bench.record.models import Losses

#: Of losses, and of models or input that are random in timed steps.
TOLERANCE, AT_RANDOM = 0.1, 0.25
#: Of the change of the sum of squares of the weights, and of their average.
WAY, WAY_AT_RANDOM = 0.1, 0.25
#: Steps in which what rounding makes of a loss may double.
DOUBLING = 2

Pair = tuple[Losses, Losses]


def launch(pairs: Sequence[Pair], at: str, growing: float | None) -> Iterator[Fact]:
    """Blocks of one launch.

    Args:
        pairs: Of baseline and arm, by round; the warm-up first.
        at: The place of the facts.
        growing: Tolerance of a loss in the first step; None where the steps are random.
    """
    rounds = [pair for pair in pairs if (pair[0].round or 0) >= 0]
    totals = [(_total(a), _total(b)) for a, b in rounds]
    known = [pair for pair in totals if None not in pair]
    if known:
        first, second = np.mean(np.array(known, float), axis=0)
        tolerance = AT_RANDOM if growing is None else TOLERANCE
        yield Fact(f"mean loss of the timed blocks{at}", float(first), float(second), tolerance, VALUES)
    for a, b in pairs if growing is not None else ():
        taken = a.done.get("steps")
        tolerance = (growing or 0.0) * 2.0 ** ((taken or 0) / DOUBLING)
        if taken and taken == b.done.get("steps") and a.losses and b.losses and tolerance < TOLERANCE:
            yield from steps.losses(a.losses, b.losses, f" in timed step {taken:g}{at}", tolerance)
    yield from _way(pairs, at, WAY_AT_RANDOM if growing is None else WAY)
    for kind, what in (
        ("later", "of reading the results of a timed block"),
        ("earlier", "right before a timed block"),
    ):
        shares = [[pair[side].done.get(kind, 0.0) for pair in rounds] or [0.0] for side in (0, 1)]
        one, two = (max(side) if kind == "later" else sum(side) / len(side) for side in shares)
        name = f"processor time {what}, to its own{at}"
        yield Fact(name, one, two, 0.5, distance=abs(one - two))
    for a, b in rounds:
        if a.found and b.found:
            yield from steps.detections(a.found, b.found, f" in the timed blocks{at}")


def _total(one: Losses) -> float | None:
    terms = {name: value for name, value in one.losses.items() if value is not None}
    total = terms.pop("loss", None)  # some codebases add the sum themselves
    return sum(terms.values()) if total is None and terms else total


def _way(pairs: Sequence[Pair], at: str, tolerance: float) -> Iterator[Fact]:
    """The sum of squares of the momentum, and how far those of weights and average went from the warm-up on."""
    if len(pairs) < 2:
        return
    sums = [[pair[side].done.get("momentum") for pair in pairs] for side in (0, 1)]
    if not any(one is None for side in sums for one in side):
        first, second = np.mean(np.array(sums, float), axis=1)
        name = f"squared norm of the momentum in timed blocks{at}"
        yield Fact(name, float(first), float(second), 2.5 * tolerance, VALUES)
    for kind in ("weights", "average"):
        ends = [[pair[side].done.get(kind) for pair in (pairs[0], pairs[-1])] for side in (0, 1)]
        first, second = (None if a is None or b is None else b - a for a, b in ends)
        if first is not None and second is not None:
            explained = VALUES | ({"ema", "ema_decay"} if kind == "average" else frozenset())
            name = f"change of the squared norm of the {kind} in timed blocks{at}"
            yield Fact(name, first, second, tolerance, explained)
