"""Faster and Mask R-CNN against torchvision 0.29 (torchvision/models/detection), given the same weights and images."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from bench.inputs.weights import to_codebase
from detectors import Target, build, calibrate
from detectors.pyramid import Pyramid, roi_align
from detectors.sampling import BalancedSampler

CLASSES = 5
MAX_DETECTIONS = 30
HEIGHT, WIDTH = 128, 160  # 160 is no multiple of the coarsest stride
MODELS = {
    "faster_rcnn_r50_fpn": FasterRCNN,
    "mask_rcnn_r50_fpn": MaskRCNN,
}


def scene(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[Target]]:
    """Two images of noise and rectangles; the second does not fill its padding."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, HEIGHT, WIDTH, generator=generator) * 0.3
    sizes = torch.tensor([[HEIGHT, WIDTH], [HEIGHT - 14, WIDTH - 30]])
    targets = []
    for index, count in enumerate((3, 2)):
        corner = torch.rand(count, 2, generator=generator) * 60
        extent = 20 + torch.rand(count, 2, generator=generator) * 45
        boxes = torch.cat([corner, corner + extent], dim=1)
        labels = torch.randint(CLASSES, (count,), generator=generator)
        masks = torch.zeros(count, HEIGHT, WIDTH, dtype=torch.uint8)
        for mask, box, label in zip(masks, boxes.round().int().tolist(), labels.tolist(), strict=True):
            x1, y1, x2, y2 = box
            mask[y1:y2, x1 : (x1 + x2) // 2 + 5] = 1
            images[index, :, y1:y2, x1:x2] += 1.0 + 0.4 * label
        targets.append(Target(boxes, labels, masks))
    images[1, :, sizes[1, 0] :] = 0
    images[1, :, :, sizes[1, 1] :] = 0
    return images, sizes, targets


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """Our model and torchvision's with the same weights, ours calibrated and its scores spread so that it detects."""
    torch.manual_seed(3)
    images, sizes, _ = scene()
    ours = build(request.param, num_classes=CLASSES, max_detections=MAX_DETECTIONS)
    calibrate(ours, images, sizes)
    with torch.no_grad():
        ours.box_head.deltas.weight.mul_(10)  # so that boxes of classes differ
    # Frozen normalisation and stages, which ``fasterrcnn_resnet50_fpn`` has only together with pretrained weights.
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    theirs = MODELS[request.param](backbone, num_classes=CLASSES + 1, box_detections_per_img=MAX_DETECTIONS)
    state = {name: value.numpy() for name, value in ours.state_dict().items()}
    state = to_codebase("torchvision", request.param, state)
    theirs.load_state_dict(
        {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}
    )
    return ours, theirs


def their_input(images: torch.Tensor, sizes: torch.Tensor) -> ImageList:
    return ImageList(images, [(int(h), int(w)) for h, w in sizes])


def test_roi_align_over_all_levels_equals_torchvisions_level_by_level() -> None:
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(2, 8, 64 // 2**i, 96 // 2**i, generator=generator) for i in range(4)]
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([300.0, 200.0])
    extent = torch.rand(60, 2, generator=generator) ** 3 * 500 + 0.5
    boxes = torch.cat([corner, (corner + extent).minimum(torch.tensor([384.0, 256.0]))], dim=1)
    image = torch.arange(60) // 30
    for size in (7, 14):
        pool = MultiScaleRoIAlign(["0", "1", "2", "3"], size, 2)
        named = {str(i): feature for i, feature in enumerate(maps)}
        theirs = pool(named, [boxes[:30], boxes[30:]], [(256, 384), (256, 384)])
        ours = roi_align(Pyramid(maps), boxes, image, size=size)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_detections_equal_torchvisions(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (model.eval() for model in pair)
    images, sizes, _ = scene()
    input_sizes = [(int(h), int(w)) for h, w in sizes]
    original_sizes = [(200, 250), (171, 195)]
    with torch.no_grad():
        found = ours.postprocess(ours.network(images, sizes), input_sizes, original_sizes)
        features = theirs.backbone(images)
        proposals, _ = theirs.rpn(their_input(images, sizes), features)
        expected, _ = theirs.roi_heads(features, proposals, input_sizes)
        expected = theirs.transform.postprocess(expected, input_sizes, original_sizes)
    for detections, reference in zip(found, expected, strict=True):
        assert len(detections.boxes) > 10
        torch.testing.assert_close(detections.boxes, reference["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(detections.scores, reference["scores"], rtol=0, atol=1e-5)
        assert torch.equal(detections.labels, reference["labels"] - 1)
        if "masks" in reference:
            assert detections.masks.any()
            assert torch.equal(detections.masks, reference["masks"][:, 0] > 0.5)


class SampleAlike:
    """torchvision's sampler with the choice that ours makes from the same keys."""

    def __init__(self, sampler: object) -> None:
        self.sampler = sampler

    def __call__(self, roles: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        positives, negatives = [], []
        for role in roles:
            sample = self.sampler(role.sign().long().unsqueeze(0))
            masks = torch.zeros(2, len(role), dtype=torch.uint8)
            masks[0, sample.index[sample.positive]] = 1
            masks[1, sample.index[sample.valid & ~sample.positive]] = 1
            positives.append(masks[0])
            negatives.append(masks[1])
        return positives, negatives


def scattered(role: torch.Tensor) -> torch.Tensor:
    """Keys that make a sampler take the same candidates every time, from all over."""
    return (torch.arange(role.shape[1]) * 0.6180339887).frac().expand(role.shape)


def descending(role: torch.Tensor) -> torch.Tensor:
    """Keys that make a sampler take the first candidates of each role, however many of no role are in between."""
    return torch.linspace(1, 0, role.shape[1]).expand(role.shape)


def losses_of_both(
    ours: nn.Module, theirs: nn.Module, dtype: torch.dtype, regions: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Training losses on the same sample of anchors and of at most `regions` regions per image."""
    images, sizes, targets = scene()
    images = images.to(dtype)
    targets = [target._replace(boxes=target.boxes.to(dtype)) for target in targets]
    their_targets = [{"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks} for t in targets]
    samplers = (BalancedSampler(256, 0.5), BalancedSampler(regions, 0.25))
    samplers[0].keys, samplers[1].keys = scattered, descending
    ours.rpn.sampler, ours.box_head.sampler = samplers
    theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler = map(SampleAlike, samplers)
    losses = ours.losses(images, sizes, targets)
    features = theirs.backbone(images)
    proposals, expected = theirs.rpn(their_input(images, sizes), features, their_targets)
    _, of_regions = theirs.roi_heads(features, proposals, [(int(h), int(w)) for h, w in sizes], their_targets)
    return losses, {**expected, **of_regions}


def test_training_losses_equal_torchvisions_for_the_same_samples(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = (model.train() for model in pair)
    with torch.no_grad():
        losses, expected = losses_of_both(ours, theirs, torch.float32, 512)
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert loss > 0
        torch.testing.assert_close(loss, expected[name], rtol=2e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.nightly
@pytest.mark.parametrize("pair", ["mask_rcnn_r50_fpn"], indirect=True)  # has all that Faster R-CNN has
def test_gradients_equal_torchvisions_for_the_same_samples(pair: tuple[nn.Module, nn.Module]) -> None:
    # In float64: in float32 both are as far from the true gradient as from each other.
    ours, theirs = (copy.deepcopy(model).double().train() for model in pair)
    losses, expected = losses_of_both(ours, theirs, torch.float64, 48)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = {name: p.grad.numpy() for name, p in ours.named_parameters() if p.grad is not None}
    gradients = to_codebase("torchvision", "mask_rcnn_r50_fpn", gradients)
    references = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}
    assert set(gradients) == set(references)
    for name, reference in references.items():
        assert np.linalg.norm(reference) > 0
        error = np.linalg.norm(gradients[name] - reference) / np.linalg.norm(reference)
        assert error < 1e-6, f"{name}: {error:.1e}"
