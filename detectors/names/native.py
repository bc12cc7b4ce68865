"""The canonical names are those of `detectors`: nothing to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def supports(model: str) -> bool:  # noqa: ARG001
    """Every model."""
    return True


def source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides of which layers the model is made; the other models have the same ones with all conventions."""
    layers_differ = model.startswith(("retinanet", "fcos", "solov2_light_r50_dcn"))
    if model.startswith("retinanet") and options.get("conventions") == "paddledet":
        return {}  # its pyramid has torchvision's layers
    return {"conventions": options["conventions"]} if layers_differ and "conventions" in options else {}


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    """Our weights as they are."""
    return dict(state)
