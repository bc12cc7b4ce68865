"""The canonical names are those of `detectors`: nothing to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench.transplant import mmdet

MODELS = frozenset(
    {
        *(f"{method}_{backbone}_fpn" for method in mmdet.RCNN_METHODS for backbone in ("r50", "r101")),
        *(f"{method}_r50_c4" for method in ("rpn", "faster_rcnn", "mask_rcnn")),
        "retinanet_r50_fpn",
        "fcos_r50_fpn",
        "solov2_r50_fpn",
        "solov2_r101_fpn",
        "solov2_light_r50_fpn",
        "solov2_light_r50_dcn_fpn",
        "solov2_light_r50_vd_fpn_dcn_512",
        "ssd300_vgg16",
        "ssd512_vgg16",
    }
)


def source_options(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """What decides of which layers the model is made; the other models have the same ones with all conventions."""
    layers_differ = "conventions" in options and model.startswith(("retinanet", "fcos"))
    return {"conventions": options["conventions"]} if layers_differ else {}


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    return dict(state)
