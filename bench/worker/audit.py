"""What an arm does in a few steps, observed by the harness's own hooks, not by what the codebase says of itself.

The steps run from the weights that the arm was given, on batches that nothing before has seen. The last step has the
images of the first one again, so that work which is skipped or remembered shows. Its annotations are others, so that
targets which are remembered show too. A framework's part (`Observer`) hands tensors over; what is made of them is the
same for every codebase, and small enough for a record.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import numpy as np

from bench.worker.api import Adapter, Batch, Observer
from bench.worker.probe import finite_losses, found_in, phases_of
from bench.worker.training import compose, images_of

STEPS = 3
#: Numbers in the projection of an image or of a layer's output.
SIGNS = 8

#: The phase of what no step is timed with: converting batches, reading losses and detections.
OUTSIDE = "outside"

#: One minus the squared cosine between weights and momentum, below which they lie along each other.
ALONG = 0.05

Facts = Dict[str, Any]


def audited_batches(batches: Sequence[Batch], steps: int = STEPS) -> List[Batch]:
    """The batches of the audited steps.

    Args:
        batches: The rank's shared batches; the weights may be calibrated on the first one.
        steps: Number of steps, at least 2.

    Returns:
        Batches other than the first one, then mirrored ones, and at the end the first of these with fewer objects.
    """
    unseen = list(batches[1:steps])
    for batch in batches[: steps - 1 - len(unseen)]:
        draw = [(int(image), True) for image in batch.image_ids]
        unseen.append(compose(draw, images_of([batch]), list(batch.images.shape[2:])))
    chosen = [unseen[step % len(unseen)] for step in range(steps - 1)]
    return [*chosen, without_an_object(chosen[0])]


def shaken(batch: Batch) -> Batch:
    """The batch with every value of its images moved by two units in its last place, up or down: so little that all
    which it changes is how the arm rounds from there on."""
    signs = np.random.RandomState(0).randint(0, 2, batch.images.shape).astype(np.float32) * 2 - 1
    return replace(batch, images=batch.images * (1 + signs * np.float32(2.0**-22)))


def without_an_object(batch: Batch) -> Batch:
    """The batch without the first object of each image that has several."""
    starts = [int(len(labels) > 1) for labels in batch.labels]

    def rest(values: Sequence[np.ndarray]) -> Tuple[np.ndarray, ...]:
        return tuple(one[start:] for one, start in zip(values, starts))

    return replace(batch, boxes=rest(batch.boxes), labels=rest(batch.labels), masks=rest(batch.masks))


# -- numbers that stand for tensors ---------------------------------------------------------------------------------


class Projection:
    """Sums over positions with random signs, always the same ones: they move when a position does."""

    def __init__(self) -> None:
        self._signs: Dict[Any, np.ndarray] = {}

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Any shape to float64 [SIGNS]."""
        if values.shape not in self._signs:
            draw = np.random.RandomState(values.size % 2**31)
            self._signs[values.shape] = draw.randint(0, 2, (SIGNS, values.size), dtype=np.int8)
        flat = np.ascontiguousarray(values, np.float32).ravel()
        total = flat.sum(dtype=np.float64)
        return np.array(
            [2 * flat[row.view(np.bool_)].sum(dtype=np.float64) - total for row in self._signs[values.shape]]
        )


def norm(values: np.ndarray) -> float:
    flat = np.ascontiguousarray(values, np.float32).ravel()
    return float(np.sqrt(np.dot(flat, flat)))


class Sink:
    """Takes what an `Observer` sees in one step."""

    def __init__(self, project: Projection) -> None:
        self._project = project
        self.flops: Dict[str, Dict[str, int]] = {"forward": {}, "backward": {}}
        self.images: List[Facts] = []
        self.batches: List[int] = []
        self.rounded: Dict[str, int] = {}
        self.settings: Dict[str, List[Any]] = {}
        self.operators: Dict[str, int] = {}
        self.normalised: Dict[str, int] = {}
        self.random_values = 0
        self.suppressed: List[int] = []
        self.layers: Dict[str, Facts] = {}

    def operation(self, direction: str, types: str, flops: int) -> None:
        """A convolution or matrix product. direction: forward or backward. types: of its operands, as ``float32``."""
        counted = self.flops[direction]
        counted[types] = counted.get(types, 0) + int(flops)

    def setting(self, settings: Facts) -> None:
        """Settings of the framework at an operation: every value of each is kept."""
        for name, value in settings.items():
            seen = self.settings.setdefault(name, [])
            if value not in seen:
                seen.append(value)

    def first_input(self, images: np.ndarray) -> None:
        """images: [B, 3, H, W], what enters the first convolution in one call of it."""
        self.batches.append(len(images))
        for image in images:
            self.images.append({"shape": list(image.shape), "projection": _plain(self._project(image)),
                                "norm": norm(image)})  # fmt: skip

    def rounding(self, types: str, values: int) -> None:
        """Values that were converted to numbers of fewer than 32 bits. types: as ``bfloat16``."""
        self.rounded[types] = self.rounded.get(types, 0) + int(values)

    def operator(self, phase: str) -> None:
        """One operator of a phase ran, whichever it was."""
        self.operators[phase] = self.operators.get(phase, 0) + 1

    def normalisation(self, mode: str, values: int) -> None:
        """Values that a norm layer gave. mode: ``batch`` by statistics of the batch, ``fixed``, ``group``."""
        self.normalised[mode] = self.normalised.get(mode, 0) + int(values)

    def layer(self, name: str, output: np.ndarray) -> None:
        """The output of the layer with this weight: [B, C, H, W], or rows [N, C], of which the largest norm is kept."""
        facts = self._layer(name)
        facts["square"] += norm(output) ** 2
        facts["sum"] += float(output.sum(dtype=np.float64))
        facts["rows"] += output.size // output.shape[1]
        if output.ndim == 4:
            facts["projection"] += self._project(output.sum(axis=(0, 1), dtype=np.float64))
        elif output.ndim == 2 and output.size:
            facts["largest"] = max(facts["largest"], norm(output[np.square(output).sum(axis=1).argmax()]))

    def gradient(self, name: str, gradient: np.ndarray) -> None:
        """The gradient of that output: values that are 0 belong to no sample of the loss."""
        facts = self._layer(name)
        facts["gradients"] += int(np.count_nonzero(gradient))
        if gradient.ndim == 2 or gradient.shape[3] == 1:  # rows of a product
            facts["gradient_rows"] += int(np.count_nonzero(gradient.any(axis=1)))
        facts["gradient_square"] += norm(gradient) ** 2

    def _layer(self, name: str) -> Facts:
        empty = {"square": 0.0, "sum": 0.0, "rows": 0, "projection": np.zeros(SIGNS), "largest": 0.0,
                 "gradients": 0, "gradient_rows": 0, "gradient_square": 0.0}  # fmt: skip
        return self.layers.setdefault(name, empty)

    def facts(self) -> Facts:
        layers = {
            name: {
                "norm": float(np.sqrt(one["square"])),
                "sum": one["sum"],
                "rows": one["rows"],
                "largest": one["largest"],
                "projection": _plain(one["projection"]),
                "gradients": one["gradients"],
                "gradient_rows": one["gradient_rows"],
                "gradient_norm": float(np.sqrt(one["gradient_square"])),
            }
            for name, one in self.layers.items()
        }
        return {
            "flops": self.flops,
            "images": self.images,
            "batches": self.batches,
            "rounded": self.rounded,
            "settings": self.settings,
            "operators": self.operators,
            "normalised": self.normalised,
            "random_values": self.random_values,
            "suppressed": sum(self.suppressed),
            "layers": layers,
        }


def _plain(values: np.ndarray) -> List[float]:
    return [float(value) for value in values]


# -- training ---------------------------------------------------------------------------------


Arrays = Dict[str, np.ndarray]


class Change:
    """Norms by parameter of what a step made: gradient, momentum, update; and how far the average followed."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._weights, self._average = (
            _kept({}, observer.tensors("weights")),
            _kept({}, observer.tensors("average")),
        )
        self._gradients: Arrays = {}
        self._momentum = _kept({}, observer.tensors("momentum"))
        self._scratch = np.empty(max((value.size for value in self._weights.values()), default=0), np.float32)
        self.first = {name: norm(value) for name, value in self._weights.items()}
        self.changed: Dict[str, int] = {}

    def after_backward(self) -> None:
        self._gradients = _kept(self._gradients, self._observer.tensors("gradients"))

    def after_step(self) -> Facts:
        weights, momentum = self._observer.tensors("weights"), self._observer.tensors("momentum")
        kinds = ("gradient", "update", "momentum", "average", "statistics", "average of statistics")
        facts: Facts = {kind: {} for kind in kinds}
        sums: Dict[str, Any] = {"all": np.zeros(9), "vectors": np.zeros(9)}
        parts: Arrays = {}
        for name, value in weights.items():
            update = self._difference(value, self._weights[name])
            if update.any():
                self.changed[name] = int(update.size)
                if name not in self._gradients:  # what a norm layer keeps of its batches
                    facts["statistics"][name] = norm(update)
            if name not in self._gradients:
                continue
            facts["gradient"][name] = norm(self._gradients[name])
            facts["update"][name] = norm(update)
            if name in momentum:
                facts["momentum"][name] = norm(momentum[name])
                products = parts[name] = self._products(name, momentum[name], update)
                for kind in ("all", "vectors") if value.ndim < 2 else ("all",):
                    sums[kind] += products
        average = self._observer.tensors("average")
        for name, value in average.items():
            kind = "average" if name in self._gradients else "average of statistics"
            if name in self._gradients or name in facts["statistics"]:
                old = self._average[name]
                distance = self._difference(weights[name], old).copy()
                step = self._difference(value, old)
                facts[kind][name] = [_dot(step, distance), _dot(distance, distance)]
        rules = {kind: self._rule(one) for kind, one in sums.items()}
        facts["rule"] = {**rules["all"], "vectors": rules["vectors"]} if facts["momentum"] else {}
        kept = rules["all"].get("momentum", 0.0)
        facts["decay"] = {name: [one[4] - kept * one[8], one[5], one[2]] for name, one in parts.items()}
        self._weights, self._momentum = _kept(self._weights, weights), _kept(self._momentum, momentum)
        self._average = _kept(self._average, average)
        return facts

    def _difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """In memory that the next call takes again."""
        into = self._scratch[: a.size]
        np.subtract(a.ravel(), b.ravel(), out=into)
        return into

    def _products(self, name: str, momentum: np.ndarray, update: np.ndarray) -> np.ndarray:
        """Inner products of one parameter for `_rule`."""
        weights, old = self._weights[name], self._momentum.get(name)
        shrunk = _dot(update, update), _dot(update, momentum), _dot(momentum, momentum)
        rest = self._difference(momentum, self._gradients[name])  # decay · w + momentum · v
        by_old = (0.0, 0.0) if old is None else (_dot(rest, old), _dot(old, old))
        cross = 0.0 if old is None else _dot(weights, old)
        own = _dot(rest, rest), _dot(rest, weights), _dot(weights, weights)
        return np.array([*shrunk, *own, *by_old, cross])

    def _rule(self, sums: np.ndarray) -> Facts:
        """The optimizer's constants, as its tensors show them: v ← momentum · v + g + decay · w, w ← w - lr · v.

        Least squares over all parameters, or over biases and scales. ``blur``: what rounding may add to the decay.
        ``unexplained``: the shares of update and of v that the rule does not make, such as of gradients that were
        exchanged after the backward pass. Empty where a number is not finite. Without decay and momentum where
        weights lie along v, as biases do that began with zeros: they cannot be told apart.
        """
        if not np.isfinite(sums).all():
            return {}
        update_update, update_v, v_v, rest_rest, rest_w, w_w, rest_old, old_old, w_old = sums
        v_v, w_w = max(v_v, 1e-30), max(w_w, 1e-30)
        rule = {"lr": -update_v / v_v, "blur": 1e-7 * float(np.sqrt(v_v / w_w)), "weight_decay": rest_w / w_w}
        made = rule["weight_decay"] * rest_w
        if old_old:
            matrix, right = np.array([[w_w, w_old], [w_old, old_old]]), np.array([rest_w, rest_old])
            decay, momentum = (float(one) for one in np.linalg.lstsq(matrix, right, rcond=None)[0])
            made, apart = decay * rest_w + momentum * rest_old, 1 - w_old**2 / (w_w * old_old)
            rule.update(weight_decay=decay, momentum=momentum, blur=rule["blur"] / max(apart, 1e-6))
            if apart < ALONG:
                del rule["weight_decay"], rule["momentum"]
        left = 1 - update_v**2 / (v_v * max(update_update, 1e-30)), (rest_rest - made) / v_v
        return {**rule, "unexplained": [float(np.sqrt(max(0.0, one))) for one in left]}


def _kept(old: Arrays, new: Arrays) -> Arrays:
    """Copies of ``new``, in the memory of ``old`` where that fits."""
    for name, value in new.items():
        if name in old and old[name].shape == value.shape:
            np.copyto(old[name], value)
        else:
            old[name] = np.array(value, np.float32)
    for name in set(old) - set(new):
        del old[name]
    return old


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a.ravel(), b.ravel()))


def _train(adapter: Adapter, observer: Observer, source: Iterator[Any], count: int) -> Facts:
    change, project = Change(observer), Projection()
    steps = []
    for _ in range(count):
        sink = Sink(project)
        value: Any = None
        for name, call in phases_of(adapter, source):
            with observer.watching(name, sink):
                value = call(value)
            if name == "backward":
                change.after_backward()
        losses, outside = _beside(observer, finite_losses, adapter, value)
        steps.append({"losses": losses, "outside": outside, **sink.facts(), **change.after_step()})
    return {"steps": steps, "weights": change.first, "changed": change.changed}


# -- inference ---------------------------------------------------------------------------------


def _infer(adapter: Adapter, observer: Observer, source: Iterator[Any], count: int) -> Facts:
    project = Projection()
    weights = {name: norm(value) for name, value in observer.tensors("weights").items()}
    steps = []
    for _ in range(count):
        sink = Sink(project)
        value: Any = None
        for name, call in phases_of(adapter, source):
            with observer.watching(name, sink):
                value = call(value)
        detections, outside = _beside(observer, adapter.detections, *value)
        found = [found_in(one) for one in detections]
        steps.append({"detections": found, "outside": outside, **sink.facts()})
    return {"steps": steps, "weights": weights}


# -- both ---------------------------------------------------------------------------------


def _beside(observer: Observer, call: Callable[..., Any], *arguments: Any) -> Tuple[Any, Facts]:
    """What a call gives that no step is timed with, and the work that is done there."""
    sink = Sink(Projection())
    with observer.watching(OUTSIDE, sink):
        value = call(*arguments)
    flops = sum(sum(kind.values()) for kind in sink.flops.values())
    return value, {
        "flops": flops,
        "operators": sink.operators.get(OUTSIDE, 0),
        "suppressed": sum(sink.suppressed),
    }


@contextlib.contextmanager
def _observer(adapter: Adapter) -> Iterator[Any]:
    observer = adapter.observer()
    if observer is None:
        yield None
        return
    with observer.reproducible():
        yield observer


def _walk(adapter: Adapter, observer: Observer, batches: Sequence[Batch]) -> Facts:
    """Steps with these batches, each converted anew. ``converted``: the work of that."""
    walk = _train if adapter.job.training else _infer
    data, outside = _beside(observer, lambda: [adapter.convert(one) for one in batches])
    return {**walk(adapter, observer, iter(data), len(batches)), "converted": outside}


def audit(adapter: Adapter, batches: Sequence[Batch], shake: bool = False) -> Facts:
    """Take the audited steps with a prepared adapter, which is not to be timed afterwards.

    Args:
        adapter: One arm.
        batches: Its shared batches.
        shake: Take `shaken` ones, to see what rounding does to the facts of this arm.

    Returns:
        ``steps``: facts of each (see `Sink`, `Change`; ``losses`` or ``detections``); ``weights``: norms by name before
        the first step; ``changed``: sizes of the tensors that the steps changed; ``after``: settings of the framework
        after the last one; ``randomness``: what was made reproducible. Empty for a codebase that cannot be observed.
    """
    with _observer(adapter) as observer:
        if observer is None:
            return {}
        chosen = audited_batches(batches)
        facts = _walk(adapter, observer, [shaken(one) for one in chosen] if shake else chosen)
        return {**facts, "after": observer.settings(), "randomness": observer.randomness}


def keep(adapter: Adapter, state: str) -> None:
    """Write what a training arm is before its first step, for `look`; nothing where a codebase cannot."""
    with contextlib.suppress(NotImplementedError):
        adapter.save_state(state)
        with open(state, "rb+") as file:
            os.fsync(file.fileno())  # so that nothing is written while steps are timed


def look(adapter: Adapter, batches: Sequence[Batch], state: str, source: Iterator[Any]) -> Facts:
    """Take steps after the timed ones, watched: is the work still what the audit saw?

    Args:
        adapter: One arm.
        batches: Its shared batches.
        state: What `keep` wrote. It is removed.
        source: Where the timed steps took their batches from.

    Returns:
        ``step``: facts of one more of these steps, from where they came to. Then ``weights``, ``steps`` and
        ``changed`` as `audit` gives them: of the last two audited batches, from the state that was kept; in inference,
        which changes no weights, of the first one. ``way``: norms by name of what all steps since then did to
        the weights. ``after``: settings of the framework. Empty for a codebase that cannot be observed.
    """
    with _observer(adapter) as observer:
        if observer is None:
            return {}
        first, *others = audited_batches(batches)
        walk = _train if adapter.job.training else _infer
        seen = {"step": walk(adapter, observer, source, 1)["steps"][0], "after": observer.settings()}
        if not adapter.job.training:
            seen.update(_walk(adapter, observer, [first]))
        elif os.path.exists(state):
            end = _kept({}, observer.tensors("weights"))
            adapter.load_state(state)
            os.remove(state)
            start = observer.tensors("weights")
            seen["way"] = {name: norm(value - start[name]) for name, value in end.items()}
            seen.update(_walk(adapter, observer, others))
        return seen
