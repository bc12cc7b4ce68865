"""Facts of one audited step, or of all of one rank, of the baseline (first) and of an arm (second).

``at`` is what a fact says of its place: ` of rank 1 in step 2`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from bench.judge.detections import matched
from bench.judge.fact import INPUT, POSTPROCESS, TYPES, VALUES, WORK, Fact, Json, unknown

#: A term or group below this share of the whole is compared with that share.
SMALL = 0.01
STATISTICS = 5e-3


def images(first: Sequence[Json], second: Sequence[Json], at: str, tolerance: float = 1e-3) -> Iterator[Fact]:
    """What enters the first convolution. Codebases that read files themselves resize with other rounding, which the
    means over a coarse grid hardly show."""
    yield Fact(f"images that enter the network{at}", len(first), len(second), explained_by=INPUT)
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a["shape"] != b["shape"]:
            yield Fact(f"shape of image {number + 1}{at}", a["shape"], b["shape"], explained_by=INPUT)
            continue
        for kind, limit in (("projection", tolerance), ("coarse", min(tolerance, 0.05))):
            if kind in a and kind in b:  # old records have no coarse one
                distance = _distance(a[kind], b[kind])
                name = f"{'coarse ' * (kind == 'coarse')}content of image {number + 1}{at} (norm)"
                yield Fact(name, a["norm"], b["norm"], limit, INPUT, distance=distance)


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Relative distance of two projections, in which every position counts."""
    first, second = np.asarray(a), np.asarray(b)
    size = max(float(np.linalg.norm(first)), float(np.linalg.norm(second)), 1e-9)
    return float(np.linalg.norm(first - second)) / size


def operations(a: Json, b: Json, at: str) -> Iterator[Fact]:
    """FLOPs by type, and values of norm layers and of random layers."""
    for direction in ("forward", "backward"):
        first, second = a["flops"][direction], b["flops"][direction]
        done, by_arm = sum(first.values()), sum(second.values())
        if not done and not by_arm:
            continue
        yield Fact(f"{direction} FLOPs{at}", done, by_arm, 0.01, WORK, only_with_others=bool(done and by_arm))
        for kind in sorted({*first, *second}):
            shares = first.get(kind, 0) / max(done, 1), second.get(kind, 0) / max(by_arm, 1)
            name = f"share of {direction} FLOPs in {kind}{at}"
            yield Fact(name, *shares, 0.02, TYPES, distance=abs(shares[0] - shares[1]))
    for mode in ("batch", "group"):
        counts = a["normalised"].get(mode, 0), b["normalised"].get(mode, 0)
        yield Fact(f"values normalised by {mode} statistics{at}", *counts, 0.01, WORK)
    yield Fact(f"values offered to random layers{at}", a["random_values"], b["random_values"], 0.01, WORK)


def layers(a: Json, b: Json, at: str, tolerance: float) -> Iterator[Fact]:
    """Raw predictions, and the gradients that the loss gives them: samples have one, all else has 0."""
    for name in a["layers"]:
        if name not in b["layers"]:
            continue
        one, two = a["layers"][name], b["layers"][name]
        layer = name.removesuffix(".weight")
        if "detections" in a:  # in training it is enough to predict where the loss looks
            yield Fact(f"positions at which {layer} predicts{at}", one["rows"], two["rows"], 2e-3, WORK)
        if one["rows"] == two["rows"]:
            norms = one["norm"], two["norm"]
            name, distance = f"norm of the output of {layer}{at}", _without_a_row(one, two)
            yield Fact(name, *norms, tolerance, VALUES, distance=distance)
            if any(one["projection"]) and any(two["projection"]):
                distance = _distance(one["projection"], two["projection"])
                name = f"output of {layer}{at} (sum)"
                yield Fact(name, one["sum"], two["sum"], tolerance, VALUES, distance=distance)
        if "losses" in a:
            # Of rows where both have rows: in one that saturates, a part of the values rounds to 0.
            kind = "gradient_rows" if one.get("gradient_rows") and two.get("gradient_rows") else "gradients"
            counts = one[kind], two[kind]
            yield Fact(f"values of {layer} with a gradient{at}", *counts, 0.01, VALUES)


def _without_a_row(a: Json, b: Json) -> float:
    """Relative distance of two norms; rounding may choose another region, whose row counts in only one of them."""
    largest = max(a["norm"], b["norm"], 1e-150)  # whose square is above 0
    row = max(a.get("largest", 0.0), b.get("largest", 0.0))  # not of old records
    apart = abs(a["norm"] ** 2 - b["norm"] ** 2) - row**2
    return float(max(0.0, apart) / (2 * largest**2))


def losses(first: Json, second: Json, at: str, tolerance: float) -> Iterator[Fact]:
    """Term by term: by name where both have the same names, else by size; where sizes differ, the nearest first."""
    a, b = (sorted((value, name) for name, value in one.items() if name != "loss") for one in (first, second))
    total = first.get("loss", sum(value for value, _ in a))
    yield Fact(f"total loss{at}", total, second.get("loss", sum(value for value, _ in b)), tolerance, VALUES)
    if not a or not b:
        yield unknown(f"loss terms{at}", VALUES)
        return
    yield Fact(f"loss terms{at}", len(a), len(b), explained_by=VALUES)

    def distance(pair: tuple[tuple[float, str], tuple[float, str]]) -> float:
        (expected, _), (found, _) = pair
        return float(abs(found - expected) / max(abs(found), abs(expected), SMALL * abs(total), 1e-9))

    named = {name: (value, name) for value, name in b}
    pairs = list(zip(a, b, strict=False))
    if named.keys() == {name for _, name in a}:
        pairs = [(one, named[one[1]]) for one in a]
    elif any(distance(pair) > tolerance for pair in pairs):
        near, pairs = sorted(itertools.product(a, b), key=distance), []
        while near:
            pairs.append(near[0])
            near = [one for one in near if one[0] != near[0][0] and one[1] != near[0][1]]
    for pair in pairs:
        (expected, name), (found, other) = pair
        label = name if name == other else f"{name} ({other})"
        yield Fact(f"{label}{at}", expected, found, tolerance, VALUES, distance=distance(pair))


def norms(a: Json, b: Json, at: str, tolerance: float) -> Iterator[Fact]:
    """Norms of gradient, update and momentum, in total and by part of the model."""
    kinds = ("gradient", "update", "momentum", "statistics")
    for kind in (one for one in kinds if a.get(one) or b.get(one)):
        # Of statistics some keep the variance of the batch, others what it says of all images.
        allowed = max(tolerance, STATISTICS) if kind == "statistics" else tolerance
        first, second = a.get(kind, {}), b.get(kind, {})
        whole = max(_length(first), _length(second))
        yield Fact(f"norm of the {kind}{at}", _length(first), _length(second), allowed, VALUES)
        for group in sorted({*first, *second}):
            norms = first.get(group, 0.0), second.get(group, 0.0)
            distance = abs(norms[0] - norms[1]) / max(*norms, SMALL * whole, 1e-12)
            yield Fact(f"norm of the {kind} of {group}{at}", *norms, allowed, VALUES, distance=distance)


def _length(norms: Mapping[str, float]) -> float:
    return float(sum(norm * norm for norm in norms.values()) ** 0.5)


RULE = frozenset({"optimizer", "lr"})
RULES = (
    ("lr", "learning rate", 0.01),
    ("momentum", "momentum", 0.01),
    ("weight_decay", "weight decay", 0.05),
)


def rules(a: Json, b: Json, number: int, at: str) -> Iterator[Fact]:
    """The optimizer's constants as its tensors show them."""
    for name, title, tolerance in RULES:
        if name != "momentum" or number:  # in the first step there is none before it
            explained = RULE | {name}
            yield Fact(f"{title} as the weights show it{at}", a.get(name), b.get(name), tolerance, explained)
            first, second = a.get("vectors", {}), b.get("vectors", {})  # not of old records
            if name in first and name in second:
                blur = max(first["blur"], second["blur"]) if name == "weight_decay" else 0.0
                where = f"{title} as biases show it{at}"
                yield _constant(where, first[name], second[name], blur, 2 * tolerance, explained)
    for place, title in enumerate(("update", "momentum")):
        if "unexplained" in a and "unexplained" in b:
            one, two = a["unexplained"][place], b["unexplained"][place]
            name = f"share of the {title} that the rule does not make{at}"
            yield Fact(name, one, two, 0.05, frozenset({"optimizer"}), distance=abs(one - two))


def _constant(
    name: str, a: float, b: float, blur: float, tolerance: float, explained: frozenset[str]
) -> Fact:
    """A constant of a part of the weights. It counts as far as it stands out of what rounding adds (``blur``)."""
    distance = abs(a - b) / max(abs(a), abs(b), 10 * blur / tolerance, 1e-12)
    return Fact(name, a, b, tolerance, explained, distance=distance)


def constants(a: Json, b: Json, at: str) -> Iterator[Fact]:
    """Weight decay and learning rate of each part of the model that both arms have."""
    kinds = (("decay", "weight decay", 0.1, RULE | {"weight_decay"}), ("rate", "learning rate", 0.02, RULE))
    for kind, title, tolerance, explained in kinds:
        first, second = a.get(kind, {}), b.get(kind, {})
        for group in sorted({*first} & {*second}):
            name = f"{title} of {group}{at}"
            yield from _parts(name, first[group], second[group], tolerance, explained)


def averages(a: Json, b: Json, at: str) -> Iterator[Fact]:
    """What the averages of weights, and of what norm layers keep of their batches, took over."""
    for kind, what in (("average", ""), ("average of statistics", "statistics of ")):
        first, second = a.get(kind, {}), b.get(kind, {})
        for group in sorted({*first, *second}):
            name = f"weight of new values in the average of {what}{group}{at}"
            one, two = (kept.get(group, 0.0) for kept in (first, second))
            yield from _parts(name, one, two, 0.01, VALUES | {"ema", "ema_decay"})


def _parts(
    name: str,
    a: float | Sequence[float],
    b: float | Sequence[float],
    tolerance: float,
    explained: frozenset[str],
) -> Iterator[Fact]:
    """A constant of a part of the model, and of its tensors (`bench.judge.observations`); old records know less."""
    (first, blur, *one), (second, other, *two) = (
        (c, 0.0) if isinstance(c, int | float) else c for c in (a, b)
    )
    yield _constant(name, first, second, max(blur, other), tolerance, explained)
    for which, mine, theirs in zip(("least", "greatest"), one, two, strict=False):
        distance = abs(mine - theirs) / max(abs(first), abs(second), 1e-12)  # of a learning rate of 0
        yield Fact(f"{which} {name}, of its tensors", mine, theirs, 0.1, explained, distance=distance)


def rounded(a: Mapping[str, int], b: Mapping[str, int], at: str) -> Iterator[Fact]:
    """Values that became numbers of fewer than 32 bits."""
    for kind in sorted({*a, *b}):
        yield Fact(f"values rounded to {kind}{at}", a.get(kind, 0), b.get(kind, 0), 0.02, TYPES)


def settings(a: Json, b: Json, at: str) -> Iterator[Fact]:
    """Settings of the framework while it computed."""
    first, second = a.get("settings", {}), b.get("settings", {})
    for name in (one for one in first if one in second):
        explained = frozenset({"threads", "ranks"}) if name == "threads" else TYPES
        yield Fact(f"{name} while computing{at}", first[name], second[name], 0.0, explained)


def silent(a: Json, b: Json, at: str) -> Iterator[Fact]:
    """A phase without any operator, where the other arm has some, or without the values that it makes: its work may be
    done elsewhere, or put off."""
    one, two = (step.get("operators", {}) for step in (a, b))
    for phase in ("forward", "backward", "optimizer", "ema", "network", "post") if one and two else ():
        if bool(one.get(phase)) != bool(two.get(phase)) or any(_missing(step, phase) for step in (a, b)):
            yield unknown(f"operators of the phase {phase}{at}", frozenset({phase}))


def _missing(step: Json, phase: str) -> bool:
    """Whether fewer values were seen than the step changed; not every observer counts them."""
    values = step.get("values", {}).get(phase, 0)
    return phase in ("optimizer", "ema") and bool(0 < values < 0.9 * step.get("moved", 0))


OUTSIDE = (
    ("flops", "FLOPs", 0.01),
    ("suppressed", "boxes offered to suppression", 0.02),
    ("operators", "operators", 0.1),
)


def outside(first: tuple[Json, Json], second: tuple[Json, Json], what: str) -> Iterator[Fact]:
    """Work that no step is timed with, to that of a step.

    Args:
        first: Of the baseline: the work, and a step.
        second: The same of the arm.
        what: What is done there, and the place of the facts.
    """
    works = [(work, _work(step)) for work, step in (first, second)]
    for kind, title, tolerance in OUTSIDE if first[0] and second[0] else ():
        if kind != "operators" or all(step[kind] for _, step in works):  # not every observer sees them
            one, two = (work[kind] / max(step[kind], 1) for work, step in works)
            name = f"{title} {what}, to those of a step"
            yield Fact(name, one, two, tolerance, WORK, distance=abs(one - two))


def _work(step: Json) -> dict[str, int]:
    return {
        "flops": sum(sum(kind.values()) for kind in step["flops"].values()),
        "suppressed": step.get("suppressed", 0),
        "operators": sum(step.get("operators", {}).values()),
    }


def ways(a: Mapping[str, float], b: Mapping[str, float], at: str, tolerance: float) -> Iterator[Fact]:
    """How far all steps before moved each part of the model, from where it began."""
    whole = max(_length(a), _length(b))
    for group in sorted({*a, *b}):
        norms = a.get(group, 0.0), b.get(group, 0.0)
        distance = abs(norms[0] - norms[1]) / max(*norms, SMALL * whole, 1e-12)
        yield Fact(f"distance that {group} went{at}", *norms, tolerance, VALUES, distance=distance)


def timed_before(
    first: tuple[Json, Json], second: tuple[Json, Json], at: str, tolerance: float
) -> Iterator[Fact]:
    """Work on a batch that was timed before, to that on batches never seen: what a batch carries is not done again.

    Args:
        first: Of the baseline: its audit, and the step with the batch that was timed.
        second: The same of the arm.
        at: The place of the facts.
        tolerance: Of operators, whose number may depend on what is in the images.
    """
    flops, operators = [], []
    for audit, step in (first, second):
        new = audit["steps"][:2]
        done = [sum(sum(kind.values()) for kind in one["flops"].values()) for one in (step, new[-1])]
        flops.append(done[0] / max(done[1], 1))
        ratios: dict[str, float] = {}
        for phase, count in (
            (phase, count) for one in new for phase, count in one["operators"].items() if count
        ):
            ratio = step["operators"].get(phase, 0) / count
            # The first pass through the network also prepares what depends on no image.
            ratios[phase] = min(ratio, ratios.get(phase, ratio), key=lambda one: abs(one - 1))
        operators.append(ratios)
    yield Fact(f"FLOPs of a batch timed before, to those of another{at}", flops[0], flops[1], 0.1, WORK)
    for phase in ("data", "forward", "backward", "optimizer", "ema", "network", "post"):
        one, two = (ratios.get(phase) for ratios in operators)
        if one is not None and two is not None:
            name = f"operators of {phase} for a batch timed before, to those of another{at}"
            yield Fact(name, one, two, tolerance, WORK)


def repeated(first: Sequence[Json], second: Sequence[Json], where: str) -> Iterator[Fact]:
    """The last step has the images of the first one: work that was remembered is not done again."""

    def ratio(steps: Sequence[Json], direction: str) -> float:
        done = [sum(step["flops"].get(direction, {}).values()) for step in (steps[0], steps[-1])]
        return float(done[1] / max(done[0], 1))

    # Which passes backward a codebase leaves out depends on the objects, and the last step has one fewer.
    for prefix, direction in (("", "forward"), ("backward ", "backward")):
        name = f"{prefix}FLOPs of a batch seen before, to the first time{where}"
        values = ratio(first, direction), ratio(second, direction)
        yield Fact(name, *values, 0.02, WORK, only_with_others=direction == "backward")
    # The first pass through the network also prepares what depends on no image: anchors, transformed weights. What
    # comes after the network depends on what is in the images, so it is compared with the same images.
    for phase, other, words in (("network", -2, "those of another"), ("post", 0, "the first time")):
        one, two = (_again(steps, phase, other) for steps in (first, second))
        if one is not None and two is not None:  # in training what is done depends on weights and annotations
            yield Fact(
                f"operators of {phase} for a batch seen before, to {words}{where}", one, two, 0.5, WORK
            )


def _again(steps: Sequence[Json], phase: str, other: int) -> float | None:
    """Operators in the last step to those in another; None where they are not counted."""
    counts = [step["operators"].get(phase, 0) for step in (steps[other], steps[-1])]
    return counts[1] / counts[0] if counts[0] else None


def changed(first: Json, second: Json, where: str) -> Iterator[Fact]:
    """Which parts of the model the steps changed."""
    a, b = first["changed"], second["changed"]
    yield Fact(f"parts of the model that changed{where}", sorted(a), sorted(b), explained_by=VALUES)
    yield Fact(f"values that changed{where}", sum(a.values()), sum(b.values()), 2e-3, VALUES)
    if "tensors" in first and "tensors" in second:  # not of old records
        yield Fact(f"tensors that changed{where}", first["tensors"], second["tensors"], 5e-3, VALUES)


def detections(
    first: Sequence[Json], second: Sequence[Json], at: str, closely: bool = False
) -> Iterator[Fact]:
    """Detections of each image of the batch. ``closely``: also how near those of both sides are."""
    explained = VALUES | POSTPROCESS
    if not any(one["scores"] for one in (*first, *second)):
        yield unknown(f"detections{at} (there are none)", explained)
        return
    ours = {one["image_id"]: one for one in second}
    for one in first:
        two = ours.get(one["image_id"], {"scores": [], "boxes": [], "labels": []})
        name = f"detections of image {one['image_id']}{at}"
        counts = len(one["scores"]), len(two["scores"])
        distance = max(0, abs(counts[0] - counts[1]) - 1) / max(*counts, 1)
        yield Fact(name, *counts, 0.02, explained, distance=distance)
        share, overlap, scores = matched(one, two)
        yield Fact(f"share of {name} that match", 1.0, share, 0.05, explained)
        if closely:
            yield Fact(f"mean IoU of matching {name}", 1.0, overlap, 0.02, explained)
            yield Fact(f"scores of matching {name}, to the baseline's", 1.0, scores, 0.005, explained)
