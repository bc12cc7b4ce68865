"""What is done otherwise on a GPU, computed on the CPU: the same values."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adapters.torch_device import process_memory
from adapters.torch_state import average_of
from detectors import boxes, masks
from detectors.boxes import match_boxes
from detectors.coco import Collate, Example
from detectors.config import Pixels, Resize
from detectors.pyramid import Pyramid, by_level, roi_align
from detectors.structures import GroundTruth, Target
from tests.helpers.models import random_target, small, target
from tests.helpers.pretend_cuda import Pretended, pretend_cuda, to_pretended


def some_boxes(count: int, side: float = 60) -> torch.Tensor:
    corners = torch.rand(count, 2) * side
    return torch.cat([corners, corners + torch.rand(count, 2) * side / 2], dim=1)


@pytest.mark.parametrize("paste", [masks.paste_masks, masks.paste_masks_on_grid])
def test_masks_are_pasted_at_once_as_one_by_one(paste: object, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    found, where = torch.rand(9, 28, 28), some_boxes(9) - 10  # some reach beyond the image
    where[0] = torch.tensor([5.0, 5, 5, 5])
    expected = paste(found, where, (50, 70))
    monkeypatch.setattr(masks, "MOST_PIXELS", 4 * 50 * 70)
    with pretend_cuda() as device:
        pasted = paste(Pretended(found), Pretended(where), (50, 70))
    assert not device.waits
    different = (pasted.value != expected).sum().item()
    assert expected.sum() > 500
    assert different <= 2  # where rounding decides about a probability of 0.5


@pytest.mark.parametrize("each", [False, True])
def test_images_matched_in_parts_are_matched_alike(each: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    truth = GroundTruth(
        torch.stack([some_boxes(7) for _ in range(5)]),
        torch.zeros(5, 7, dtype=torch.int64),
        torch.rand(5, 7) > 0.3,
    )
    anchors = torch.stack([some_boxes(40) for _ in range(5)]) if each else some_boxes(40)
    rules = {"positive": 0.3, "negative": 0.2, "low_quality": True, "counted": torch.rand(5, 40) > 0.2}
    expected = match_boxes(truth, anchors, **rules)
    monkeypatch.setattr(boxes, "MOST_OVERLAPS", 2 * 7 * 40)
    found = match_boxes(truth, anchors, **rules)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert set(found[1].unique().tolist()) == {-1, 0, 1}


@pytest.mark.parametrize(("samples", "aligned"), [(0, True), (0, False), (2, False)])
def test_regions_are_pooled_level_by_level_alike(samples: int, aligned: bool) -> None:
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 64 // 2**level, 64 // 2**level, requires_grad=True) for level in range(4)]
    where = some_boxes(40, 150) * 1.5
    image, weight = torch.arange(40) % 2, torch.randn(40, 3, 7, 7)
    found = []
    for pool in (roi_align, by_level):
        pooled = pool(Pyramid(maps), where, image, size=7, samples=samples, aligned=aligned)
        found.append([pooled, *torch.autograd.grad((pooled * weight).sum(), maps)])
    for ours, kernel in zip(*found, strict=True):
        torch.testing.assert_close(kernel, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mask_rcnn_r50_fpn", "cascade_mask_rcnn_r50_fpn"])
def test_losses_are_those_of_a_cpu(name: str) -> None:
    """All proposals suppressed at once, and more regions asked for than there are."""
    model = small(name)
    for head in getattr(model, "box_heads", None) or [model.box_head]:
        head.sampler.size = 64
    images, sizes = torch.randn(2, 3, 64, 64), torch.tensor([[64, 64], [50, 60]])
    targets = [target((3, 4, 40, 44), (30, 20, 60, 62)), target((5, 30, 50, 50))]
    torch.manual_seed(0)
    expected = model.losses(images, sizes, targets)
    torch.manual_seed(0)
    with pretend_cuda():
        to_pretended(model)
        moved = [Target(*(None if one is None else Pretended(one) for one in each)) for each in targets]
        losses = model.losses(Pretended(images), Pretended(sizes), moved)
    assert {key: value.value.item() for key, value in losses.items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}, rel=1e-4
    )


def test_what_would_wait_is_counted() -> None:
    with pretend_cuda() as device:
        values = Pretended(torch.tensor([1.0, 0.0, 2.0]))
        values.max().item()
        values.nonzero()
        values[values > 0]
        values.tolist()
        bool(values.any())
        values[Pretended(torch.tensor([0, 1]))]
    assert device.waits == {
        "aten::_local_scalar_dense": 2,
        "aten::nonzero": 1,
        "index by mask": 1,
        "copy to the host": 1,
    }


def test_bytes_become_the_same_pixels_on_the_device() -> None:
    random = np.random.default_rng(0)

    def masks(count: int, size: tuple[int, int]) -> Target:
        drawn = torch.from_numpy(random.integers(0, 2, (count, *size), dtype=np.uint8))
        return Target(torch.zeros(count, 4), torch.zeros(count, dtype=torch.int64), drawn)

    examples = [
        Example(random.integers(0, 256, (*size, 3), dtype=np.uint8), masks(number, size), size, number)
        for number, size in enumerate([(33, 50), (40, 20)])
    ]
    for pixels in (Pixels(), Pixels(mean=(10, 20, 30), std=(1, 1, 1), order="bgr")):
        expected = Collate(pixels, Resize())(examples)
        found = Collate(pixels, Resize(), as_bytes=True)(examples)
        assert found.images.dtype == torch.uint8
        assert found.targets[1].masks.shape == (1, 64, 8)
        found = found.to(torch.device("cpu"))
        assert torch.equal(found.images, expected.images)
        assert found.images.stride() == expected.images.stride()
        assert found.scale is None
        for made, wanted in zip(found.targets, expected.targets, strict=True):
            assert torch.equal(made.masks, wanted.masks)
            assert made.masks.is_contiguous()


def test_cells_of_a_loader_give_the_losses_without_a_wait() -> None:
    model = small("solov2_light_r50_fpn")
    examples = [
        Example(np.full((60, 64, 3), 9, np.uint8), random_target(seed, (60, 64)), (60, 64), seed)
        for seed in (1, 2)
    ]
    plain = Collate(Pixels(), Resize(), as_bytes=True)(examples).to(torch.device("cpu"))
    prepared = Collate(Pixels(), Resize(), as_bytes=True, prepare=model.prepare)(examples)
    expected = model.losses(plain.images, plain.sizes(), plain.targets)
    with pretend_cuda() as device:
        batch = prepared.to(torch.device("cuda"))
        losses = to_pretended(model).losses(batch.images, batch.sizes(), batch.targets)
        assert device.waits.total() == 0
        bare = [one._replace(pairs=None) for one in batch.targets]
        model.losses(batch.images, batch.sizes(), bare)
        assert device.waits.total() == 1
    assert sum(one.pairs.shape[1] for one in batch.targets) > 5
    assert {key: value.value.item() for key, value in losses.items()} == pytest.approx(
        {key: value.item() for key, value in expected.items()}, rel=1e-4
    )


def test_memory_of_a_process_is_what_the_driver_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    running = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=700), SimpleNamespace(pid=1, usedGpuMemory=50)]
    told = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda device: running[: 2 - device],
    )
    monkeypatch.setitem(sys.modules, "pynvml", told)
    assert process_memory() == {"device": 1400}
    running[0].usedGpuMemory = None  # where a driver does not say it
    assert process_memory() == {}


def test_average_of_weights_waits_for_no_device() -> None:
    model = torch.nn.Linear(2, 2)
    with pretend_cuda() as device:
        average = average_of(to_pretended(model), 0.9)
        average.update_parameters(model)
        model.weight.value.add_(1)
        average.update_parameters(model)
        assert not device.waits
    kept = average.module.weight.value
    torch.testing.assert_close(kept, model.weight.value - min(0.9, 2 / 11))
