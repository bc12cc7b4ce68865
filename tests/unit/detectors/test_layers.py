"""Convolutions whose gradients are made in another way than autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detectors.cpu import library, winograd
from detectors.layers import Conv2d


@pytest.mark.parametrize("kernel_size", [3, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("filtering", [True, False])
def test_gradients_are_those_of_autograd_in_either_memory_format(
    monkeypatch: pytest.MonkeyPatch, filtering: bool, bias: bool, kernel_size: int
) -> None:
    if not filtering:  # as on a machine without a compiler
        monkeypatch.setattr(library, "available", lambda: False)
    torch.manual_seed(0)
    plain = nn.Conv2d(64, 64, kernel_size, padding=kernel_size // 2, bias=bias)
    ours = Conv2d(64, 64, kernel_size, padding=kernel_size // 2, bias=bias).to(
        memory_format=torch.channels_last
    )
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 64, 36, 30)
    inputs = [x.clone().requires_grad_(), x.contiguous(memory_format=torch.channels_last).requires_grad_()]
    settings = (ours.stride, ours.padding, ours.dilation, ours.groups)
    for what in ("input", "weight"):
        took = winograd.worthwhile(inputs[1], ours.weight, settings, what)
        assert took == (filtering and kernel_size == 3)
    outputs = [conv(one) for conv, one in zip((plain, ours), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    gradient = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(gradient)
    pairs = zip((inputs[1], *ours.parameters()), (inputs[0], *plain.parameters()), strict=True)
    for mine, theirs in pairs:
        assert mine.grad is not None
        assert theirs.grad is not None
        limit = 2e-5 if filtering and kernel_size == 3 else 5e-6
        assert (mine.grad - theirs.grad).abs().max() <= limit * theirs.grad.abs().max()


def test_an_input_or_a_weight_without_gradient_gets_none() -> None:
    conv = Conv2d(16, 16, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(1, 16, 40, 40).contiguous(memory_format=torch.channels_last)
    conv(x).sum().backward()
    assert x.grad is None
    assert conv.weight.grad is not None
    conv.requires_grad_(False)
    conv(x.requires_grad_()).sum().backward()
    assert x.grad is not None
