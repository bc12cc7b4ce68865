"""The canonical names are those of `detectors`: nothing to do."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

MODELS = frozenset(
    {
        "faster_rcnn_r50_fpn",
        "mask_rcnn_r50_fpn",
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


def convert(model: str, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:  # noqa: ARG001
    return dict(state)
