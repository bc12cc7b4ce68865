"""What has to be equal for two arms to do equal work, and how nearly.

Facts come from `bench.worker.audit`, in canonical names of parameters. Tolerances are what honest pairs need, with room
for the rounding of other kernels: in float32 they agree to 1e-5 in losses and to a few 1e-4 in gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.judge.detections import matched_share
from bench.recipe.models import MODELS
from bench.record.models import ArmRecord

Json = Mapping[str, Any]

#: Factors of a recipe that make a difference of each kind of fact expected.
SIZES = frozenset(
    {"model", "size", "batch_size", "images", "count", "annotations", "dataset", "mode", "ranks"}
)
INPUT = SIZES | {"task"}
WORK = SIZES | {"frozen_stages", "frozen_bn"}
VALUES = WORK | {"precision", "lr", "momentum", "weight_decay", "seed", "weights", "conventions", "optimizer"}
TYPES = frozenset({"precision", "device"})
POSTPROCESS = frozenset({"task", "score_threshold", "max_detections"})

#: Relative, by precision: losses and layers; norms of gradients, updates and momentum.
LOSS = {"float32": 1e-3}
GRADIENT = {"float32": 5e-3}
HALF = 0.05
#: Of models that sample, between frameworks whose proposals differ by their own rounding.
SAMPLED = 0.03
#: Of the mean loss of timed blocks, where rounding has grown from step to step (0.8 % after eight steps of RetinaNet);
#: and of models or input that are random there.
TIMED, TIMED_AT_RANDOM = 0.1, 0.25
#: A term or group below this share of the whole is compared with that share.
SMALL = 0.01


@dataclass(frozen=True)
class Fact:
    """One thing that has to be equal; None is not known. ``only_with_others``: alone, a difference is a note."""

    name: str
    baseline: Any
    arm: Any
    tolerance: float = 0.0
    explained_by: frozenset[str] = frozenset()
    only_with_others: bool = False
    distance: float | None = None
    """Where the values are shown but something else is compared; in units of the tolerance's."""

    @property
    def known(self) -> bool:
        return self.baseline is not None and self.arm is not None

    @property
    def agrees(self) -> bool:
        if self.distance is not None:
            return bool(self.distance <= self.tolerance)
        if _is_number(self.baseline) and _is_number(self.arm):
            largest = max(abs(self.baseline), abs(self.arm))
            return bool(abs(self.arm - self.baseline) <= self.tolerance * largest + 1e-12)
        return bool(self.baseline == self.arm)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _unknown(name: str, explained_by: frozenset[str] = frozenset()) -> Fact:
    return Fact(name, None, None, explained_by=explained_by)


# -- what the codebase says of itself: a difference counts, silence does not -----------------------------------


def _described(*path: str) -> Callable[[ArmRecord], Any]:
    def read(record: ArmRecord) -> Any:
        value: Any = record.description
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    return read


def _all_parameters(record: ArmRecord) -> Any:
    """Parameters, and the affine values of frozen normalisation that some codebases keep as buffers."""
    count = record.description.get("parameters")
    frozen = record.description.get("extra", {}).get("frozen_affine_values") or 0
    return None if count is None else count + frozen


TRAINED = WORK - (SIZES - {"model"})

DECLARED: tuple[tuple[str, Callable[[ArmRecord], Any], float, frozenset[str]], ...] = (
    ("parameters", _all_parameters, 1e-3, frozenset({"model"})),
    ("trainable parameters", _described("trainable_parameters"), 1e-3, TRAINED),
    ("input shape", _described("input_shape"), 0.0, INPUT),
    ("ground-truth objects", _described("objects"), 0.0, INPUT),
    ("learning rate", _described("optimizer", "lr"), 1e-6, frozenset({"lr"})),
    ("momentum", _described("optimizer", "momentum"), 1e-6, frozenset({"momentum", "optimizer"})),
    ("weight decay", _described("optimizer", "weight_decay"), 1e-6, frozenset({"weight_decay"})),
    ("EMA", _described("extra", "ema"), 0.0, frozenset({"ema"})),
    ("score threshold", _described("postprocess", "score_threshold"), 1e-6, POSTPROCESS),
    ("NMS IoU threshold", _described("postprocess", "nms_iou_threshold"), 1e-6, POSTPROCESS),
    ("maximum detections", _described("postprocess", "max_detections"), 0.0, POSTPROCESS),
    ("proposal candidates", _described("postprocess", "proposal_candidates"), 0.0, POSTPROCESS),
    ("proposals", _described("postprocess", "proposals"), 0.0, POSTPROCESS),
    ("threads asked for", _described("threads"), 0.0, frozenset({"threads", "ranks"})),
)


def declared(arm: ArmRecord, baseline: ArmRecord) -> Iterator[Fact]:
    for name, value, tolerance, explained_by in DECLARED:
        yield Fact(name, value(baseline), value(arm), tolerance, explained_by)


# -- what was observed -------------------------------------------------------------------------------


def observed(arm: ArmRecord, baseline: ArmRecord) -> Iterator[Fact]:
    """Facts of every rank and audited step; an unknown one for each kind that could not be observed."""
    theirs, ours = ([rank for rank in record.audit.get("ranks", ()) if rank] for record in (baseline, arm))
    if not theirs or not ours:
        yield _unknown("observed steps")
        return
    if len(theirs) != len(ours):
        yield Fact("ranks", len(theirs), len(ours), explained_by=frozenset({"ranks"}))
    tolerances = _tolerances(arm, baseline)
    random_weights = arm.workload.weights == "random"
    ranks = [
        _Rank(a, b, f" of rank {number}" if len(theirs) > 1 else "", tolerances, random_weights)
        for number, (a, b) in enumerate(zip(theirs, ours, strict=False))
    ]
    for rank in ranks:
        yield from rank.facts()
    if all(rank.alike for rank in ranks):
        yield from _timed(arm, baseline)


def _tolerances(arm: ArmRecord, baseline: ArmRecord) -> tuple[float, float]:
    """Of losses and layers, and of norms."""
    precision = arm.workload.precision
    loss, gradient = LOSS.get(precision, HALF), GRADIENT.get(precision, HALF)
    if _samples(arm) and _framework(arm) != _framework(baseline):
        return max(loss, SAMPLED), max(gradient, SAMPLED)
    return loss, gradient


def _samples(arm: ArmRecord) -> bool:
    model = MODELS.get(arm.workload.model)
    return model is None or not model.deterministic


def _framework(arm: ArmRecord) -> str:
    library = arm.description.get("library", {})
    return next((name for name in ("torch", "paddlepaddle") if name in library), arm.codebase)


def _timed(arm: ArmRecord, baseline: ArmRecord) -> Iterator[Fact]:
    """Total losses of the timed blocks: what sets in after the audited steps."""
    theirs, ours = _totals(baseline), _totals(arm)
    common = sorted(set(theirs) & set(ours))
    if not common:
        return
    at_random = _samples(arm) or arm.workload.input.mode == "pipeline"
    first, second = (float(np.mean([totals[place] for place in common])) for totals in (theirs, ours))
    tolerance = TIMED_AT_RANDOM if at_random else TIMED
    yield Fact("mean loss of the timed blocks", first, second, tolerance, VALUES)


def _totals(arm: ArmRecord) -> dict[tuple[int, int], float]:
    totals = {}
    for one in arm.losses:
        terms = {name: value for name, value in one.losses.items() if value is not None}
        if terms and one.step is None and one.round is not None and one.round >= 0:
            total = terms.pop("loss", None)  # some codebases add the sum themselves
            totals[one.launch, one.round] = sum(terms.values()) if total is None else total
    return totals


@dataclass(frozen=True)
class _Rank:
    """The audits of one rank of baseline (``a``) and arm (``b``), and what is said of the place of a fact."""

    a: Json
    b: Json
    where: str
    tolerances: tuple[float, float]
    random_weights: bool

    @property
    def alike(self) -> bool:
        """Whether both arms began with the same weights."""
        return all(fact.known and fact.agrees for fact in self._weights())

    def facts(self) -> Iterator[Fact]:
        weights, alike = list(self._weights()), self.alike
        named = all(fact.known for fact in weights)
        if self.random_weights and not alike:  # what follows from them can be neither equal nor unequal
            weights = [_unknown("initial weights", VALUES)]
        yield from weights
        yield from self._settings()
        counts = len(self.a["steps"]), len(self.b["steps"])
        yield Fact("audited steps", *counts)
        for number, (a, b) in enumerate(zip(self.a["steps"], self.b["steps"], strict=False)):
            at = f"{self.where} in step {number + 1}"
            yield from _images(a["images"], b["images"], at)
            yield from _operations(a, b, at)
            if alike:
                yield from self._values(a, b, at)
            if "losses" in a and "losses" in b:
                yield from _rules(a["rule"], b["rule"], number, at)
                if named and number:  # some averages begin with a copy of the first weights
                    yield from _averages(a["average"], b["average"], at)
        yield _repeated(self.a["steps"], self.b["steps"], self.where)
        if named and "changed" in self.a and "changed" in self.b:
            yield from _changed(self.a["changed"], self.b["changed"], self.where)

    def _weights(self) -> Iterator[Fact]:
        """Norms of all parameters that the arms share, which must be nearly all that there are."""
        a, b = self.a["weights"], self.b["weights"]
        common = [name for name in a if name in b]
        if len(common) < 0.9 * max(len(a), len(b), 1):
            yield _unknown(f"initial weights{self.where}", VALUES)
            return
        worst = max(common, key=lambda name: abs(a[name] - b[name]) / max(a[name], b[name], 1e-6))
        yield Fact(f"norm of the initial {worst}{self.where}", a[worst], b[worst], 1e-4, VALUES)

    def _settings(self) -> Iterator[Fact]:
        a, b = self.a.get("after", {}), self.b.get("after", {})
        shared = frozenset({"threads", "ranks"})
        yield Fact(f"threads after the steps{self.where}", a.get("threads"), b.get("threads"), 0.0, shared)
        for name in ("matrix products", "TF32"):
            yield Fact(f"setting: {name}{self.where}", a.get(name), b.get(name), 0.0, TYPES)

    def _values(self, a: Json, b: Json, at: str) -> Iterator[Fact]:
        tolerance, of_norms = self.tolerances
        yield from _layers(a, b, at, tolerance)
        if "losses" in a and "losses" in b:
            yield from _losses(a["losses"], b["losses"], at, tolerance)
            yield from _norms(a, b, at, of_norms)
        if "detections" in a and "detections" in b:
            counts = a.get("suppressed"), b.get("suppressed")
            if all(counts):  # by the operator that most codebases share
                yield Fact(f"boxes offered to suppression{at}", *counts, 0.02, VALUES | POSTPROCESS)
            yield from _detections(a["detections"], b["detections"], at)


def _images(first: Sequence[Json], second: Sequence[Json], at: str) -> Iterator[Fact]:
    yield Fact(f"images that enter the network{at}", len(first), len(second), explained_by=INPUT)
    for number, (a, b) in enumerate(zip(first, second, strict=False)):
        if a["shape"] != b["shape"]:
            yield Fact(f"shape of image {number + 1}{at}", a["shape"], b["shape"], explained_by=INPUT)
            continue
        distance = _distance(a["projection"], b["projection"])
        name = f"content of image {number + 1}{at} (norm)"
        yield Fact(name, a["norm"], b["norm"], 1e-3, INPUT, distance=distance)


def _distance(a: Sequence[float], b: Sequence[float]) -> float:
    """Relative distance of two projections, in which every position counts."""
    first, second = np.asarray(a), np.asarray(b)
    size = max(float(np.linalg.norm(first)), float(np.linalg.norm(second)), 1e-9)
    return float(np.linalg.norm(first - second)) / size


def _operations(a: Json, b: Json, at: str) -> Iterator[Fact]:
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


def _layers(a: Json, b: Json, at: str, tolerance: float) -> Iterator[Fact]:
    """Raw predictions, and the gradients that the loss gives them: samples have one, all else has 0."""
    for name in a["layers"]:
        if name not in b["layers"]:
            continue
        one, two = a["layers"][name], b["layers"][name]
        layer = name.removesuffix(".weight")
        if "detections" in a:  # in training it is enough to predict where the loss looks
            yield Fact(f"positions at which {layer} predicts{at}", one["rows"], two["rows"], 2e-3, WORK)
        if one["rows"] == two["rows"]:
            yield Fact(f"norm of the output of {layer}{at}", one["norm"], two["norm"], tolerance, VALUES)
            if any(one["projection"]) and any(two["projection"]):
                distance = _distance(one["projection"], two["projection"])
                name = f"output of {layer}{at} (sum)"
                yield Fact(name, one["sum"], two["sum"], tolerance, VALUES, distance=distance)
        if "losses" in a:
            # Of rows where both have rows: in one that saturates, a part of the values rounds to 0.
            kind = "gradient_rows" if one.get("gradient_rows") and two.get("gradient_rows") else "gradients"
            counts = one[kind], two[kind]
            yield Fact(f"values of {layer} with a gradient{at}", *counts, 0.01, VALUES)


def _losses(first: Json, second: Json, at: str, tolerance: float) -> Iterator[Fact]:
    """Term by term, in order of size: names differ from codebase to codebase."""
    a, b = (sorted((value, name) for name, value in one.items() if name != "loss") for one in (first, second))
    total = first.get("loss", sum(value for value, _ in a))
    yield Fact(f"total loss{at}", total, second.get("loss", sum(value for value, _ in b)), tolerance, VALUES)
    if not a or not b:
        yield _unknown(f"loss terms{at}", VALUES)
        return
    yield Fact(f"loss terms{at}", len(a), len(b), explained_by=VALUES)
    for (expected, name), (found, _) in zip(a, b, strict=False):
        distance = abs(found - expected) / max(abs(found), abs(expected), SMALL * abs(total), 1e-9)
        yield Fact(f"{name}{at}", expected, found, tolerance, VALUES, distance=distance)


def _norms(a: Json, b: Json, at: str, tolerance: float) -> Iterator[Fact]:
    for kind in ("gradient", "update", "momentum"):
        first, second = a[kind], b[kind]
        whole = max(_length(first), _length(second))
        yield Fact(f"norm of the {kind}{at}", _length(first), _length(second), tolerance, VALUES)
        for group in sorted({*first, *second}):
            norms = first.get(group, 0.0), second.get(group, 0.0)
            distance = abs(norms[0] - norms[1]) / max(*norms, SMALL * whole, 1e-12)
            yield Fact(f"norm of the {kind} of {group}{at}", *norms, tolerance, VALUES, distance=distance)


def _length(norms: Mapping[str, float]) -> float:
    return float(sum(norm * norm for norm in norms.values()) ** 0.5)


RULES = (
    ("lr", "learning rate", 0.01),
    ("momentum", "momentum", 0.01),
    ("weight_decay", "weight decay", 0.05),
)


def _rules(a: Json, b: Json, number: int, at: str) -> Iterator[Fact]:
    """The optimizer's constants as its tensors show them."""
    for name, title, tolerance in RULES:
        if name != "momentum" or number:  # in the first step there is none before it
            explained = frozenset({name, "optimizer", "lr"})
            yield Fact(f"{title} as the weights show it{at}", a.get(name), b.get(name), tolerance, explained)


def _averages(a: Json, b: Json, at: str) -> Iterator[Fact]:
    for group in sorted({*a, *b}):
        name = f"weight of new values in the average of {group}{at}"
        yield Fact(name, a.get(group, 0.0), b.get(group, 0.0), 0.01, VALUES | {"ema", "ema_decay"})


def _repeated(first: Sequence[Json], second: Sequence[Json], where: str) -> Fact:
    """The last step has the batch of the first one: work that was remembered is not done again."""

    def ratio(steps: Sequence[Json]) -> float:
        done = [sum(sum(kind.values()) for kind in step["flops"].values()) for step in (steps[0], steps[-1])]
        return float(done[1] / max(done[0], 1))

    name = f"FLOPs of a batch seen before, to the first time{where}"
    return Fact(name, ratio(first), ratio(second), 0.02, WORK)


def _changed(a: Json, b: Json, where: str) -> Iterator[Fact]:
    yield Fact(f"parts of the model that changed{where}", sorted(a), sorted(b), explained_by=VALUES)
    yield Fact(f"values that changed{where}", sum(a.values()), sum(b.values()), 2e-3, VALUES)


def _detections(first: Sequence[Json], second: Sequence[Json], at: str) -> Iterator[Fact]:
    explained = VALUES | POSTPROCESS
    if not any(one["scores"] for one in (*first, *second)):
        yield _unknown(f"detections{at} (there are none)", explained)
        return
    ours = {one["image_id"]: one for one in second}
    for one in first:
        two = ours.get(one["image_id"], {"scores": [], "boxes": [], "labels": []})
        name = f"detections of image {one['image_id']}{at}"
        counts = len(one["scores"]), len(two["scores"])
        distance = max(0, abs(counts[0] - counts[1]) - 1) / max(*counts, 1)
        yield Fact(name, *counts, 0.02, explained, distance=distance)
        yield Fact(f"share of {name} that match", 1.0, matched_share(one, two), 0.05, explained)
