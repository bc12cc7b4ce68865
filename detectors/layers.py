"""Convolution and normalisation, with the frozen normalisation of the R-CNN settings folded into the convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants: y = x * scale + shift.

    The names of the four buffers are those of ``nn.BatchNorm2d``. ``eps`` as torchvision.ops.FrozenBatchNorm2d.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """[C], [C]."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1))

    @torch.no_grad()
    def set_statistics(self, x: Tensor) -> None:
        """Take mean and (unbiased) variance per channel from x [B, C, H, W]."""
        variance, mean = torch.var_mean(x, dim=(0, 2, 3))
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)


class ConvNorm(nn.Module):
    """Convolution without bias, then normalisation.

    With frozen normalisation the scale goes into the weight and the shift becomes the bias, at run time, so that the
    parameters stay what a checkpoint holds. This saves two passes over the activation forward and one backward, and
    the gradient of the weight is the same. ``norm`` makes the normalisation of so many channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: Callable[[int], nn.Module],
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False
        )
        self.norm = norm(out_channels)
        self.calibrating = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        conv, norm = self.conv, self.norm
        if self.calibrating or not isinstance(norm, FrozenBatchNorm2d):
            x = conv(x)
            if self.calibrating and isinstance(norm, FrozenBatchNorm2d):
                norm.set_statistics(x)
            return norm(x)
        scale, shift = norm.scale_and_shift()
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
            return _FoldedConvolution.apply(x, conv.weight, scale.view(-1, 1, 1, 1), shift, *settings)
        return F.conv2d(x, conv.weight * scale.view(-1, 1, 1, 1), shift, *settings)


class _FoldedConvolution(torch.autograd.Function):
    """conv2d(x, weight * scale, shift) that does not keep the scaled weight for the backward pass.

    Autograd would hold a second copy of all weights of the backbone from forward to backward.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        scale: Tensor,
        shift: Tensor,
        *settings: Any,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.settings = settings
        return F.conv2d(x, weight * scale, shift, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        *settings, groups = ctx.settings
        wanted = (*ctx.needs_input_grad[:2], False)
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient, x, weight * scale, None, *settings, False, (0, 0), groups, wanted
        )
        return of_x, None if of_weight is None else of_weight.mul_(scale), *[None] * (len(ctx.settings) + 2)


@contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """While open, a forward pass sets the statistics of every frozen normalisation from what it sees, and the running
    statistics of every batch normalisation to those of the batch."""
    layers = [layer for layer in module.modules() if isinstance(layer, ConvNorm)]
    norms = [
        (norm, norm.momentum, norm.training) for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)
    ]
    try:
        for layer in layers:
            layer.calibrating = True
        for norm, _, _ in norms:
            norm.momentum, norm.training = 1.0, True
        yield
    finally:
        for layer in layers:
            layer.calibrating = False
        for norm, momentum, training in norms:
            norm.momentum, norm.training = momentum, training
