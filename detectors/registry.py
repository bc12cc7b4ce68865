"""Models by name: a method on a backbone, `mask_rcnn_r50_fpn`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from functools import partial

from torch import nn

from detectors.backbones.hrnet import HRNet
from detectors.backbones.resnet import ResNet
from detectors.backbones.timm_features import TimmFeatures
from detectors.c4 import rcnn_c4, rpn_c4
from detectors.cascade import cascade_rcnn_fpn
from detectors.fcos import fcos_fpn
from detectors.htc import htc_fpn
from detectors.mask_scoring import MaskScoringHead
from detectors.necks.hrfpn import HRFPN
from detectors.rcnn import rcnn_fpn, rpn_fpn
from detectors.retinanet import retinanet_fpn
from detectors.solov2_models import solov2_fpn, solov2_light_vd_dcn
from detectors.ssd import SSD300, SSD512, ssd_vgg16

Builder = Callable[..., nn.Module]

#: Name → function of ``frozen_stages`` and ``frozen_bn`` that makes the backbone: maps of strides 4 to 32, and their
#: widths as ``out_channels``. A new backbone is a new line here, and is there for every method.
BACKBONES: dict[str, Builder] = {
    "r50": partial(ResNet, 50),
    "r50_caffe": partial(ResNet, 50, style="caffe"),
    "r101": partial(ResNet, 101),
    "r101_caffe": partial(ResNet, 101, style="caffe"),
    "x101_32x4d": partial(ResNet, 101, groups=32, width_per_group=4),
    "x101_64x4d": partial(ResNet, 101, groups=64, width_per_group=4),
}

#: Name → function that builds the model on a ``backbone`` with a feature pyramid.
FPN_METHODS: dict[str, Builder] = {
    "rpn": rpn_fpn,
    "fast_rcnn": partial(rcnn_fpn, masks=False, proposals=False, conventions="mmdet"),
    "faster_rcnn": partial(rcnn_fpn, masks=False),
    "mask_rcnn": partial(rcnn_fpn, masks=True),
    "ms_rcnn": partial(rcnn_fpn, masks=True, mask_head_of=MaskScoringHead),
    "cascade_rcnn": partial(cascade_rcnn_fpn, masks=False),
    "cascade_mask_rcnn": partial(cascade_rcnn_fpn, masks=True),
    "htc": partial(htc_fpn, semantic_classes=183),
    "htc_without_semantic": htc_fpn,
    "retinanet": retinanet_fpn,
    "fcos": fcos_fpn,
    "solov2": partial(solov2_fpn, light=False),
    "solov2_light": partial(solov2_fpn, light=True),
}

#: Backbones with a feature pyramid of their own, for the methods on regions.
HRNETS: dict[str, Builder] = {f"hrnetv2p_w{width}": partial(HRNet, width) for width in (18, 32, 48)}
HRNET_METHODS = {
    name: partial(FPN_METHODS[name], neck=HRFPN)
    for name in (
        "faster_rcnn",
        "mask_rcnn",
        "cascade_rcnn",
        "cascade_mask_rcnn",
        "htc",
        "htc_without_semantic",
    )
}

#: Name → function that builds the model on a ``backbone``, a ResNet, whose last stage becomes the head of regions.
C4_METHODS: dict[str, Builder] = {
    "rpn": rpn_c4,
    "fast_rcnn": partial(rcnn_c4, masks=False, proposals=False),
    "faster_rcnn": partial(rcnn_c4, masks=False),
    "mask_rcnn": partial(rcnn_c4, masks=True),
}
C4_BACKBONES = {name: backbone for name, backbone in BACKBONES.items() if re.match(r"r\d+(_caffe)?$", name)}

#: Models that are one of a kind.
SINGLE: dict[str, Builder] = {
    "solov2_light_r50_dcn_fpn": partial(
        solov2_fpn, backbone=partial(ResNet, 50, dcn_stages=(3, 4, 5)), light=True, deformable=True
    ),
    "solov2_light_r50_vd_fpn_dcn_512": solov2_light_vd_dcn,
    "ssd300_vgg16": partial(ssd_vgg16, layout=SSD300),
    "ssd512_vgg16": partial(ssd_vgg16, layout=SSD512, conventions="mmdet"),
}


def combine(methods: dict[str, Builder], backbones: dict[str, Builder], ending: str) -> dict[str, Builder]:
    """Every method on every backbone, by `<method>_<backbone><ending>`."""
    return {
        f"{method}_{name}{ending}": partial(build_model, backbone=backbone)
        for method, build_model in methods.items()
        for name, backbone in backbones.items()
    }


#: Name → function that builds the model.
MODELS: dict[str, Builder] = {
    **combine(FPN_METHODS, BACKBONES, "_fpn"),
    **combine(HRNET_METHODS, HRNETS, ""),
    **combine(C4_METHODS, C4_BACKBONES, "_c4"),
    **SINGLE,
}


def list_models() -> list[str]:
    """The names that ``build`` takes."""
    return sorted(MODELS)


def build(name: str, *, num_classes: int = 80, **settings: object) -> nn.Module:
    """A model with random weights, in training mode.

    `<method>_timm_<name>_fpn`, of a method of ``FPN_METHODS``, is on a backbone of timm: `fcos_timm_resnet18_fpn`.

    Args:
        name: one of ``list_models``, or on a backbone of timm.
        num_classes: without the background.
        settings: of the model's building function. Those of nearly all are
            frozen_stages: stages of the backbone that do not learn; 1 is the stem and the first;
            frozen_bn: whether the backbone's normalisation is constant;
            score_threshold: lowest score of a detection;
            max_detections: of an image;
            conventions: "torchvision", "mmdet" or "paddledet", the codebase whose model of this name it equals.
            Functions on several backbones also have ``backbone``, which makes it from the first two, and ``neck``,
            which makes the pyramid from the backbone's widths.

    Returns:
        The model.

    Raises:
        KeyError: with the nearest names, for a name that there is not.
        TypeError, ValueError: for a setting that the model does not have, or a value of it.
    """
    model = builder(name)(num_classes=num_classes, **settings)
    model.built_as = (name, {"num_classes": num_classes, **settings})  # what weights of others are found by
    return model


def builder(name: str) -> Builder:
    """The function that builds a model. Raises KeyError, see ``build``."""
    method, on_timm, backbone = name.removesuffix("_fpn").partition("_timm_")
    if on_timm and name.endswith("_fpn") and method in FPN_METHODS:
        return partial(FPN_METHODS[method], backbone=partial(TimmFeatures, backbone))
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=3) or list_models()
        raise KeyError(f"unknown model {name!r}; did you mean {', '.join(near)}?")
    return MODELS[name]
