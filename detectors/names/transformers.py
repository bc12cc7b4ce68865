"""The canonical names of RT-DETR are those of transformers, which makes its weights: `detectors` has no such model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

MODELS = frozenset(f"rtdetr_r{depth}vd" for depth in (18, 34, 50, 101))


def supports(model: str) -> bool:
    """The models of ``MODELS``."""
    return model in MODELS


def source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:  # noqa: ARG001
    """Changes of the configuration, which may change layers."""
    return {"config": options["config"]} if "config" in options else {}


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    """The weights as they are; the row of padding is 0, as the authors have it (transformers starts it at random)."""
    name = "model.denoising_class_embed.weight"
    rows = np.array(state[name])
    rows[-1] = 0
    return {**state, name: rows}
