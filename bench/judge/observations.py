"""What is kept of an audit: the worker's facts in canonical names, by part of the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Json = Mapping[str, Any]
#: Values by the name of a parameter.
Named = Sequence[tuple[str, Any]]

#: Layers whose outputs are raw predictions: nothing comes after them but the loss or post-processing.
FINAL = frozenset({"classes", "deltas", "objectness", "centreness", "logits", "kernels", "output"})


def _is_final(name: str) -> bool:
    """Whether the outputs of the layer with this weight are raw predictions."""
    return bool(FINAL & set(name.split("."))) and not name.startswith("neck.")


def group_of(name: str) -> str:
    """The part of the model that a parameter belongs to: a stage of the backbone, a layer of a head."""
    parts = name.split(".")
    return ".".join(parts[: 3 if parts[0] == "backbone" else 2])


def summary(facts: Json, names: Mapping[str, str] | None) -> dict[str, Any]:
    """The facts of one rank (`bench.worker.audit.audit`) as a record keeps them.

    Args:
        facts: The worker's answer.
        names: The codebase's name of a parameter → the canonical one; None where no mapping exists.

    Returns:
        The same structure, with ``named`` (``canonical`` or ``own``), norms by `group_of`, and of layers only those
        that end the network where that is known.
    """
    if not facts:
        return {}

    def canonical(values: Json) -> Named:
        """Several tensors of a codebase may be one of ours (FCOS's factors, a scalar per level)."""
        return [(names.get(own, own) if names else own, value) for own, value in values.items()]

    def of_step(step: Json) -> dict[str, Any]:
        kept = dict(step)
        layers = canonical(step["layers"])
        kept["layers"] = {name: one for name, one in layers if not names or _is_final(name)}
        for kind in ("gradient", "update", "momentum", "statistics"):
            if kind in step:
                kept[kind] = _norms(canonical(step[kind]))
        for kind in ("average", "average of statistics", "decay", "rate"):
            if kind in step:
                kept[kind] = _constants(canonical(step[kind]))
        return kept

    if "step" in facts:
        facts = {**facts, "step": of_step(facts["step"])}
    if "steps" not in facts:
        return dict(_short(facts))
    weights = _norms(canonical(facts["weights"]), str)
    named: dict[str, Any] = {"named": "canonical" if names else "own", "weights": weights}
    if "changed" in facts:
        found = canonical(facts["changed"])
        named.update(changed=_sums(found), tensors=len({name for name, _ in found}))
    if "way" in facts:
        named["way"] = _norms(canonical(facts["way"]))
    return dict(_short({**facts, **named, "steps": [of_step(step) for step in facts["steps"]]}))


def _short(value: Any) -> Any:
    """The same with seven digits of every number: more than any tolerance needs."""
    if isinstance(value, Mapping):
        return {name: _short(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_short(one) for one in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _norms(norms: Named, group: Callable[[str], str] = group_of) -> dict[str, float]:
    squares: dict[str, float] = {}
    for name, value in norms:
        squares[group(name)] = squares.get(group(name), 0.0) + value * value
    return {name: square**0.5 for name, square in squares.items()}


def _sums(sizes: Named) -> dict[str, int]:
    sums: dict[str, int] = {}
    for name, size in sizes:
        sums[group_of(name)] = sums.get(group_of(name), 0) + size
    return sums


#: What one float32 of size 1 may lose when it is rounded, and some more.
ROUNDING = 1e-7
#: Of a constant: where rounding adds no more, a single tensor shows it.
CLEAR = 2e-3


def _constants(products: Named) -> dict[str, list[float]]:
    """A constant of each part of the model, by least squares: a weight decay, the weight of new values in an average.

    Args:
        products: By parameter, the inner product of what was made with what it is made of, the square of the latter,
            and the square of what may have lost digits.

    Returns:
        By part, the constant of all values, what rounding may add to it, and the least and the greatest one of single
        tensors, of those that show it. Nothing where it cannot be known.
    """
    parts: dict[str, list[Any]] = {}
    for name, one in products:
        parts.setdefault(group_of(name), []).append(one)
    found = {}
    for part, rows in parts.items():
        made, size, square = np.array(rows, float).T
        if not np.isfinite([made, size, square]).all() or not size.sum() > 0:
            continue
        whole, blur = made.sum() / size.sum(), ROUNDING * (square.sum() / size.sum()) ** 0.5
        clear = (size > 0) & (ROUNDING * np.sqrt(square) <= CLEAR * abs(whole) * np.sqrt(size))
        single = made[clear] / size[clear]
        found[part] = [
            float(one) for one in (whole, blur, *([single.min(), single.max()] if clear.any() else []))
        ]
    return found


def work_of(facts: Json) -> dict[str, Any]:
    """What the first audited step says of the work of a step, by the names of `bench.worker.api.Description`.

    Args:
        facts: The audit of one rank; empty for a codebase that cannot be observed.
    """
    if not facts:
        return {}
    step = facts["steps"][0]
    forward, backward = (sum(step["flops"][direction].values()) for direction in ("forward", "backward"))
    if "losses" not in step:
        return {"forward_flops": forward}
    terms = [name for name in step["losses"] if name != "loss"]
    return {"forward_flops": forward, "training_flops": forward + backward, "loss_terms": terms}
