"""What has to be equal for two arms to do equal work, and how nearly.

Facts come from `bench.worker.audit`, in canonical names of parameters. Tolerances are what honest pairs need, with room
for the rounding of other kernels: in float32 they agree to 1e-5 in losses and to a few 1e-4 in gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from bench.judge import steps, timed
from bench.judge.fact import INPUT, POSTPROCESS, SIZES, TYPES, VALUES, WORK, Fact, Json, unknown
from bench.recipe.models import MODELS
from bench.record.models import ArmRecord

#: Relative, by precision: losses and layers; norms of gradients, updates and momentum.
TOLERANCES = {"float32": (1e-3, 5e-3), "float64": (1e-4, 1e-4)}
HALF = (0.05, 0.05)
#: Of norms in later steps, at least: a last digit of the weights can decide a slope.
LATER = TOLERANCES["float32"][1]
#: Of models that sample, between frameworks whose proposals differ by their own rounding.
SAMPLED = 0.03


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
    counts = _described("parameters")(record), _described("extra", "frozen_affine_values")(record)
    count, frozen = (one if isinstance(one, int | float) else None for one in counts)
    return None if count is None else count + (frozen or 0)


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
        yield unknown("observed steps")
        return
    if len(theirs) != len(ours):
        yield Fact("ranks", len(theirs), len(ours), explained_by=frozenset({"ranks"}))
    tolerances = _tolerances(arm, baseline)
    random_weights, single = arm.workload.weights == "random", arm.workload.precision == "float32"
    own_input = arm.workload.input.mode == "pipeline"
    ranks = [
        _Rank(
            a,
            b,
            f" of rank {number}" if len(theirs) > 1 else "",
            tolerances,
            random_weights,
            single,
            own_input,
            _samples(arm),
        )
        for number, (a, b) in enumerate(zip(theirs, ours, strict=False))
    ]
    for rank in ranks:
        yield from rank.facts()
    if all(rank.alike for rank in ranks):
        yield from _timed(arm, baseline)
        yield from _predicted(arm, baseline)
    yield from _processors(arm, baseline)
    closings = baseline.audit.get("closing", []), arm.audit.get("closing", [])
    for rank, a, b in zip(ranks, *closings, strict=False):
        after = replace(rank, a=a, b=b, first=(rank.a, rank.b), where=f"{rank.where} after the timed blocks")
        yield from _closing(a, b, after)


def _tolerances(arm: ArmRecord, baseline: ArmRecord) -> tuple[float, float]:
    """Of losses and layers, and of norms."""
    loss, gradient = TOLERANCES.get(arm.workload.precision, HALF)
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
    """Losses, weights and detections of the timed blocks: what is done there and not in the audited steps."""
    theirs, ours = (
        {(one.launch, one.round): one for one in record.losses if one.step is None and one.round is not None}
        for record in (baseline, arm)
    )
    places = sorted(set(theirs) & set(ours))
    dropping = any(rank.get("randomness") for one in (arm, baseline) for rank in one.audit.get("ranks", ()))
    at_random = dropping or _samples(arm) or arm.workload.input.mode == "pipeline"
    growing = None if at_random else _tolerances(arm, baseline)[0]
    for launch in sorted({launch for launch, _ in places}):
        pairs = [(theirs[place], ours[place]) for place in places if place[0] == launch]
        yield from timed.launch(pairs, f" of launch {launch + 1}", growing)


def _predicted(arm: ArmRecord, baseline: ArmRecord) -> Iterator[Fact]:
    """Detections that AP is of, where no training came before them."""
    a, b = baseline.predictions, arm.predictions
    if arm.workload.task == "train_eval" or a is None or b is None or not (a.detections or b.detections):
        return
    yield Fact("predicted images", a.images, b.images, explained_by=INPUT)
    explained = VALUES | POSTPROCESS
    yield Fact("detections of all predicted images", a.detections, b.detections, 0.05, explained)
    if any(it["scores"] for it in (*a.found, *b.found)):
        yield from steps.detections(a.found, b.found, " in the predictions")


THREADS = frozenset({"threads", "ranks"})


def _processors(arm: ArmRecord, baseline: ArmRecord) -> Iterator[Fact]:
    """Threads after the timed blocks, and whether a process kept more processors busy than it may."""
    if arm.threads and baseline.threads:
        yield Fact("threads after the timed blocks", baseline.threads, arm.threads, explained_by=THREADS)
    if arm.busy_processors is not None and baseline.busy_processors is not None:
        beyond = [_beyond(one) for one in (baseline, arm)]
        busy = round(baseline.busy_processors, 2), round(arm.busy_processors, 2)
        yield Fact(
            "processors busy in timed blocks", *busy, 0.0, THREADS, distance=float(beyond[0] != beyond[1])
        )


def _beyond(arm: ArmRecord) -> bool:
    """Whether more processors were busy than threads asked for; loaders of a codebase have threads of their own."""
    asked = arm.description.get("threads")
    if asked is None or arm.busy_processors is None or arm.workload.device != "cpu":
        return False
    if arm.workload.input.mode == "pipeline":
        return False
    return bool(arm.busy_processors > 1.25 * asked + 0.25)


def _closing(a: Json, b: Json, rank: _Rank) -> Iterator[Fact]:
    """Steps after the timed ones: all, where both began from their first weights; else what depends on no weights."""
    at, single = rank.where, rank.single
    if not a or not b or bool(a.get("weights")) != bool(b.get("weights")):
        yield unknown(f"steps{at}")
    if not a or not b:
        return
    went_back, same = a.get("weights") and b.get("weights"), a.get("taken") == b.get("taken")
    if went_back:
        yield from rank.facts()
        if rank.alike and same and not rank.own_input:
            yield from steps.ways(a.get("way", {}), b.get("way", {}), at, 0.5 if rank.samples else 0.25)
    if "step" not in a or "step" not in b:
        return
    yield from _settings(a["after"], b["after"], at)
    one, two = a["step"], b["step"]
    if "rule" in one and "rule" in two:
        yield from steps.rules(one["rule"], two["rule"], 1, at)
        if went_back and same and rank.named:
            yield from steps.averages(one, two, at)
    yield from steps.images(one["images"], two["images"], at, 0.3 if rank.own_input else 1e-3)
    yield Fact(f"images per pass through the network{at}", sorted(one["batches"]), sorted(two["batches"]),
               explained_by=INPUT)  # fmt: skip
    yield from steps.operations(one, two, at)
    yield from steps.settings(one, two, at)
    of_operators = 0.5 if rank.samples or rank.own_input else 0.05
    yield from steps.timed_before((rank.first[0], one), (rank.first[1], two), at, of_operators)
    if single:
        yield from steps.rounded(one["rounded"], two["rounded"], at)
    if "detections" in one and "detections" in two and not rank.own_input:
        yield from steps.detections(one["detections"], two["detections"], at)


def _settings(a: Json, b: Json, where: str) -> Iterator[Fact]:
    yield Fact(f"threads after the steps{where}", a.get("threads"), b.get("threads"), 0.0, THREADS)
    for name in ("matrix products", "convolutions", "TF32"):
        yield Fact(f"setting: {name}{where}", a.get(name), b.get(name), 0.0, TYPES)


@dataclass(frozen=True)
class _Rank:
    """The audits of one rank of baseline (``a``) and arm (``b``), and what is said of the place of a fact."""

    a: Json
    b: Json
    where: str
    tolerances: tuple[float, float]
    random_weights: bool
    single: bool
    """Whether the workload asks for float32."""
    own_input: bool
    """Whether each codebase reads the images itself."""
    samples: bool
    """Whether the model has proposals, so that its work depends on what it finds."""
    first: tuple[Json, Json] = ({}, {})
    """Of steps after the timed ones: what the same ranks did before."""

    @property
    def alike(self) -> bool:
        """Whether both arms began with the same weights."""
        return all(fact.known and fact.agrees for fact in self._weights())

    @property
    def named(self) -> bool:
        """Whether both arms' parameters have names in common."""
        return all(fact.known for fact in self._weights())

    def facts(self) -> Iterator[Fact]:
        weights, alike, named = list(self._weights()), self.alike, self.named
        if self.random_weights and not alike:  # what follows from them can be neither equal nor unequal
            weights = [unknown("initial weights", VALUES)]
        yield from weights
        yield from _settings(self.a.get("after", {}), self.b.get("after", {}), self.where)
        counts = len(self.a["steps"]), len(self.b["steps"])
        yield Fact("audited steps", *counts)
        for number, (a, b) in enumerate(zip(self.a["steps"], self.b["steps"], strict=False)):
            at = f"{self.where} in step {number + 1}"
            yield from steps.images(a["images"], b["images"], at)
            calls = sorted(a["batches"]), sorted(b["batches"])
            yield Fact(f"images per pass through the network{at}", *calls, explained_by=INPUT)
            yield from steps.operations(a, b, at)
            yield from steps.settings(a, b, at)
            yield from steps.silent(a, b, at)
            if self.single:
                yield from steps.rounded(a["rounded"], b["rounded"], at)
            if alike:
                yield from self._values(a, b, at, LATER if number else 0.0)
            if "losses" in a and "losses" in b:
                yield from steps.rules(a["rule"], b["rule"], number, at)
                if named:
                    yield from steps.constants(a, b, at)
                if named and number:  # some averages begin with a copy of the first weights
                    yield from steps.averages(a, b, at)
            read = f"while results are read{at}"
            yield from steps.outside((a.get("outside", {}), a), (b.get("outside", {}), b), read)
        if min(counts):
            one, two = ((rank.get("converted", {}), rank["steps"][0]) for rank in (self.a, self.b))
            yield from steps.outside(one, two, f"while batches are converted{self.where}")
        if min(counts) > 1:
            yield from steps.repeated(self.a["steps"], self.b["steps"], self.where)
        if named and "changed" in self.a and "changed" in self.b:
            yield from steps.changed(self.a, self.b, self.where)

    def _weights(self) -> Iterator[Fact]:
        """Norms of all parameters that the arms share, which must be nearly all that there are."""
        a, b = self.a["weights"], self.b["weights"]
        common = [name for name in a if name in b]
        if len(common) < 0.9 * max(len(a), len(b), 1):
            yield unknown(f"initial weights{self.where}", VALUES)
            return
        worst = max(common, key=lambda name: abs(a[name] - b[name]) / max(a[name], b[name], 1e-6))
        yield Fact(f"norm of the initial {worst}{self.where}", a[worst], b[worst], 1e-4, VALUES)

    def _values(self, a: Json, b: Json, at: str, least: float) -> Iterator[Fact]:
        """``least``: the tolerance of norms is no smaller."""
        tolerance, of_norms = self.tolerances
        yield from steps.layers(a, b, at, tolerance)
        if "losses" in a and "losses" in b:
            yield from steps.losses(a["losses"], b["losses"], at, tolerance)
            yield from steps.norms(a, b, at, max(of_norms, least))
        if "detections" in a and "detections" in b:
            counts = a.get("suppressed"), b.get("suppressed")
            if all(counts):  # by the operator that most codebases share
                yield Fact(f"boxes offered to suppression{at}", *counts, 0.02, VALUES | POSTPROCESS)
            yield from steps.detections(a["detections"], b["detections"], at, self.single)
