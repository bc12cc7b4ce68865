"""One set of weights for every codebase: canonical parameter names to a codebase's own.

Canonical are the names and shapes of the project's `detectors` package: class rows 0..K-1 with the background last,
box offsets and masks for the K classes only. Each codebase has a module here with

    MODELS: frozenset[str]                                   the models it can be given
    convert(model: str, state: Mapping[str, ndarray]) -> dict[str, ndarray]

and, where the weights it converts are not those of the canonical model as it is built by default,

    source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]     what `native` has to be built with
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from bench.errors import BenchError

Weights = Mapping[str, np.ndarray]
#: The first of the numbers that stand for parameters in `canonical_names`; a mapping adds zeros and ones of its own.
_MARK = 100


def _module(codebase: str) -> ModuleType | None:
    name = f"{__name__}.{codebase}"
    if not codebase.isidentifier() or importlib.util.find_spec(name) is None:
        return None
    return importlib.import_module(name)


def supports(codebase: str, model: str) -> bool:
    """Whether canonical weights of the model can be given to the codebase."""
    module = _module(codebase)
    return module is not None and model in module.MODELS


def source_options(codebase: str, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with which the canonical weights are made that an arm of the codebase, with its own options, starts from.

    Models of one name can differ in their layers from codebase to codebase (RetinaNet's P6).
    """
    of_codebase = getattr(_module(codebase), "source_options", None)
    found: dict[str, Any] = of_codebase(model, options) if of_codebase else {}
    return found


def to_codebase(codebase: str, model: str, state: Weights) -> dict[str, np.ndarray]:
    """Canonical weights in the codebase's own names and shapes. Raises BenchError when it takes none."""
    module = _module(codebase)
    if module is None or model not in module.MODELS:
        raise BenchError(
            f"weights of {model} have no mapping to {codebase}",
            hint="use `weights: random` in the workload, or add one in bench/transplant",
        )
    converted: dict[str, np.ndarray] = module.convert(model, state)
    return converted


def canonical_names(codebase: str, model: str, state: Weights) -> dict[str, str]:
    """What each parameter of the codebase is called in the canonical model.

    Every canonical value is replaced by a number of its own, and found again in what the mapping makes of it.

    Args:
        state: Canonical weights of the model; only their shapes matter.

    Returns:
        The codebase's name → the canonical one. Values that the mapping adds have none.
    """
    names = list(state)
    marked = {
        name: np.broadcast_to(np.float32(place + 1), np.shape(state[name]))
        for place, name in enumerate(names)
    }
    found = {}
    for own, value in to_codebase(codebase, model, marked).items():
        place = int(np.max(value)) if np.size(value) else 0
        if place >= _MARK:
            found[own] = names[place - _MARK]
    return found
