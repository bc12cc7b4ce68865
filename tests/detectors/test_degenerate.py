"""Images and objects that no data set should hold and every one does: every model takes them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detectors import Target, build, list_models
from detectors.backbones.resnet import ResNet
from detectors.htc import HTC
from detectors.necks.fpn import FPN
from detectors.rcnn import RCNN, RegionDetector
from detectors.sampling import BalancedSampler
from detectors.solov2 import LIGHT_SIZES, GridHead, Level, MaskFeatures, SOLOv2

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


MANY = target(*[(i % 50, i // 11, i % 50 + 12, i // 11 + 15) for i in range(500)])
BATCHES = {
    "no objects": [target()],
    "no objects, one pixel, no extent, outside": [
        target(),
        target((20, 30, 21, 31), (40, 40, 40, 40)),
        target((60, 60, 200, 200), (100, 100, 150, 150)),
    ],
    "500 objects": [MANY],
}


def small(name: str, num_classes: int = CLASSES) -> nn.Module:
    """A model that looks at few proposals, so that its steps are quick."""
    torch.manual_seed(0)
    model = small_solov2(num_classes) if name.startswith("solov2") else build(name, num_classes=num_classes)
    if isinstance(model, RegionDetector) and model.rpn is not None:
        model.rpn.pre_nms = model.rpn.post_nms = (32, 32)
    for module in model.modules():
        if hasattr(module, "sampler") and hasattr(module, "classes"):
            module.sampler = BalancedSampler(8, 0.25)
    return model


def small_solov2(num_classes: int) -> SOLOv2:
    """SOLOv2-light with grids of fewer cells, for objects of small images."""
    body = ResNet(50)
    neck = FPN(body.out_channels)
    grids = (8, 6, 5, 4, 3)
    levels = [Level(cells, sizes, 2) for cells, sizes in zip(grids, LIGHT_SIZES, strict=True)]
    return SOLOv2(
        body,
        neck,
        MaskFeatures(256, 128, 128),
        GridHead(256, 256, num_classes, 128, convs=2, grids=grids),
        levels,
    )


@pytest.fixture(params=MODELS, scope="module")
def model(request: pytest.FixtureRequest) -> nn.Module:
    return small(request.param)


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


def step(model: nn.Module, targets: list[Target], size: tuple[int, int] = (SIZE, SIZE)) -> None:
    """One training step; raises AssertionError for a loss or a gradient that is not finite."""
    losses = losses_of(model, torch.randn(len(targets), 3, *size), targets)
    model.zero_grad()
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.isfinite(), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


def with_padding(one: Target, size: tuple[int, int]) -> Target:
    masks = torch.zeros(len(one.masks), *size, dtype=torch.uint8)
    height, width = (min(pair) for pair in zip(one.masks.shape[1:], size, strict=True))
    masks[:, :height, :width] = one.masks[:, :height, :width]
    return one._replace(masks=masks)


@pytest.mark.parametrize("batch", list(BATCHES))
def test_odd_objects_give_finite_losses_and_gradients(model: nn.Module, batch: str) -> None:
    step(model, BATCHES[batch])


def test_images_that_are_no_multiple_of_32_train_and_are_detected_in(model: nn.Module) -> None:
    """61 × 45 pixels within 64 × 64, and a padding that is no multiple of 64."""
    images = torch.randn(2, 3, SIZE, 96)
    sizes = torch.tensor([[61, 45], [SIZE, 90]])
    with torch.no_grad():
        raw = model.eval().network(images, sizes, **given(model, 2))
        found = model.postprocess(raw, sizes.tolist(), [(122, 91), (30, 44)])
    for detections, (height, width) in zip(found, [(122, 91), (30, 44)], strict=True):
        assert detections.boxes.isfinite().all()
        assert detections.scores.isfinite().all()
        if not hasattr(model, "mask_features"):  # boxes of SOLOv2 are those of its masks
            limit = torch.tensor([width, height, width, height]) + 1e-3
            assert ((detections.boxes >= 0) & (detections.boxes <= limit)).all()
        if detections.masks is not None:
            assert detections.masks.shape[1:] == (height, width)
    step(model, [target((3, 4, 40, 44))], (SIZE, 96))


@pytest.mark.parametrize(
    "name", ["mask_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "fcos_r50_fpn", "solov2_light_r50_fpn"]
)
def test_one_class_is_enough(name: str) -> None:
    model = small(name, num_classes=1)
    one = target((10, 10, 50, 60))
    step(model, [one._replace(labels=torch.zeros(1, dtype=torch.int64))])
