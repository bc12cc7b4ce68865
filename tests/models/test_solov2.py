"""SOLOv2 against plain loops written from its paper; tests/peers/test_solov2_vs_mmdet.py has it against mmdetection."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors import Target, build, list_models, parameter_groups, solov2_masks
from detectors.matrix_nms import keep_local_peaks
from detectors.solov2 import SOLOv2
from detectors.solov2_masks import Prediction, draw_masks, mask_extents
from detectors.solov2_targets import quarter_masks
from tests.helpers.models import random_target
from tests.helpers.solov2 import CLASSES, LEVELS, cells_in_a_loop, matrix_nms_in_a_loop, small_model


def scene() -> tuple[Tensor, Tensor, list[Target]]:
    images = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    return images, torch.tensor([[64, 128], [60, 90]]), [random_target(seed, (64, 128)) for seed in (1, 2)]


@pytest.mark.parametrize("original", [(70, 41), (24, 100), (1, 1)])
def test_masks_are_those_of_two_interpolations(
    original: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solov2_masks, "PIXELS_AT_ONCE", 2 * original[0] * original[1])  # several turns
    masks = torch.rand(5, 8, 12, generator=torch.Generator().manual_seed(0))
    full = F.interpolate(masks[None], scale_factor=4.0, mode="bilinear")[:, :, :30, :45]
    expected = F.interpolate(full, size=original, mode="bilinear")[0] > 0.5
    assert torch.equal(draw_masks(masks, 0.5, (30, 45), original), expected)
    assert draw_masks(masks[:0], 0.5, (30, 45), original).shape == (0, *original)


def test_no_convolution_changes_the_memory_format() -> None:
    model = small_model().to(memory_format=torch.channels_last)
    changed = []

    def note(name: str, x: Tensor) -> None:
        if not x.is_contiguous(memory_format=torch.channels_last):
            changed.append(name)

    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
    images = torch.randn(2, 3, 64, 128).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        model.predict(images)
    assert changed == []


def test_losses_are_those_of_a_loop_over_cells_and_objects() -> None:
    model = small_model()
    images, sizes, targets = scene()
    with torch.no_grad():
        predicted = model.predict(images)
        losses = model.losses(images, sizes, targets)
    dice, focal, positive = 0.0, 0.0, 0
    for image, target in enumerate(targets):
        goals = quarter_masks(target.masks, (16, 32))
        for index, level in enumerate(LEVELS):
            labels, pairs = cells_in_a_loop(target, level)
            positive += int((labels < CLASSES).sum())
            kernels = predicted.kernels[index][image].flatten(1)
            for cell, number in pairs:
                mask = torch.einsum("d,dhw->hw", kernels[:, cell], predicted.features[image]).sigmoid()
                goal = goals[number].float()
                overlap, area = 2 * (mask * goal).sum(), mask.square().sum() + goal.sum()
                dice += float(1 - overlap / (area + 0.002))
            scores = predicted.classes[index][image].sigmoid().double().numpy()
            for label, row, column in np.ndindex(*scores.shape):
                p = scores[label, row, column]
                hit = labels[row, column] == label
                focal -= 0.25 * (1 - p) ** 2 * math.log(p) if hit else 0.75 * p**2 * math.log(1 - p)
    assert positive > 20
    assert losses["loss_mask"].item() == pytest.approx(3 * dice / positive, rel=1e-4)
    assert losses["loss_cls"].item() == pytest.approx(focal / (positive + 1), rel=1e-4)


@pytest.mark.parametrize("empty", [[0], [0, 1]])
def test_images_without_objects_give_finite_losses(empty: list[int]) -> None:
    """A weight without gradient would stop distributed training."""
    model = small_model()
    images, sizes, targets = scene()
    for image in empty:
        targets[image] = random_target(0, (64, 128), objects=0)
    losses = model.losses(images, sizes, targets)
    assert (losses["loss_mask"].item() == 0) == (len(empty) == 2)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def detections_in_a_loop(model: SOLOv2, raw: Prediction, image: int) -> list[tuple[float, int, Tensor]]:
    """Scores before suppression, labels and masks, cell by cell."""
    found = []
    for level, classes, kernels in zip(LEVELS, raw.classes, raw.kernels, strict=True):
        scores = keep_local_peaks(classes.sigmoid())[image]
        for label, row, column in np.ndindex(*scores.shape):
            score = float(scores[label, row, column])
            mask = torch.einsum("d,dhw->hw", kernels[image, :, row, column], raw.features[image]).sigmoid()
            inside = mask > 0.5
            if score > model.candidate_threshold and inside.sum() > level.min_area:
                found.append((score * float(mask[inside].mean()), label, mask))
    return sorted(found, key=lambda one: -one[0])


@torch.no_grad()
def test_detections_are_those_of_a_loop_over_cells() -> None:
    model = small_model(
        candidate_threshold=0.02, score_threshold=0.01, candidates=60, max_detections=15
    ).eval()
    model.head.classes.weight.mul_(40)
    model.head.kernels.weight.mul_(40)
    images, sizes, _ = scene()
    raw = model.network(images, sizes)
    original = [(80, 160), (60, 90)]
    for image, detections in enumerate(model.postprocess(raw, [(64, 128), (60, 90)], original)):
        candidates = detections_in_a_loop(model, raw, image)
        assert len(candidates) > 60
        best = candidates[:60]
        scores, labels = np.array([one[0] for one in best]), np.array([one[1] for one in best])
        binary = np.array([(one[2] > 0.5).numpy().flatten() for one in best])
        decayed = np.array(matrix_nms_in_a_loop(binary, labels, scores, "gaussian"))
        order = [j for j in np.argsort(-decayed, kind="stable") if decayed[j] >= 0.01][:15]
        assert 3 < len(order) == len(detections.scores)
        np.testing.assert_allclose(detections.scores.numpy(), decayed[order], rtol=1e-4)
        assert detections.labels.tolist() == labels[order].tolist()
        height, width = ((64, 128), (60, 90))[image]
        for j, mask, box in zip(order, detections.masks, detections.boxes.tolist(), strict=True):
            full = F.interpolate(best[j][2][None, None], size=(64, 128), mode="bilinear")[
                ..., :height, :width
            ]
            drawn = F.interpolate(full, size=original[image], mode="bilinear")[0, 0] > 0.5
            assert (mask != drawn).float().mean() < 1e-3
            rows, columns = mask.nonzero().T.numpy()
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_an_image_without_its_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="padded to a multiple of 32, not 64 × 100"):
        small_model().predict(torch.zeros(1, 3, 64, 100))


@torch.no_grad()
def test_an_image_without_finds_has_no_detections() -> None:
    model = small_model(candidate_threshold=0.999).eval()
    images, sizes, _ = scene()
    for detections in model.postprocess(
        model.network(images, sizes), [(64, 128), (60, 90)], [(80, 160), (60, 90)]
    ):
        assert detections.boxes.shape == (0, 4)
        assert detections.masks.shape[0] == len(detections.scores) == len(detections.labels) == 0
    assert mask_extents(torch.zeros(1, 4, 4, dtype=torch.bool)).tolist() == [[0, 0, 0, 0]]


def test_it_learns_to_draw_the_objects_of_an_image() -> None:
    model = small_model()
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 8:40, 4:24] = 1
    masks[1, 36:60, 36:60] = 1
    target = Target(torch.tensor([[4.0, 8, 24, 40], [36, 36, 60, 60]]), torch.tensor([2, 0]), masks)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 0.1
    images[0, 0] += 2 * masks[0]
    images[0, 1] += 2 * masks[1]
    sizes = torch.tensor([[64, 64]])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model.losses(images, sizes, [target]).values()).backward()
        optimizer.step()
    with torch.no_grad():
        (found,) = model.eval().postprocess(model.network(images, sizes), [(64, 64)], [(64, 64)])
    for mask, label in zip(masks.bool(), target.labels, strict=True):
        best = int((found.scores * (found.labels == label)).argmax())
        assert found.scores[best] > 0.3
        assert (found.masks[best] & mask).sum() > 0.8 * (found.masks[best] | mask).sum()


def test_rules_of_a_model_become_groups_of_the_optimizer() -> None:
    """PaddleDetection's slow backbone: .05 .05 .1 .15, offsets as fast as the rest, no decay on normalisation."""
    with torch.device("meta"):
        model = build("solov2_light_r50_vd_fpn_dcn_512")
        plain = build("solov2_light_r50_fpn")
    groups = parameter_groups(model, lr=0.01, weight_decay=1e-4)
    assert groups[0]["lr"] == 0.01
    assert groups[0]["weight_decay"] == 1e-4
    of = {id(p): (g["lr"] / 0.01, g["weight_decay"] / 1e-4) for g in groups for p in g["params"]}
    names = dict(model.named_parameters())
    assert len(of) == sum(len(group["params"]) for group in groups) == len(names)
    for name, factors in {
        "backbone.stem.0.conv.weight": (1, 1),
        "backbone.stem.2.norm.bias": (1, 0),
        "backbone.stages.0.0.conv1.conv.weight": (0.05, 1),
        "backbone.stages.1.0.shortcut.norm.weight": (0.05, 0),
        "backbone.stages.2.5.conv2.conv.weight": (0.1, 1),
        "backbone.stages.3.2.conv2.offset.weight": (1, 1),
        "backbone.stages.3.2.conv3.conv.weight": (0.15, 1),
        "neck.lateral.0.weight": (1, 1),
        "neck.output.3.bias": (1, 1),
        "head.kernel_convs.1.norm.weight": (1, 0),
        "head.kernel_convs.2.conv.bias": (2, 0),
        "head.class_convs.2.offset.bias": (2, 0),
        "head.class_convs.2.offset.weight": (1, 1),
        "head.classes.bias": (1, 1),
    }.items():
        assert of[id(names[name])] == pytest.approx(factors), name
    assert len(parameter_groups(plain, lr=0.01, weight_decay=1e-4)) == 1
    with torch.device("meta"):
        paddle = build("solov2_light_r50_fpn", conventions="paddledet")
    plain_decay, without = (group["params"] for group in parameter_groups(paddle, lr=0.01, weight_decay=1e-4))
    norms = {id(p) for name, p in paddle.named_parameters() if ".norm." in name and p.requires_grad}
    assert {id(p) for p in without} == norms
    assert not norms & {id(p) for p in plain_decay}


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("solov2_light_r50_fpn", 31.6),
        ("solov2_r50_fpn", 46.6),
        ("solov2_light_r50_dcn_fpn", 33.52),
        ("solov2_light_r50_vd_fpn_dcn_512", 33.536),
    ],
)
def test_models_of_the_registry_have_the_size_of_their_definition(name: str, millions: float) -> None:
    assert name in list_models()
    with torch.device("meta"):
        model = build(name, num_classes=80, frozen_bn=False)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.3)
