"""SSD300 against torchvision 0.29 (torchvision/models/detection/ssd.py), given the same weights and images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import ssd300_vgg16

from adapters.torchvision.adapter import AlreadyPrepared, PreparedImages
from bench.inputs.weights import to_codebase
from detectors import Target, build, calibrate
from detectors.dense import DenseOutput
from detectors.structures import GroundTruth

CLASSES = 5
SIZES = [(300, 300), (260, 210)]
LIMITS = {"score_threshold": 0.05, "max_detections": 40}


def scene() -> tuple[Tensor, list[Target]]:
    """Two images of noise and rectangles, small and large; the second does not fill its padding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 300, 300, generator=generator) * 0.3
    corners = (  # some for every level
        [
            [10.0, 12.0, 160.0, 90.0],
            [20.3, 18.1, 50.2, 43.7],
            [4.0, 2.0, 291.0, 283.0],
            [200.0, 60.0, 209.0, 74.0],
            [220.0, 150.0, 272.0, 201.0],
        ],
        [[31.0, 5.5, 190.0, 172.0], [160.5, 140.0, 177.0, 177.5], [1.0, 40.0, 208.0, 251.0]],
    )
    targets = []
    for image, ((height, width), boxes) in enumerate(zip(SIZES, corners, strict=True)):
        labels = torch.randint(CLASSES, (len(boxes),), generator=generator)
        for (x1, y1, x2, y2), label in zip(boxes, labels.tolist(), strict=True):
            images[image, :, int(y1) : int(y2), int(x1) : int(x2)] += 1.0 + 0.4 * label
        images[image, :, height:] = 0
        images[image, :, :, width:] = 0
        targets.append(Target(torch.tensor(boxes), labels))
    return images, targets


def transplanted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    arrays = {name: value.detach().numpy() for name, value in state.items()}
    converted = to_codebase("torchvision", "ssd300_vgg16", arrays)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in converted.items()}


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Module, nn.Module]:
    """Our model and torchvision's with the same weights."""
    torch.manual_seed(3)
    images, _ = scene()
    ours = build("ssd300_vgg16", num_classes=CLASSES, **LIMITS)
    calibrate(ours, images, torch.tensor(SIZES))
    theirs = ssd300_vgg16(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES + 1,
        score_thresh=LIMITS["score_threshold"],
        detections_per_img=LIMITS["max_detections"],
    )
    theirs.transform = AlreadyPrepared()
    theirs.load_state_dict(transplanted(ours.state_dict()))
    return ours, theirs


@pytest.fixture(scope="module")
def raw(pair: tuple[nn.Module, nn.Module]) -> DenseOutput:
    images, _ = scene()
    with torch.no_grad():
        return pair[0].network(images.contiguous(memory_format=torch.channels_last), torch.tensor(SIZES))


@pytest.mark.nightly
def test_losses_and_gradients_equal_torchvisions(pair: tuple[nn.Module, nn.Module]) -> None:
    ours, theirs = pair
    images, targets = scene()
    losses = ours.losses(images, torch.tensor(SIZES), targets)
    truth = [{"boxes": t.boxes, "labels": t.labels + 1} for t in targets]
    # The builder of torchvision freezes nothing without pretrained weights.
    theirs.backbone.features[:4].requires_grad_(False)
    expected = theirs.train()(PreparedImages(images, SIZES), truth)
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        assert loss > 0
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=0)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = transplanted({n: p.grad for n, p in ours.named_parameters() if p.grad is not None})
    references = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert set(gradients) == set(references)
    for parameter, reference in references.items():
        assert reference.norm() > 0, parameter
        error = (gradients[parameter] - reference).norm() / reference.norm()
        assert error < 1e-3, f"{parameter}: {error:.1e}"


def test_detections_equal_torchvisions(pair: tuple[nn.Module, nn.Module], raw: DenseOutput) -> None:
    ours, theirs = pair
    images, _ = scene()
    found = ours.postprocess(raw, SIZES, SIZES)
    with torch.no_grad():
        expected = theirs.eval()(PreparedImages(images, SIZES))
    for detections, reference in zip(found, expected, strict=True):
        assert len(detections.boxes) > 10
        assert len(detections.labels.unique()) > 1
        torch.testing.assert_close(detections.boxes, reference["boxes"], rtol=0, atol=1e-2)
        torch.testing.assert_close(detections.scores, reference["scores"], rtol=0, atol=1e-4)
        assert torch.equal(detections.labels, reference["labels"] - 1)


def test_anchors_equal_torchvisions(pair: tuple[nn.Module, nn.Module], raw: DenseOutput) -> None:
    images, _ = scene()
    maps = [torch.zeros(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)]
    expected, _ = pair[1].anchor_generator(PreparedImages(images, SIZES), maps)
    assert torch.equal(torch.cat(raw.anchors), expected)


def test_padding_is_no_object_with_any_kernels(pair: tuple[nn.Module, nn.Module]) -> None:
    """The first map is divided by its length: in the padding by 0, which rounding would make 1e-7."""
    ours, theirs = pair
    images = scene()[0].contiguous(memory_format=torch.channels_last)
    images[:, :, 190:], images[..., 210:] = 0, 0
    with torch.no_grad():
        logits = torch.cat(
            ours.eval().network(images, torch.tensor([[190, 210]] * len(images))).logits, dim=1
        )
        expected = theirs.head(list(theirs.backbone(images).values()))["cls_logits"]
    expected = expected.roll(-1, dims=2)  # their background comes first
    assert (logits - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([], id="no objects"),
        pytest.param([[40.0, 40.0, 40.0, 40.0]], id="no extent"),
        pytest.param([[20.0, 30.0, 21.0, 31.0]], id="one pixel"),
        pytest.param([[900.0, 900.0, 990.0, 990.0]], id="outside"),
        pytest.param([[10.0, 10.0, 50.0, 60.0]] * 200, id="200 of the same"),
    ],
)
def test_odd_objects_give_finite_losses_and_gradients(
    pair: tuple[nn.Module, nn.Module], raw: DenseOutput, boxes: list[list[float]]
) -> None:
    leaves = [value.detach().clone().requires_grad_() for value in (*raw.logits, *raw.deltas)]
    output = raw._replace(logits=leaves[: len(raw.logits)], deltas=leaves[len(raw.logits) :])
    target = Target(torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes), dtype=torch.int64))
    losses = pair[0].head.losses(output, GroundTruth.from_targets([target] * 2, torch.device("cpu")))
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.nightly
def test_calibrated_random_weights_detect_and_learn_at_once() -> None:
    torch.manual_seed(0)
    images, targets = scene()
    model = build("ssd300_vgg16", num_classes=80, score_threshold=0.05)
    model.to(memory_format=torch.channels_last)
    calibrate(model, images, torch.tensor(SIZES))
    with torch.no_grad():
        found = model.postprocess(model.network(images, torch.tensor(SIZES)), SIZES, SIZES)
    assert all(len(detections.boxes) > 0 for detections in found)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    totals = []
    for _ in range(3):
        loss: Any = sum(model.losses(images[:1], torch.tensor(SIZES[:1]), targets[:1]).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < totals[0]
