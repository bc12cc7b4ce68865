"""Mixed precision on CUDA, without a device: CUDA's autocast has another list of operators than the CPU's.

And how often a training step makes the host wait, by the operations that would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from detectors import Target
from detectors.dense import focal_loss
from detectors.htc import HTC
from detectors.matrix_nms import matrix_nms
from detectors.solov2 import SOLOv2
from detectors.solov2_masks import Prediction, mask_losses
from detectors.solov2_targets import Assignment
from detectors.ssd import ssd_anchors
from tests.helpers.models import MODELS, SIZE, given, small, target, with_padding
from tests.helpers.pretend_cuda import Pretended, backward, cuda_autocast, pretend_cuda, to_pretended

SCALE = 65_536  # of the losses, as a GradScaler starts with
HALF = [torch.float16, torch.bfloat16]
#: Those with conventions of their own, and SSD, of one size of image.
MMDETS = ["retinanet_r50_fpn", "fcos_r50_fpn", "ssd300_vgg16", "faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn"]
CASES = [
    *((name, {}) for name in [*MODELS, "ssd300_vgg16", "solov2_light_r50_dcn_fpn"]),
    *((name, {"conventions": "mmdet"}) for name in MMDETS),
]
#: How often a training step of two images makes the host wait for the device; detectors/README.md says for what.
WAITS = {
    **dict.fromkeys(("rpn", "fast_rcnn", "retinanet", "fcos", "ssd300", "solov2", "solov2_light"), 0),
    **dict.fromkeys(("faster_rcnn", "cascade_rcnn"), 1),
    **dict.fromkeys(("mask_rcnn", "ms_rcnn", "cascade_mask_rcnn", "htc", "htc_without_semantic"), 2),
}
#: In both types; the others nightly. float16 has the smaller range.
KINDS = ["mask_rcnn_r50_fpn", "retinanet_r50_fpn", "solov2_light_r50_dcn_fpn", "ssd300_vgg16"]
MORE = {
    torch.float16: ["fcos_r50_fpn", "htc_r50_fpn", "ms_rcnn_r50_fpn", "mask_rcnn_r50_c4"],
    torch.bfloat16: [],
}
IN_HALF = [
    pytest.param(
        *case,
        dtype,
        marks=[] if case[0] in KINDS + MORE[dtype] and not case[1] else [pytest.mark.nightly],
        id="-".join([case[0], *case[1].values(), str(dtype)]),
    )
    for case in CASES
    for dtype in HALF
]


@pytest.fixture(autouse=True)
def anchors() -> Iterator[None]:
    """SSD's anchors are kept, and those of a device that is not there are of no use to another test."""
    ssd_anchors.cache_clear()
    yield
    ssd_anchors.cache_clear()


def batch(model: nn.Module, side: int) -> tuple[Tensor, Tensor, list[Target]]:
    objects = [target((3, 4, 40, 44), (30, 20, 60, 62)), target((5, 30, 50, 60))]
    targets = [with_padding(one, (side, side)) for one in objects]
    if isinstance(model, HTC):
        targets = [one._replace(semantic=torch.zeros(side, side, dtype=torch.int64)) for one in targets]
    if isinstance(model, SOLOv2):
        targets = model.prepare(targets, (side, side))
    return torch.randn(2, 3, side, side), torch.tensor([[side, side]] * 2), targets


def on_device(targets: Sequence[Target]) -> list[Target]:
    return [Target(*(None if one is None else Pretended(one) for one in target)) for target in targets]


@pytest.mark.parametrize(("name", "settings", "dtype"), IN_HALF)
def test_every_model_trains_and_detects_in_half_precision(
    name: str, settings: dict[str, str], dtype: torch.dtype
) -> None:
    model = small(name, **settings)
    side = 300 if name.startswith("ssd") else SIZE
    images, sizes, targets = batch(model, side)
    with pretend_cuda() as device:
        to_pretended(model)
        images, sizes, targets = Pretended(images), Pretended(sizes), on_device(targets)
        proposals = {key: [Pretended(one) for one in value] for key, value in given(model, 2).items()}
        with cuda_autocast(dtype):
            losses = model.train().losses(images, sizes, targets, **proposals)
        backward(sum(losses.values()))
        waits = dict(device.waits)
        with torch.no_grad(), cuda_autocast(dtype):
            raw = model.eval().network(images, sizes, **proposals)
            found = model.postprocess(raw, [(side, side)] * 2, [(side, side)] * 2)
    assert sum(waits.values()) <= WAITS[re.split(r"_(?:r50|vgg16)_?", name)[0]], waits
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert all(loss.value.isfinite() for loss in losses.values())
    gradients = [one.grad.value for one in model.parameters() if one.grad is not None]
    assert gradients
    assert all(one.isfinite().all() for one in gradients)
    for detections in found:
        assert detections.boxes.dtype == detections.scores.dtype == torch.float32
        assert detections.boxes.value.isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("conventions", ["torchvision", "mmdet"])
@pytest.mark.parametrize("name", ["retinanet_r50_fpn", "fcos_r50_fpn", "ssd300_vgg16"])
def test_shapes_and_types_fit_for_fake_cuda_tensors(name: str, conventions: str, dtype: torch.dtype) -> None:
    """What the kernels of a GPU check of types, as torch's own fake tensors know it."""
    side = 300 if name.startswith("ssd") else SIZE
    with FakeTensorMode(), cuda_autocast(dtype):
        with torch.device("cuda"):
            model = small(name, conventions=conventions)
        images, sizes, targets = batch(model, side)
        targets = [Target(*(None if one is None else one.to("cuda") for one in target)) for target in targets]
        losses = model.losses(images.to("cuda"), sizes.to("cuda"), targets)
    assert {(loss.dtype, loss.device.type) for loss in losses.values()} == {(torch.float32, "cuda")}


def test_dice_counts_more_pixels_than_half_precision_can() -> None:
    """A mask of 320 × 320 pixels at stride 4 has more than 65,504."""
    features = torch.full((1, 1, 320, 320), 8.0)
    kernels = torch.ones(1, 1, 1, 1)
    full = Target(
        torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), torch.ones(1, 1280, 1280, dtype=torch.uint8)
    )
    pairs = Assignment(*(torch.zeros(1, dtype=torch.int64) for _ in range(3)))
    with pretend_cuda(), cuda_autocast(torch.float16):
        predicted = Prediction([], [Pretended(kernels)], Pretended(features))
        pairs = Assignment(*(Pretended(one) for one in pairs))
        losses, _ = mask_losses(predicted, [pairs], on_device([full]))
    assert abs(losses.value.item()) < 1e-3


def test_overlaps_of_large_masks_are_exact() -> None:
    masks = torch.ones(2, 70_000)
    masks[1, 69_000:] = 0
    scores, labels = torch.tensor([0.9, 0.8]), torch.zeros(2, dtype=torch.int64)
    expected = matrix_nms(masks, labels, scores)
    with pretend_cuda(), cuda_autocast(torch.float16):
        found = matrix_nms(*(Pretended(one) for one in (masks.half(), labels, scores)))
    torch.testing.assert_close(found.value, expected)


def test_rare_classes_keep_their_slope() -> None:
    """In half precision the slope of the focal loss is 0 where a probability is below 0.002."""
    logits, labels = torch.full((1, 4, 3), -7.0), torch.full((1, 4), 3)
    with pretend_cuda(), cuda_autocast(torch.float16):
        given = Pretended(logits.half()).requires_grad_()
        loss = focal_loss([given * 1], Pretended(labels), Pretended(torch.ones(1, 4)))
        backward(loss * SCALE)
    exact = logits.requires_grad_()
    focal_loss([exact], labels, torch.ones(1, 4)).backward()
    assert (given.grad.value > 0).all()
    torch.testing.assert_close(given.grad.value.float() / SCALE, exact.grad, rtol=0.01, atol=0)
