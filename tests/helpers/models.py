"""Models that are small, and what they are trained on in tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from detectors import Target, build, list_models
from detectors.backbones import resnet, vgg
from detectors.backbones.resnet import ResNet
from detectors.box_head import BoxHead
from detectors.htc import HTC
from detectors.mask_head import MaskHead
from detectors.mask_scoring import MaskScoringHead
from detectors.necks.fpn import FPN
from detectors.necks.p6p7 import P3P7
from detectors.rcnn import RCNN, RegionDetector
from detectors.sampling import BalancedSampler
from detectors.solov2 import GridHead, MaskFeatures, SOLOv2
from detectors.solov2_models import LIGHT_SIZES
from detectors.solov2_targets import Level

SIZE = 64


CLASSES = 3


#: Every method, on one backbone: what is odd here does not reach it. SSD, of one size of image, is in test_ssd.py; the
#: other SOLOv2s have more layers of the same kind.
MODELS = [
    name for name in list_models() if name.endswith(("_r50_fpn", "_r50_c4")) and name != "solov2_r50_fpn"
]


def target(*boxes: tuple[float, float, float, float], size: tuple[int, int] = (SIZE, SIZE)) -> Target:
    """Objects of classes 0, 1, 2, 0, … with masks that fill their boxes as far as these are in the image."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = 1
    labels = torch.arange(len(boxes)) % CLASSES
    return Target(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, masks)


def small(name: str, num_classes: int = CLASSES, **settings: Any) -> nn.Module:
    """A model of few and narrow layers that looks at few proposals, so that its steps are quick.

    ``settings``: as of ``build``.
    """
    torch.manual_seed(0)
    with few_layers(), narrow_heads():
        model = (
            small_solov2(num_classes, deformable="dcn" in name)
            if name.startswith("solov2")
            else build(name, num_classes=num_classes, **settings)
        )
    if isinstance(model, RegionDetector) and model.rpn is not None:
        model.rpn.pre_nms = model.rpn.post_nms = (32, 32)
    for module in model.modules():
        if hasattr(module, "sampler") and hasattr(module, "classes"):
            module.sampler = BalancedSampler(8, 0.25)
        if hasattr(module, "max_detections"):
            module.max_detections = 8  # each has a mask to compute
    return model


@contextmanager
def few_layers() -> Iterator[None]:
    """ResNet-50 has one block per stage and VGG-16 a quarter of its channels: of every layer there is one."""
    stages = ((16, 16), (32, 32), (64, 64, 64), (128, 128, 128), (128, 128, 128))
    with patch.dict(resnet.BLOCKS, {50: (1, 1, 1, 1)}), patch.object(vgg, "STAGES", stages):
        yield


@contextmanager
def narrow_heads() -> Iterator[None]:
    """Pyramids, and heads of regions, of 64 channels."""
    with ExitStack() as changed:
        for made, widths in (
            (BoxHead, {"hidden": 64}),
            (MaskHead, {"hidden": 64}),
            (MaskScoringHead, {"fc": 64}),
        ):
            changed.enter_context(patch.dict(made.__init__.__kwdefaults__, widths))
        for made in (FPN, P3P7):
            changed.enter_context(patch.object(made.__init__, "__defaults__", (64,)))
        yield


def small_solov2(num_classes: int, *, deformable: bool = False) -> SOLOv2:
    """SOLOv2-light with grids of fewer cells, for objects of small images."""
    body = ResNet(50, dcn_stages=(5,) if deformable else ())
    neck = FPN(body.out_channels)
    grids = (8, 6, 5, 4, 3)
    levels = [Level(cells, sizes, 2) for cells, sizes in zip(grids, LIGHT_SIZES, strict=True)]
    return SOLOv2(
        body,
        neck,
        MaskFeatures(64, 64, 64),
        GridHead(64, 64, num_classes, 64, convs=2, grids=grids, deformable=deformable),
        levels,
    )


def given(model: nn.Module, images: int) -> dict[str, list[torch.Tensor]]:
    """Proposals for a model that makes none."""
    if isinstance(model, RCNN) and model.rpn is None:
        return {"proposals": [torch.tensor([[5.0, 5, 40, 40], [0, 0, SIZE, SIZE], [3, 3, 3, 3]])] * images}
    return {}


def losses_of(model: nn.Module, images: torch.Tensor, targets: list[Target]) -> dict[str, torch.Tensor]:
    """Of targets that know nothing of the images' padding, in training mode."""
    sizes = torch.tensor([images.shape[2:]] * len(targets))
    targets = [with_padding(one, tuple(images.shape[2:])) for one in targets]
    if isinstance(model, HTC):
        targets = [one._replace(semantic=torch.full(images.shape[2:], 255)) for one in targets]
    return model.train().losses(images, sizes, targets, **given(model, len(targets)))


def with_padding(one: Target, size: tuple[int, int]) -> Target:
    masks = torch.zeros(len(one.masks), *size, dtype=torch.uint8)
    height, width = (min(pair) for pair in zip(one.masks.shape[1:], size, strict=True))
    masks[:, :height, :width] = one.masks[:, :height, :width]
    return one._replace(masks=masks)


def random_target(seed: int, size: tuple[int, int], objects: int = 12) -> Target:
    """Ellipses and parts of them of all extents, overlapping and at the border; one of them without a pixel."""
    random = np.random.default_rng(seed)
    height, width = size
    y, x = np.mgrid[:height, :width]
    boxes, masks = [], []
    for number in range(objects):
        w, h = (
            random.uniform(2, width) ** random.uniform(0.4, 1),
            random.uniform(2, height) ** random.uniform(0.4, 1),
        )
        x1, y1 = random.uniform(-0.2, 1) * width, random.uniform(-0.2, 1) * height
        inside = ((x - x1 - w / 2) / w) ** 2 + ((y - y1 - h / 2) / h) ** 2 < 0.25
        inside &= random.random() < 0.5 or (x + y) % 7 > 2  # some have holes
        box = np.clip([x1, y1, x1 + w, y1 + h], 0, [width, height] * 2)
        boxes.append(box)
        masks.append(inside & (number != objects // 2))
    return Target(
        torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        torch.from_numpy(random.integers(0, CLASSES, objects)),
        torch.from_numpy(np.array(masks, dtype=np.uint8).reshape(-1, height, width)),
    )
