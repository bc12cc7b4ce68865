"""RetinaNet and FCOS against torchvision 0.29 (torchvision/models/detection), given the same weights and images."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from adapters.torchvision.adapter import AlreadyPrepared, PreparedImages
from bench.inputs.weights import to_codebase
from detectors import Target, build, calibrate, parameter_groups
from detectors.structures import GroundTruth
from tests.helpers.models import few_layers

CLASSES = 5
MAX_DETECTIONS = 40
HEIGHT, WIDTH = 96, 160  # neither is a multiple of the coarsest stride
SIZES = [(HEIGHT, WIDTH), (HEIGHT - 14, WIDTH - 30)]
SCORE_THRESHOLD = 0.05
MODELS = {"retinanet_r50_fpn": RetinaNet, "fcos_r50_fpn": FCOS}


def scene() -> tuple[Tensor, list[Target]]:
    """Two images of noise and rectangles, small and large; the second does not fill its padding."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, HEIGHT, WIDTH, generator=generator) * 0.3
    boxes = (
        [
            [10.0, 12.0, 60.0, 50.0],
            [20.3, 18.1, 40.2, 33.7],
            [4.0, 2.0, 151.0, 93.0],
            [100.0, 60.0, 107.0, 71.0],
        ],
        [[31.0, 5.5, 90.0, 72.0], [60.5, 40.0, 77.0, 77.5]],
    )
    targets = []
    for image, ((height, width), corners) in enumerate(zip(SIZES, boxes, strict=True)):
        labels = torch.randint(CLASSES, (len(corners),), generator=generator)
        for (x1, y1, x2, y2), label in zip(corners, labels.tolist(), strict=True):
            images[image, :, int(y1) : int(y2), int(x1) : int(x2)] += 1.0 + 0.4 * label
        images[image, :, height:] = 0
        images[image, :, :, width:] = 0
        targets.append(Target(torch.tensor(corners), labels))
    return images, targets


@pytest.fixture(scope="module", params=list(MODELS))
def pair(request: pytest.FixtureRequest) -> tuple[str, nn.Module, nn.Module]:
    """Our model and torchvision's with the same weights, ours calibrated and its outputs spread so that they differ."""
    torch.manual_seed(3)
    images, _ = scene()
    ours = build(
        request.param, num_classes=CLASSES, score_threshold=SCORE_THRESHOLD, max_detections=MAX_DETECTIONS
    )
    calibrate(ours, images, torch.tensor(SIZES))
    with torch.no_grad():
        ours.head.classes.weight.mul_(3)
        if request.param == "fcos_r50_fpn":
            ours.head.deltas.weight.mul_(5)
            ours.head.deltas.bias.fill_(1.5)
            ours.head.centreness.weight.mul_(10)
    # Frozen normalisation and stages, which the builders have only together with pretrained weights.
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        norm_layer=FrozenBatchNorm2d,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    theirs = MODELS[request.param](
        backbone,
        num_classes=CLASSES,
        score_thresh=SCORE_THRESHOLD,
        detections_per_img=MAX_DETECTIONS,
    )
    theirs.transform = AlreadyPrepared()
    theirs.load_state_dict(transplanted(request.param, ours.state_dict()))
    return request.param, ours, theirs


def transplanted(model: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    converted = to_codebase("torchvision", model, {name: value.numpy() for name, value in state.items()})
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in converted.items()}


def losses_of_both(
    ours: nn.Module, theirs: nn.Module, images: Tensor, targets: list[Target]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    theirs_expects = [{"boxes": t.boxes, "labels": t.labels} for t in targets]
    losses = ours.train().losses(images, torch.tensor(SIZES), targets)
    return losses, theirs.train()(PreparedImages(images, SIZES), theirs_expects)


def assert_equal_losses(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=2e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_detections_equal_torchvisions(
    pair: tuple[str, nn.Module, nn.Module], memory_format: torch.memory_format
) -> None:
    _, ours, theirs = pair
    images, _ = scene()
    with torch.no_grad():
        raw = ours.eval().network(images.contiguous(memory_format=memory_format), torch.tensor(SIZES))
        found = ours.postprocess(raw, SIZES, SIZES)
        expected = theirs.eval()(PreparedImages(images, SIZES))
    for detections, reference in zip(found, expected, strict=True):
        assert len(detections.boxes) > 10
        assert len(detections.labels.unique()) > 1
        torch.testing.assert_close(detections.boxes, reference["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(detections.scores, reference["scores"], rtol=0, atol=1e-5)
        assert torch.equal(detections.labels, reference["labels"])


def test_boxes_are_scaled_to_the_original_image(pair: tuple[str, nn.Module, nn.Module]) -> None:
    _, ours, _ = pair
    images, _ = scene()
    with torch.no_grad():
        raw = ours.eval().network(images, torch.tensor(SIZES))
        plain = ours.postprocess(raw, SIZES, SIZES)
        scaled = ours.postprocess(raw, SIZES, [(2 * height, 3 * width) for height, width in SIZES])
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(other.boxes, one.boxes * torch.tensor([3.0, 2.0, 3.0, 2.0]))


def test_training_losses_equal_torchvisions(pair: tuple[str, nn.Module, nn.Module]) -> None:
    _, ours, theirs = pair
    with torch.no_grad():
        losses, expected = losses_of_both(ours, theirs, *scene())
    assert all(loss > 0 for loss in losses.values())
    assert_equal_losses(losses, expected)


def test_losses_without_objects_equal_torchvisions(pair: tuple[str, nn.Module, nn.Module]) -> None:
    _, ours, theirs = pair
    images, targets = scene()
    nothing = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for some in ([nothing, nothing], [nothing, targets[1]]):
        with torch.no_grad():
            assert_equal_losses(*losses_of_both(ours, theirs, images, some))


@pytest.mark.parametrize(
    "pair", ["retinanet_r50_fpn", pytest.param("fcos_r50_fpn", marks=pytest.mark.nightly)], indirect=True
)
def test_gradients_equal_torchvisions(pair: tuple[str, nn.Module, nn.Module]) -> None:
    # In float64: in float32 both are as far from the true gradient as from each other.
    name, *models = pair
    ours, theirs = (copy.deepcopy(model).double() for model in models)
    images, targets = scene()
    targets = [Target(target.boxes.double(), target.labels) for target in targets]
    losses, expected = losses_of_both(ours, theirs, images.double(), targets)
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = transplanted(name, {n: p.grad for n, p in ours.named_parameters() if p.grad is not None})
    references = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    assert set(gradients) == set(references)
    for parameter, reference in references.items():
        assert reference.norm() > 0, parameter
        error = (gradients[parameter] - reference).norm() / reference.norm()
        assert error < 1e-6, f"{parameter}: {error:.1e}"


@pytest.mark.parametrize(
    "boxes",
    [
        pytest.param([], id="no objects"),
        pytest.param([[40.0, 40.0, 40.0, 40.0]], id="no extent"),
        pytest.param([[20.0, 30.0, 21.0, 31.0]], id="one pixel"),
        pytest.param([[300.0, 300.0, 400.0, 400.0]], id="outside"),
        pytest.param([[10.0, 10.0, 50.0, 60.0]] * 200, id="200 of the same"),
    ],
)
def test_odd_objects_give_finite_losses_and_gradients(
    pair: tuple[str, nn.Module, nn.Module], boxes: list[list[float]]
) -> None:
    _, ours, _ = pair
    images, _ = scene()
    target = Target(torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes), dtype=torch.int64))
    with torch.no_grad():
        output = ours.output(images[:1, :, :64, :64])
    leaves = [*output.logits, *output.deltas, *(output.quality or [])]
    for leaf in leaves:
        leaf.requires_grad_()
    truth = GroundTruth.from_targets([target], images.device)
    losses = ours.head.losses(output, truth)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


@pytest.mark.parametrize(
    "name", ["retinanet_r50_fpn", pytest.param("fcos_r50_fpn", marks=pytest.mark.nightly)]
)
def test_calibrated_random_weights_detect_and_learn_at_once(name: str) -> None:
    torch.manual_seed(0)
    images, targets = scene()
    with few_layers():
        model = build(name, num_classes=80)
    calibrate(model, images, torch.tensor(SIZES))
    model.score_threshold = SCORE_THRESHOLD
    with torch.no_grad():
        raw = model.eval().network(images, torch.tensor(SIZES))
        assert all(len(found.boxes) > 0 for found in model.postprocess(raw, SIZES, SIZES))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    totals = []
    for _ in range(3):
        loss: Any = sum(model.train().losses(images, torch.tensor(SIZES), targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < totals[0]


def test_paddledetections_retinanet_has_its_layers_rates_and_boxes() -> None:
    """ppdet/modeling/heads/fcos_head.py (`lr_scale=2.` of FCOSFeat) and retina_head.py, which does not cut boxes."""
    with torch.device("meta"):
        model = build("retinanet_r50_fpn", conventions="paddledet")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    usual, fast = parameter_groups(model, lr=1.0, weight_decay=1.0)
    assert (usual["lr"], fast["lr"], fast["weight_decay"]) == (1.0, 2.0, 1.0)
    assert {names[id(one)] for one in fast["params"]} == {
        f"head.{tower}_tower.{layer}.bias" for tower in ("class", "box") for layer in range(4)
    }
    assert model.neck.p6.weight.shape[1] == 256  # made from P5
    assert not model.clip_boxes
    with pytest.raises(ValueError, match="paddledet"):
        build("fcos_r50_fpn", conventions="paddledet")
