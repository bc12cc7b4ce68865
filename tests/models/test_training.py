"""What training needs besides equal losses: frozen parts stay, odd targets do no harm, the average is an average."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from detectors import EMA, Target, build, calibrate
from detectors.sampling import BalancedSampler

SIZE = 96


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = build("mask_rcnn_r50_fpn", num_classes=3)
    calibrate(model, torch.randn(1, 3, SIZE, SIZE), torch.tensor([[SIZE, SIZE]]))
    model.box_head.sampler = BalancedSampler(32, 0.25)
    return model


def target(*boxes: tuple[float, float, float, float]) -> Target:
    masks = torch.zeros(len(boxes), SIZE, SIZE, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = 1
    return Target(torch.tensor(boxes).reshape(-1, 4), torch.zeros(len(boxes), dtype=torch.int64), masks)


def losses_of(model: nn.Module, *targets: Target) -> dict[str, torch.Tensor]:
    sizes = torch.tensor([[SIZE, SIZE]] * len(targets))
    return model.train().losses(torch.randn(len(targets), 3, SIZE, SIZE), sizes, targets)


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param([target(), target()], id="no objects"),
        pytest.param([target(), target((10, 10, 50, 60))], id="one image without objects"),
        pytest.param([target((20, 30, 21, 31))], id="one pixel"),
        pytest.param([target((40, 40, 40, 40))], id="no extent"),
        pytest.param([target((90, 90, 300, 300))], id="mostly outside"),
        pytest.param([target((200, 200, 300, 300))], id="outside"),
        pytest.param([target(*[(i % 80, i // 8, i % 80 + 15, i // 8 + 20) for i in range(500)])], id="500"),
    ],
)
def test_odd_objects_give_finite_losses_and_gradients(model: nn.Module, targets: list[Target]) -> None:
    losses = losses_of(model, *targets)
    model.zero_grad()
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert loss.isfinite(), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("frozen", [0, 1, 3])
def test_exactly_the_frozen_stages_get_no_gradient(frozen: int) -> None:
    torch.manual_seed(0)
    model = build("faster_rcnn_r50_fpn", num_classes=3, frozen_stages=frozen, frozen_bn=False)
    model.box_head.sampler = BalancedSampler(16, 0.25)
    before = copy.deepcopy(model.state_dict())
    sum(losses_of(model, target((10, 10, 50, 60))).values()).backward()
    stages = ["backbone.stem.", *(f"backbone.stages.{index}." for index in range(4))]
    frozen_names = tuple(stages[: frozen + 1]) if frozen else ()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith(frozen_names), name
    # Statistics of frozen stages do not move either.
    for name, value in model.state_dict().items():
        if name.endswith("running_mean"):
            assert torch.equal(value, before[name]) == name.startswith(frozen_names), name


@pytest.mark.nightly
def test_calibrated_random_weights_learn_at_once(model: nn.Module) -> None:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    image = torch.randn(1, 3, SIZE, SIZE)
    objects = [target((10, 10, 50, 60), (40, 50, 90, 80))]
    totals = []
    for _ in range(10):
        loss = sum(model.train().losses(image, torch.tensor([[SIZE, SIZE]]), objects).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert min(totals[3:]) < 0.7 * totals[0]


def test_an_image_without_any_detection_gives_empty_results(model: nn.Module) -> None:
    model = copy.deepcopy(model).eval()
    model.box_head.score_threshold = 1.0
    with torch.no_grad():
        raw = model.network(torch.randn(1, 3, SIZE, SIZE), torch.tensor([[SIZE, SIZE]]))
        (found,) = model.postprocess(raw, [(SIZE, SIZE)], [(120, 130)])
    assert found.boxes.shape == (0, 4)
    assert found.masks.shape == (0, 120, 130)


@pytest.mark.parametrize("warm_up", [True, False])
def test_the_average_equals_a_plain_loop(warm_up: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4))
    model[0].requires_grad_(False)
    ema = EMA(model, decay=0.3, warm_up=warm_up)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for update in range(5):
        with torch.no_grad():
            for parameter in model[1:].parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(2, 3, 5, 5))
        ema.update()
        decay = min(0.3, (1 + update) / (10 + update)) if warm_up else 0.3
        for name, value in model.state_dict().items():
            followed = value.is_floating_point()
            expected[name] = decay * expected[name] + (1 - decay) * value if followed else value.clone()
    for name, value in ema.model.state_dict().items():
        torch.testing.assert_close(value, expected[name])
    assert ema.model[0].weight is model[0].weight
    assert ema.model[1].weight is not model[1].weight
