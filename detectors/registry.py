"""Models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

from torch import nn

from detectors.fcos import fcos_fpn
from detectors.rcnn import rcnn_fpn
from detectors.retinanet import retinanet_fpn
from detectors.solov2 import solov2_fpn

#: Name → function that builds the model. A new model is a new line here.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "faster_rcnn_r50_fpn": partial(rcnn_fpn, depth=50, masks=False),
    "faster_rcnn_r101_fpn": partial(rcnn_fpn, depth=101, masks=False),
    "mask_rcnn_r50_fpn": partial(rcnn_fpn, depth=50, masks=True),
    "mask_rcnn_r101_fpn": partial(rcnn_fpn, depth=101, masks=True),
    "retinanet_r50_fpn": partial(retinanet_fpn, depth=50),
    "fcos_r50_fpn": partial(fcos_fpn, depth=50),
    "solov2_r50_fpn": partial(solov2_fpn, depth=50, light=False),
    "solov2_light_r50_fpn": partial(solov2_fpn, depth=50, light=True),
}


def list_models() -> list[str]:
    return sorted(MODELS)


def build(name: str, *, num_classes: int = 80, **settings: object) -> nn.Module:
    """A model with random weights, in training mode. ``settings`` are those of its building function in ``MODELS``.

    Raises KeyError, with the nearest names, for a name that there is not.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3) or list_models()
        raise KeyError(f"unknown model {name!r}; did you mean {', '.join(near)}?")
    return MODELS[name](num_classes=num_classes, **settings)
