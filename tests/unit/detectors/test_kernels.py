"""When the kernels of `detectors.cpu` may run, and that nothing but speed depends on it."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from detectors import cpu
from detectors.cpu import conv2d, deform_conv2d, linear, switch, winograd
from detectors.layers import Conv2d, ConvNorm, FrozenBatchNorm2d, Linear
from tests.helpers.pretend_cuda import Pretended, pretend_cuda, to_pretended

PLAIN = ((1, 1), (1, 1), (1, 1), 1)


class Called(TorchDispatchMode):
    """The names of all operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def ours(self) -> bool:
        return any(name.startswith("detectors::") for name in self.names)


@pytest.fixture(autouse=True)
def auto() -> Iterator[None]:
    cpu.use("auto")
    yield
    cpu.use("auto")


def layer() -> tuple[Conv2d, Tensor]:
    torch.manual_seed(0)
    conv = Conv2d(128, 128, 3, padding=1).to(memory_format=torch.channels_last)
    return conv, torch.randn(2, 128, 24, 24).contiguous(memory_format=torch.channels_last)


def test_torch_kernels_leave_everything_to_torch() -> None:
    conv, x = layer()
    for kernels, expected in (("auto", True), ("torch", False)):
        cpu.use(kernels)
        with Called() as called:
            conv(x.requires_grad_()).sum().backward()
            with torch.no_grad():
                conv(x)
        assert called.ours is expected
    assert cpu.describe("cpu") == "torch"
    assert cpu.describe("cuda") == "torch"
    cpu.use("auto")
    assert "Winograd" in cpu.describe("cpu")


def test_an_unknown_choice_is_an_error() -> None:
    with pytest.raises(ValueError, match="auto or torch, got 'fast'"):
        cpu.use("fast")


def test_deformable_convolutions_of_torch_are_torchvisions() -> None:
    x, offset, mask = torch.randn(1, 4, 8, 8), torch.randn(1, 18, 8, 8), torch.rand(1, 9, 8, 8)
    weight = torch.randn(6, 4, 3, 3)
    results = []
    for kernels, expected in (("auto", False), ("torch", True)):
        cpu.use(kernels)
        with Called() as called:
            results.append(deform_conv2d(x, offset, weight, None, (1, 1), (1, 1), mask=mask))
        assert ("torchvision::deform_conv2d" in called.names) is expected
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_second_derivatives_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 64, 12, 12, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    weight, scale = torch.randn(64, 64, 3, 3) / 24, torch.rand(64) + 0.5

    def penalty(convolve: Any) -> list[Tensor]:
        images, kernel = x.clone().requires_grad_(), weight.clone().requires_grad_()
        out = convolve(images, kernel)
        (gradient,) = torch.autograd.grad(out.square().sum(), images, create_graph=True)
        gradient.square().sum().backward()
        return [images.grad, kernel.grad]

    ours = penalty(lambda images, kernel: conv2d(images, kernel, None, *PLAIN, scale=scale))
    theirs = penalty(lambda images, kernel: F.conv2d(images, kernel * scale.view(-1, 1, 1, 1), padding=1))
    for found, expected in zip(ours, theirs, strict=True):
        assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_linear_layers_have_second_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu.products, "worthwhile", lambda a, b: True)
    x, weight, bias = torch.randn(9, 4).double(), torch.randn(3, 4).double(), torch.randn(3).double()
    leaves = [one.requires_grad_() for one in (x, weight, bias)]
    assert torch.autograd.gradgradcheck(lambda *args: linear(*args).tanh(), leaves)


def test_function_transforms_and_forward_mode_work() -> None:
    conv = nn.Sequential(Conv2d(64, 64, 3, padding=1), ConvNorm(64, 64, 3, norm=FrozenBatchNorm2d))
    x = torch.randn(3, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    parameters = dict(conv.named_parameters())

    def loss(values: dict[str, Tensor], image: Tensor) -> Tensor:
        return torch.func.functional_call(conv, values, (image.unsqueeze(0),)).square().mean()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, image in enumerate(x):
        conv.zero_grad()
        loss(parameters, image).backward()
        for name, parameter in conv.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-3, atol=1e-5)
    _, slope = torch.func.jvp(lambda image: conv(image), (x,), (torch.ones_like(x),))
    assert slope.isfinite().all()
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        assert torch.autograd.forward_ad.unpack_dual(conv(dual)).tangent.isfinite().all()


@pytest.mark.parametrize("strict", [True, False])
def test_an_exported_graph_has_torch_operators_only(strict: bool) -> None:
    model = nn.Sequential(Conv2d(64, 128, 3, padding=1), ConvNorm(128, 128, 3, norm=FrozenBatchNorm2d)).eval()
    x = torch.randn(1, 64, 24, 24).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        exported = torch.export.export(model, (x,), strict=strict)
    names = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert names
    assert all(name.startswith("aten.") for name in names)
    with torch.no_grad():
        assert torch.equal(exported.module()(x), switched("torch", model, x))
    traced = torch.jit.trace(model, x)
    assert "detectors::" not in str(traced.inlined_graph)


def switched(kernels: str, model: nn.Module, x: Tensor) -> Tensor:
    cpu.use(kernels)
    try:
        return model(x)
    finally:
        cpu.use("auto")


def test_a_model_can_be_copied_and_pickled_after_use() -> None:
    layer = ConvNorm(8, 8, 3, norm=FrozenBatchNorm2d)
    x = torch.randn(1, 8, 5, 5)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(x), expected)


def test_frozen_normalisation_is_folded_once_until_it_changes() -> None:
    norm = FrozenBatchNorm2d(4)
    with torch.inference_mode():
        first = norm.scale_and_shift()
    assert not first[0].is_inference()
    assert norm.scale_and_shift()[0] is first[0]
    norm.load_state_dict({**norm.state_dict(), "running_var": torch.full((4,), 3.0)})
    assert torch.allclose(norm.scale_and_shift()[0], torch.tensor(3 + 1e-5).rsqrt())
    norm.double()
    assert norm.scale_and_shift()[0].dtype == torch.float64
    norm.weight = torch.full((4,), 2.0, dtype=torch.float64)
    assert torch.allclose(norm.scale_and_shift()[0], 2 * torch.tensor(3 + 1e-5, dtype=torch.float64).rsqrt())


@pytest.mark.parametrize("part", ["conv", "norm"])
def test_hooks_of_a_folded_layer_are_called(part: str) -> None:
    layer = ConvNorm(8, 8, 3, norm=FrozenBatchNorm2d)
    x = torch.randn(1, 8, 5, 5)
    expected, seen = layer(x), []
    handle = getattr(layer, part).register_forward_hook(lambda module, given, out: seen.append(out.shape))
    torch.testing.assert_close(layer(x), expected)
    assert seen == [(1, 8, 5, 5)]
    handle.remove()
    layer(x)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("x", "weight", "bias", "said"),
    [
        ((1, 64, 8, 8), (64, 32, 3, 3), None, "64 channels"),
        ((1, 64, 8, 8), (64, 64, 3, 3), (63,), "bias"),
        ((1, 64, 8, 8), (64, 64, 5, 5), None, "3, 3"),
        ((64, 8, 8), (64, 64, 3, 3), None, "B, C, H, W"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(x: Any, weight: Any, bias: Any, said: str) -> None:
    given = torch.randn(x), torch.randn(weight), None if bias is None else torch.randn(bias)
    with pytest.raises(RuntimeError, match=said):
        winograd.convolution(*given)


def test_gradients_that_do_not_fit_are_refused() -> None:
    x, weight = torch.randn(2, 64, 8, 8), torch.randn(32, 64, 3, 3)
    with pytest.raises(RuntimeError, match="64 channels and a weight for 32"):
        winograd.gradient_of_input(torch.randn(2, 64, 8, 8), weight)
    for shape in ((1, 32, 8, 8), (2, 32, 8, 7), (2, 32, 8)):
        with pytest.raises(RuntimeError, match="gradient of"):
            winograd.gradient_of_weight(x, torch.randn(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_numbers_than_float32_are_refused(dtype: torch.dtype) -> None:
    x, weight = torch.randn(1, 64, 8, 8), torch.randn(64, 64, 3, 3)
    for given in ((x.to(dtype), weight.to(dtype)), (x, weight.to(dtype)), (x.to(dtype), weight)):
        with pytest.raises(RuntimeError, match="float32"):
            winograd.convolution(*given, None)
        with pytest.raises(RuntimeError, match="float32"):
            winograd.gradient_of_weight(given[0], torch.randn(1, 64, 8, 8, dtype=given[1].dtype))


def test_empty_images_give_empty_results() -> None:
    weight = torch.randn(64, 32, 3, 3)
    for size in ((0, 32, 8, 8), (2, 32, 0, 8)):
        x, gradient = torch.randn(size), torch.randn(size[0], 64, *size[2:])
        assert winograd.convolution(x, weight, torch.randn(64)).shape == gradient.shape
        assert winograd.gradient_of_input(gradient, weight).shape == x.shape
        assert torch.equal(winograd.gradient_of_weight(x, gradient), torch.zeros(64, 32, 3, 3))
    x = torch.randn(0, 32, 8, 8)
    assert conv2d(x, weight, None, *PLAIN).shape == (0, 64, 8, 8)


def test_where_all_inputs_are_zero_the_output_is_the_bias() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 40, 30, 27).contiguous(memory_format=torch.channels_last)
    x[:, :, 11:], x[..., 14:] = 0, 0
    weight, bias = torch.randn(64, 40, 3, 3), torch.randn(64)
    for shift in (None, bias):
        exact, found = F.conv2d(x, weight, shift, padding=1), winograd.convolution(x, weight, shift)
        ground = 0 if shift is None else shift.view(-1, 1, 1)
        untouched = (exact == ground).all(dim=1)
        assert untouched.sum() > 100
        assert torch.equal(untouched, (found == ground).all(dim=1))


def test_under_autocast_everything_is_torchs() -> None:
    conv, x = layer()
    with torch.autocast("cpu", torch.bfloat16), Called() as called:
        conv(x)
        Linear(128, 64)(torch.randn(500, 128))
        assert not switch.ours(x)
    assert not called.ours


def test_on_cuda_no_function_of_python_wraps_a_convolution() -> None:
    """And frozen normalisation is folded once: the second pass launches the convolution alone."""
    layer = ConvNorm(8, 8, 3, norm=FrozenBatchNorm2d)
    images = torch.randn(1, 8, 6, 6)
    expected = layer(images).detach()
    with pretend_cuda() as cuda:
        to_pretended(layer)
        x = Pretended(images)
        assert layer(x).grad_fn.name() == "ConvolutionBackward0"
        with torch.no_grad():
            layer.eval()(x)
            cuda.launches.clear()
            found = layer(x)
            assert cuda.launches == {"aten::convolution": 1}
            layer.conv.weight.mul_(2)  # the folded weight is made anew
            cuda.launches.clear()
            assert not torch.allclose(layer(x).value, expected)
            assert cuda.launches["aten::mul"] == 1
    torch.testing.assert_close(found.value, expected)
