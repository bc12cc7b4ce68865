"""Images and objects that no data set should hold and every one does: every model takes them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detectors import Target
from tests.helpers.models import MODELS, SIZE, given, losses_of, small, target

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


#: Of layers that others have, too.
ALIKE = ["cascade_rcnn_r50_fpn", "fast_rcnn_r50_fpn", "fast_rcnn_r50_c4", "faster_rcnn_r50_c4", "rpn_r50_c4"]
ALIKE += ["htc_without_semantic_r50_fpn", "cascade_mask_rcnn_r50_fpn", "mask_rcnn_r50_c4", "rpn_r50_fpn"]


def nightly(names: list[str]) -> list[Any]:
    return [pytest.param(one, marks=[pytest.mark.nightly] if one in ALIKE else []) for one in names]


@pytest.fixture(params=nightly(MODELS), scope="module")
def model(request: pytest.FixtureRequest) -> nn.Module:
    return small(request.param)


def step(model: nn.Module, targets: list[Target], size: tuple[int, int] = (SIZE, SIZE)) -> None:
    """One training step; raises AssertionError for a loss or a gradient that is not finite."""
    losses = losses_of(model, torch.randn(len(targets), 3, *size), targets)
    model.zero_grad()
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.isfinite(), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("batch", list(BATCHES))
def test_odd_objects_give_finite_losses_and_gradients(model: nn.Module, batch: str) -> None:
    step(model, BATCHES[batch])


def test_images_of_odd_sizes_train_and_detect(model: nn.Module) -> None:
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
