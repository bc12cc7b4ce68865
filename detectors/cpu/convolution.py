"""Convolutions whose gradients, and without gradients whose outputs, come by the faster of two ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from detectors.cpu import winograd
from detectors.cpu.switch import ours


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any, scale: Tensor | None = None
) -> Tensor:
    """``F.conv2d``, by Winograd's filtering where it is faster: for gradients, and where no gradient is wanted.

    Args:
        x: images [B, C, H, W].
        weight: [C', C / groups, kh, kw].
        bias: [C'], or None.
        settings: stride, padding and dilation as pairs, and groups.
        scale: [C'], without gradient, what each output's weight is multiplied with; or None.

    Returns:
        [B, C', H', W'].
    """
    if not ours(x, weight, bias):
        return F.conv2d(x, weight if scale is None else _scaled(weight, scale), bias, *settings)
    if torch.is_grad_enabled():
        # Directly: rounding that is five times larger moves that many more values across the corner of a ReLU, and with
        # each of them the gradients of all layers before it (1.6e-3 of a layer's where a direct sum is below 1e-3).
        if scale is None:
            return _Convolution.apply(x, weight, bias, *settings)
        return _ScaledConvolution.apply(x, weight, scale, bias, *settings)
    weight = weight if scale is None else _scaled(weight, scale)
    if winograd.worthwhile(x, weight, settings):
        return winograd.convolution(x, weight, bias)
    return F.conv2d(x, weight, bias, *settings)


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale.view(-1, 1, 1, 1)


def _backward(
    gradient: Tensor, x: Tensor, weight: Tensor, settings: Sequence[Any], wanted: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of x, weight and bias, of which those ``wanted`` are made.

    ``settings``: stride, padding, dilation, groups. By torch alone where these gradients are differentiated again.
    """

    def of_torch(which: Sequence[bool]) -> Sequence[Tensor | None]:
        *pairs, groups = settings
        bias_sizes = [weight.shape[0]] if which[2] else None
        backward = torch.ops.aten.convolution_backward
        gradients: Sequence[Tensor | None] = backward(
            gradient, x, weight, bias_sizes, *pairs, False, (0, 0), groups, which
        )
        return gradients

    found: list[Tensor | None] = [None, None, None]
    if ours(x) and not torch.is_grad_enabled():
        if wanted[0] and winograd.worthwhile(x, weight, settings, "input"):
            found[0] = winograd.gradient_of_input(gradient, weight)
        if wanted[1] and winograd.worthwhile(x, weight, settings, "weight"):
            found[1:] = (
                winograd.gradient_of_weight(x, gradient),
                gradient.sum((0, 2, 3)) if wanted[2] else None,
            )
    left = [asked and done is None for asked, done in zip(wanted, found, strict=True)]
    if any(left):
        rest = of_torch(left)
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
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        found = _backward(gradient, x, weight, ctx.settings, ctx.needs_input_grad[:3])
        return *found, *[None] * len(ctx.settings)


class _ScaledConvolution(torch.autograd.Function):
    """conv2d(x, weight * scale, bias) that does not keep the scaled weight for the backward pass.

    Autograd would hold a second copy of all weights of the backbone from forward to backward.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, *settings: Any
    ) -> Tensor:
        ctx.save_for_backward(x, weight, scale)
        ctx.settings = settings
        return F.conv2d(x, _scaled(weight, scale), bias, *settings)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        of_x_wanted, of_weight_wanted, _, of_bias_wanted = ctx.needs_input_grad[:4]
        wanted = (of_x_wanted, of_weight_wanted, of_bias_wanted)
        of_x, of_weight, of_bias = _backward(gradient, x, _scaled(weight, scale), ctx.settings, wanted)
        if of_weight is not None:
            of_weight = of_weight.mul_(scale.view(-1, 1, 1, 1))
        return of_x, of_weight, None, of_bias, *[None] * len(ctx.settings)
