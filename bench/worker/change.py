"""What a training step made of weights, momentum and average, by parameter."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np

from bench.worker.api import Observer
from bench.worker.sink import Facts, norm

#: One minus the squared cosine between weights and momentum, below which they lie along each other.
ALONG = 0.05

Arrays = Dict[str, np.ndarray]


class Change:
    """Norms by parameter of what a step made: gradient, momentum, update; and how far the average followed."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._weights, self._average = (
            kept({}, observer.tensors("weights")),
            kept({}, observer.tensors("average")),
        )
        self._gradients: Arrays = {}
        self._momentum = kept({}, observer.tensors("momentum"))
        self._scratch = np.empty(max((value.size for value in self._weights.values()), default=0), np.float32)
        self.first = {name: norm(value) for name, value in self._weights.items()}
        self.changed: Dict[str, int] = {}

    def after_backward(self) -> None:
        self._gradients = kept(self._gradients, self._observer.tensors("gradients"))

    def after_step(self) -> Facts:
        weights, momentum = self._observer.tensors("weights"), self._observer.tensors("momentum")
        kinds = ("gradient", "update", "momentum", "rate", "average", "statistics", "average of statistics")
        facts: Facts = {"moved": 0, **{kind: {} for kind in kinds}}
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
            facts["moved"] += int(update.size) * bool(update.any())
            facts["gradient"][name] = norm(self._gradients[name])
            facts["update"][name] = norm(update)
            if name in momentum:
                facts["momentum"][name] = norm(momentum[name])
                products = parts[name] = self._products(name, momentum[name], update)
                facts["rate"][name] = [-products[1], products[2], products[5]]
                for kind in ("all", "vectors") if value.ndim < 2 else ("all",):
                    sums[kind] += products
        average = self._observer.tensors("average")
        for name, value in average.items():
            kind = "average" if name in self._gradients else "average of statistics"
            if name in self._gradients or name in facts["statistics"]:
                old = self._average[name]
                distance = self._difference(weights[name], old).copy()
                step = self._difference(value, old)
                facts[kind][name] = [_dot(step, distance), _dot(distance, distance), _dot(old, old)]
        rules = {kind: self._rule(one) for kind, one in sums.items()}
        facts["rule"] = {**rules["all"], "vectors": rules["vectors"]} if facts["momentum"] else {}
        factor = rules["all"].get("momentum", 0.0)
        facts["decay"] = {name: [one[4] - factor * one[8], one[5], one[2]] for name, one in parts.items()}
        self._weights, self._momentum = kept(self._weights, weights), kept(self._momentum, momentum)
        self._average = kept(self._average, average)
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


def kept(old: Arrays, new: Arrays) -> Arrays:
    """Copies of ``new``, in the memory of ``old`` where that fits."""
    for name, value in new.items():
        if name in old and old[name].shape == value.shape:
            np.copyto(old[name], value)
        else:
            old[name] = np.array(value, np.float32, order="C")
    for name in set(old) - set(new):
        del old[name]
    return old


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.dot(a.ravel(), b.ravel()))
