"""Convolution and normalisation, with the frozen normalisation of the R-CNN settings folded into the convolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from detectors import winograd


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


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` by ``conv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d(x, self.weight, self.bias, *settings)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
    """``F.conv2d`` with the faster gradients of ``_convolution_backward``; where no gradient is wanted, by Winograd's
    filtering if that is faster. settings: stride, padding, dilation as pairs, and groups.
    """
    if torch.is_autocast_enabled(x.device.type):
        return F.conv2d(x, weight, bias, *settings)
    if torch.is_grad_enabled():
        # Directly: rounding that is five times larger moves that many more values across the corner of a ReLU, and with
        # each of them the gradients of all layers before it (1.6e-3 of a layer's where a direct sum is below 1e-3).
        return _Convolution.apply(x, weight, bias, *settings)
    if winograd.worthwhile(x, weight, settings):
        return winograd.convolution(x, weight, bias)
    return F.conv2d(x, weight, bias, *settings)


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
        self.conv = Conv2d(
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
        scale = scale.view(-1, 1, 1, 1)
        if torch.is_grad_enabled() and not torch.is_autocast_enabled(x.device.type):
            return _FoldedConvolution.apply(x, conv.weight, scale, shift, *settings)
        return conv2d(x, conv.weight * scale, shift, *settings)


def _convolution_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, settings: Sequence[Any], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x, weight and bias, of which those ``wanted`` are made. ``settings``: stride, padding, dilation,
    groups.
    """

    def of_torch(sides: Sequence[Tensor], which: Sequence[bool]) -> Sequence[Tensor | None]:
        *pairs, groups = settings
        bias_sizes = [weight.shape[0]] if which[2] else None
        backward = torch.ops.aten.convolution_backward
        gradients: Sequence[Tensor | None] = backward(
            *sides, bias_sizes, *pairs, False, (0, 0), groups, which
        )
        return gradients

    found: list[Tensor | None] = [None, None, None]
    if wanted[0] and winograd.worthwhile(x, weight, settings, "input"):
        found[0] = winograd.gradient_of_input(gradient, weight)
    if wanted[1] and winograd.worthwhile(x, weight, settings, "weight"):
        found[1:] = winograd.gradient_of_weight(x, gradient), gradient.sum((0, 2, 3)) if wanted[2] else None
    left = [asked and done is None for asked, done in zip(wanted, found, strict=True)]
    if any(left):
        rest = of_torch((gradient, x, weight), left)
        found = [new if asked else done for asked, new, done in zip(left, rest, found, strict=True)]
    return found


class _Convolution(torch.autograd.Function):
    """conv2d(x, weight, bias)."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found = _convolution_backward(gradient, x, weight, ctx.settings, ctx.needs_input_grad[:3])
        return *found, *[None] * len(ctx.settings)


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
        wanted = (*ctx.needs_input_grad[:2], False)
        of_x, of_weight, _ = _convolution_backward(gradient, x, weight * scale, ctx.settings, wanted)
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
