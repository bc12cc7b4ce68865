"""`detectors.products` against torch, also on a processor for which it leaves all products to torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from detectors.cpu import products
from detectors.layers import Linear


@pytest.fixture(params=[True, False], ids=["by convolution", "by torch"])
def ours(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(products, "SPLIT_BY_LIBRARY", request.param)
    return bool(request.param)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    turned=st.tuples(st.booleans(), st.booleans()),
)
@settings(deadline=None, max_examples=60)
def test_a_product_by_convolution_is_the_product(
    sizes: tuple[int, int, int], turned: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    n, k, m = sizes
    a = torch.randn(k, n).T if turned[0] else torch.randn(n, k)
    b = torch.randn(m, k).T if turned[1] else torch.randn(k, m)
    found = products.by_convolution(a, b)
    assert found.shape == (n, m)
    assert relative(found, a.double() @ b.double()) < 1e-5


@pytest.mark.parametrize(("inputs", "outputs"), [(96, 40), (40, 96)])
def test_a_linear_layer_and_its_gradients_are_torchs(ours: bool, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer = Linear(inputs, outputs)
    x = torch.randn(500, inputs, requires_grad=True)
    assert products.worthwhile(x, layer.weight) == ours
    exact = [one.detach().double().requires_grad_() for one in (x, layer.weight, layer.bias)]
    expected = F.relu(F.linear(*exact))
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    found = F.relu_(layer(x))
    found.backward(gradient.float())
    assert relative(found.detach(), expected.detach()) < 1e-5
    for one, other in zip((x, layer.weight, layer.bias), exact, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.stride() == one.stride()
        assert relative(one.grad, other.grad) < 1e-5


def test_a_frozen_layer_gets_no_gradient(ours: bool) -> None:
    layer, x = Linear(64, 32), torch.randn(500, 64)
    layer(x).sum().backward()
    assert x.grad is None
    assert layer.weight.grad is not None
    layer.zero_grad()
    layer.requires_grad_(False)
    layer(x.requires_grad_()).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is None


def test_the_audit_counts_the_same_work_whoever_multiplies(ours: bool) -> None:
    layer, x = Linear(64, 32), torch.randn(500, 64, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 500 * 64 * 32


@pytest.mark.usefixtures("ours")
def test_no_rows_and_other_numbers_work_too() -> None:
    layer = Linear(64, 32)
    assert layer(torch.randn(0, 64)).shape == (0, 32)
    assert layer.double()(torch.randn(500, 64).double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.float()(torch.randn(500, 64)).dtype == torch.bfloat16
