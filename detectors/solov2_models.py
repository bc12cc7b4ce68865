"""SOLOv2 put together: the settings of mmdetection's and PaddleDetection's configs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from detectors.backbones.resnet import ResNet
from detectors.drop_block import DropBlock
from detectors.necks.fpn import FPN
from detectors.parameter_rules import Rule
from detectors.solov2 import GridHead, MaskFeatures, SOLOv2
from detectors.solov2_targets import Level

GRIDS = (40, 36, 24, 16, 12)
MIN_AREAS = (8, 8, 16, 32, 32)
#: Sizes of the objects of each level: mmdetection's solov2_r50_fpn_1x_coco, solov2-light_r50_fpn_ms-3x_coco and
#: solov2-light_r50-dcn_fpn_ms-3x_coco.
SIZES = ((1, 96), (48, 192), (96, 384), (192, 768), (384, 2048))
LIGHT_SIZES = ((1, 56), (28, 112), (56, 224), (112, 448), (224, 896))
DEFORMABLE_SIZES = ((1, 64), (32, 128), (64, 256), (128, 512), (256, 2048))

NORM_WITHOUT_DECAY = (Rule(r"\.norm\.", weight_decay=0.0),)
#: Of PaddleDetection's solov2_light_r50_vd_fpn_dcn_512_3x. Its backbone, distilled, learns slowly, but for the offsets.
SLOW_BACKBONE = (
    Rule(r"^backbone\.stages\.\d\..*\.offset\."),
    *(
        Rule(rf"^backbone\.stages\.{stage}\..*{part}", lr=lr, weight_decay=decay)
        for stage, lr in enumerate((0.05, 0.05, 0.1, 0.15))
        for part, decay in ((r"\.norm\.", 0.0), (r"\.conv\.", 1.0))
    ),
    *NORM_WITHOUT_DECAY,
    Rule(r"^head\.\w+_convs\.2\.(conv|offset)\.bias$", lr=2.0, weight_decay=0.0),
)


def solov2_fpn(
    *,
    backbone: Callable[..., nn.Module],
    light: bool,
    num_classes: int,
    deformable: bool = False,
    drop_block: DropBlock | None = None,
    conventions: str = "mmdet",
    parameter_rules: Sequence[Rule] = (),
    frozen_stages: int = 1,
    frozen_bn: bool = True,
    score_threshold: float = 0.05,
    max_detections: int = 100,
) -> SOLOv2:
    """SOLOv2 on a backbone with FPN, with random weights.

    Arguments and errors are those of ``registry.build``. ``light``: half as wide and as deep a head, for images of a
    short side around 450. ``deformable``: whether the light head has one convolution more, which is. ``drop_block``:
    follows the head's convolutions while training. ``conventions``: "mmdet" or "paddledet", whose mask loss is another
    mean, and whose deformable head has a bias. ``parameter_rules``: see ``parameter_groups``. None of "paddledet" is
    PaddleDetection's: normalisation does not decay. Raises ValueError for a deformable head that is not light.
    """
    if conventions not in ("mmdet", "paddledet"):
        raise ValueError(f"unknown conventions {conventions!r} of SOLOv2; there are mmdet, paddledet")
    if deformable and not light:
        raise ValueError("deformable=True is defined for the light head")
    body = backbone(frozen_stages=frozen_stages, frozen_bn=frozen_bn)
    neck = FPN(body.out_channels)
    sizes = DEFORMABLE_SIZES if deformable else LIGHT_SIZES if light else SIZES
    channels, convs, kernel_channels = (256, 3 if deformable else 2, 128) if light else (512, 4, 256)
    features = MaskFeatures(neck.out_channels, 128, kernel_channels)
    head = GridHead(
        neck.out_channels,
        channels,
        num_classes,
        kernel_channels,
        convs=convs,
        grids=GRIDS,
        deformable=deformable,
        deformable_bias=conventions == "paddledet",
        drop_block=drop_block,
    )
    return SOLOv2(
        body,
        neck,
        features,
        head,
        [Level(*values) for values in zip(GRIDS, sizes, MIN_AREAS, strict=True)],
        score_threshold=score_threshold,
        max_detections=max_detections,
        drawn_only=conventions == "paddledet",
        parameter_rules=parameter_rules or (NORM_WITHOUT_DECAY if conventions == "paddledet" else ()),
    )


def solov2_light_vd_dcn(
    *, num_classes: int, frozen_stages: int = 0, frozen_bn: bool = False, **settings: Any
) -> SOLOv2:
    """PaddleDetection's solov2_light_r50_vd_fpn_dcn_512, where nothing is frozen.

    Of 2020-12-03, configs/solov2/solov2_light_r50_vd_fpn_dcn_512_3x.yml.

    Arguments and errors are those of ``registry.build``.
    """
    return solov2_fpn(
        backbone=partial(ResNet, 50, vd=True, dcn_stages=(3, 4, 5)),
        light=True,
        deformable=True,
        num_classes=num_classes,
        drop_block=DropBlock(size=3, keep=0.9),
        conventions="paddledet",
        parameter_rules=SLOW_BACKBONE,
        frozen_stages=frozen_stages,
        frozen_bn=frozen_bn,
        **settings,
    )
