"""Convolutions whose gradients are made in another way than autograd's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detectors import layers
from detectors.layers import Conv2d


@pytest.mark.parametrize("kernel_size", [3, 1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("copied", [True, False])
def test_gradients_are_those_of_autograd_in_either_memory_format(
    monkeypatch: pytest.MonkeyPatch, copied: bool, bias: bool, kernel_size: int
) -> None:
    """The faster way is chosen by processor; here it is also taken, or not, on others."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2" if copied else "AVX512")
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 8, kernel_size, padding=kernel_size // 2, bias=bias)
    ours = Conv2d(16, 8, kernel_size, padding=kernel_size // 2, bias=bias).to(
        memory_format=torch.channels_last
    )
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 16, 36, 30)
    inputs = [x.clone().requires_grad_(), x.contiguous(memory_format=torch.channels_last).requires_grad_()]
    took = layers._faster_contiguous(inputs[1], ours.weight, ours.stride, ours.groups)
    assert took == (copied and kernel_size == 3)
    outputs = [conv(one) for conv, one in zip((plain, ours), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    gradient = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(gradient)
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_an_input_or_a_weight_without_gradient_gets_none() -> None:
    conv = Conv2d(16, 16, 3, padding=1).to(memory_format=torch.channels_last)
    x = torch.randn(1, 16, 40, 40).contiguous(memory_format=torch.channels_last)
    conv(x).sum().backward()
    assert x.grad is None
    assert conv.weight.grad is not None
    conv.requires_grad_(False)
    conv(x.requires_grad_()).sum().backward()
    assert x.grad is not None
