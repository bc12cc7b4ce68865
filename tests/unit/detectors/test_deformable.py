"""Our deformable convolution against torchvision.ops.deform_conv2d (csrc/ops/cpu/deform_conv2d_kernel.cpp)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from adapters.native.adapter import Adapter
from adapters.torch_facts import flop_counter, operator_seconds
from bench.worker.probe import operator_pass
from detectors.cpu import deform_conv2d, deformable
from detectors.deformable import DeformConvNorm
from detectors.layers import FrozenBatchNorm2d


def problem(
    seed: int,
    *,
    batch: int = 2,
    channels: tuple[int, int] = (5, 7),
    size: tuple[int, int] = (9, 7),
    kernel: tuple[int, int] = (3, 3),
    stride: int = 1,
    dilation: int = 1,
    reach: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors with gradients, and settings, of a convolution whose points are displaced by ``reach`` pixels or so."""
    random = torch.Generator().manual_seed(seed)
    padding = [dilation * (extent - 1) // 2 for extent in kernel]
    out = [
        (extent + 2 * pad - dilation * (k - 1) - 1) // stride + 1
        for extent, pad, k in zip(size, padding, kernel, strict=True)
    ]
    points = kernel[0] * kernel[1]

    def values(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random, dtype=dtype)

    tensors = {
        "input": values(batch, channels[0], *size),
        "offset": values(batch, 2 * points, *out) * reach,
        "weight": values(channels[1], channels[0], *kernel),
        "bias": values(channels[1]),
        "mask": values(batch, points, *out).sigmoid(),
    }
    how = {"stride": (stride, stride), "padding": tuple(padding), "dilation": (dilation, dilation)}
    return {name: value.requires_grad_() for name, value in tensors.items()}, how


def ours(tensors: dict[str, Tensor], how: dict[str, Any]) -> Tensor:
    order = [tensors[name] for name in ("input", "offset", "weight", "bias")]
    return deform_conv2d(*order, *how.values(), mask=tensors["mask"])


def reference(tensors: dict[str, Tensor], how: dict[str, Any]) -> Tensor:
    order = [tensors[name] for name in ("input", "offset", "weight", "bias")]
    return torchvision.ops.deform_conv2d(*order, *how.values(), mask=tensors["mask"])


def assert_the_same(tensors: dict[str, Tensor], how: dict[str, Any]) -> None:
    mine, theirs = ours(tensors, how), reference(tensors, how)
    assert mine.shape == theirs.shape
    assert (mine - theirs).norm() <= 1e-5 * theirs.norm()
    gradient = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0), dtype=theirs.dtype)
    found = torch.autograd.grad(mine, list(tensors.values()), gradient)
    expected = torch.autograd.grad(theirs, list(tensors.values()), gradient)
    for name, one, other in zip(tensors, found, expected, strict=True):
        assert (one - other).norm() <= 1e-4 * other.norm(), name


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(3, 17), st.integers(3, 17)),
    kernel=st.sampled_from([(3, 3), (1, 1), (3, 5)]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    reach=st.sampled_from([0.0, 0.3, 3.0, 40.0]),
)
def test_values_and_gradients_are_torchvisions(
    **choices: Any,
) -> None:
    assert_the_same(*problem(**choices))


@pytest.mark.parametrize("whole", [-1.0, -0.5, 0.0, 1.0, 3.0])
def test_points_on_the_border_are_read_as_by_torchvision(whole: float) -> None:
    """One pixel outside reads nothing, half a pixel outside half of the border; the same for all points."""
    tensors, how = problem(3)
    with torch.no_grad():
        tensors["offset"].fill_(whole)
    assert_the_same(tensors, how)


def test_an_offset_of_infinity_reads_nothing() -> None:
    tensors, how = problem(4)
    with torch.no_grad():
        tensors["offset"][:, :2] = torch.inf
        tensors["offset"][:, 2:4] = -1e30
    assert ours(tensors, how).isfinite().all()
    torch.testing.assert_close(ours(tensors, how), reference(tensors, how))


def test_the_result_does_not_depend_on_its_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors, how = problem(5, size=(12, 11))
    whole = ours(tensors, how)
    monkeypatch.setattr(deformable, "COLUMN_BYTES", 7 * 4 * 9 * 5 + 1)  # seven positions at a time
    assert len(list(deformable._parts(264, 4 * 9 * 5))) == 38
    torch.testing.assert_close(ours(tensors, how), whole)
    assert_the_same(tensors, how)


def test_gradients_are_derivatives() -> None:
    tensors, how = problem(6, batch=1, channels=(2, 3), size=(4, 5), dtype=torch.float64)
    names = list(tensors)
    assert torch.autograd.gradcheck(
        lambda *values: ours(dict(zip(names, values, strict=True)), how), list(tensors.values())
    )


def test_only_the_gradients_that_are_wanted_are_made() -> None:
    tensors, how = problem(7)
    for fixed in ("input", "weight", "bias"):
        tensors[fixed].requires_grad_(False)
    ours(tensors, how).sum().backward()
    assert tensors["input"].grad is None
    assert tensors["offset"].grad is not None
    assert tensors["mask"].grad is not None


def test_half_precision_goes_to_torchvision() -> None:
    tensors, how = problem(8)
    tensors = {name: value.detach().half() for name, value in tensors.items()}
    mine, theirs = ours(tensors, how), reference(tensors, how)
    assert mine.dtype == torch.float16
    assert torch.equal(mine, theirs)


def test_the_audit_counts_the_same_work_as_for_torchvisions() -> None:
    tensors, how = problem(9)
    counts = []
    for convolve in (ours, reference):
        with torch.no_grad(), flop_counter() as counter:
            convolve(tensors, how)
        with flop_counter() as training_counter:
            convolve(tensors, how).sum().backward()
        counts.append((counter.get_total_flops(), training_counter.get_total_flops()))
    assert counts[0] == counts[1]
    assert counts[0][1] == 3 * counts[0][0] > 0


@pytest.mark.parametrize("convolve", [ours, reference])
def test_reports_find_the_time_of_both_passes_in_a_step(convolve: Any) -> None:
    tensors, how = problem(10)
    adapter: Any = SimpleNamespace(
        operator_seconds=lambda step: operator_seconds(step, Adapter.operators, torch.device("cpu")),
        synchronize=lambda: None,
    )
    out = convolve(tensors, how)
    forward = operator_pass(adapter, [("forward", lambda _: convolve(tensors, how))])
    backward = operator_pass(adapter, [("backward", lambda _: out.sum().backward())])
    for seconds in (forward, backward):
        assert 0 < seconds["deformable convolution"] < seconds["step"]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_fresh_layer_is_half_a_convolution(frozen: bool) -> None:
    """Its offsets start at 0, the weights of its points at one half."""
    torch.manual_seed(0)
    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    layer = DeformConvNorm(4, 6, norm=norm, stride=2).eval()
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.running_mean.normal_()
    x = torch.randn(2, 4, 11, 8)
    torch.testing.assert_close(layer(x), layer.norm(0.5 * layer.conv(x)))
