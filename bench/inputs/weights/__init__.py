"""One set of weights for every codebase: canonical parameter names to a codebase's own.

Canonical are the names and shapes of the project's `detectors` package, which has the maps, in `detectors/names`:
plain Python and numpy, loaded by path, since importing `detectors` would import torch. Of what it has not, they are
those of transformers (RT-DETR) and of YOLOX's own repository.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.recipe import models
from bench.shipped import ROOT

Weights = Mapping[str, np.ndarray]
#: The first of the numbers that stand for parameters in `canonical_names`; a mapping adds zeros and ones of its own.
_MARK = 100
#: What the folder of the maps is called as a package here.
PACKAGE = f"{__name__}.maps"


def _module(codebase: str) -> ModuleType | None:
    folder = ROOT / "detectors" / "names"
    if not codebase.isidentifier() or not (folder / f"{codebase}.py").is_file():
        return None
    package = sys.modules.setdefault(PACKAGE, ModuleType(PACKAGE))
    package.__path__ = [str(folder)]
    return importlib.import_module(f"{PACKAGE}.{codebase}")


def supports(codebase: str, model: str) -> bool:
    """Whether canonical weights of the model can be given to the codebase."""
    module = _module(codebase)
    return module is not None and model in models.MODELS and bool(module.supports(model))


def source_of(model: str) -> str:
    """The codebase whose seeded initialisation is transplanted into all others; canonical names are its names."""
    others = (name for name in ("transformers", "yolox") if supports(name, model))
    return next(others, "native")


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
    if module is None or not supports(codebase, model):
        raise BenchError(
            f"weights of {model} have no mapping to {codebase}",
            hint="use `weights: random` in the workload, or add one in detectors/names",
        )
    converted: dict[str, np.ndarray] = module.convert(model, state)
    return converted


def canonical_names(codebase: str, model: str, state: Weights) -> dict[str, str]:
    """What each parameter of the codebase is called in the canonical model.

    Every canonical value is replaced by a number of its own, and found again in what the mapping makes of it.

    Args:
        state: Canonical weights of the model; only their shapes matter.

    Returns:
        The codebase's name → the canonical one; of values that the mapping joins, of the part that they share. Values
        that it adds have none.
    """
    names = list(state)
    marked = {
        name: np.broadcast_to(np.float32(place), np.shape(state[name]))
        for place, name in enumerate(names, _MARK)
    }
    found = {}
    for own, value in to_codebase(codebase, model, marked).items():
        joined = [names[int(place) - _MARK] for place in np.unique(np.asarray(value)) if place >= _MARK]
        if len(joined) == 1:
            found[own] = joined[0]
        elif len(parts := {name.rsplit(".", 2)[0] for name in joined}) == 1:
            found[own] = f"{parts.pop()}.{own.rpartition('.')[2]}"
    return found
