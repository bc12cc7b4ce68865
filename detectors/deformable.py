"""Deformable convolution with normalisation (DCNv2, Zhu et al. 2018, arXiv:1811.11168)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from detectors.cpu import deform_conv2d
from detectors.layers import Conv2d, ConvNorm, FrozenBatchNorm2d


class DeformConvNorm(ConvNorm):
    """A 3×3 convolution that reads each of its nine points somewhere else and with a weight, then normalisation.

    Where and how much comes from a convolution of the same input, ``offset``: channels 0 to 17 are (dy, dx) of the nine
    points, 18 to 26 the logits of their weights. It starts at 0: no offset, weight one half. As mmcv's
    ``ModulatedDeformConv2dPack`` with one group. ``bias``: whether it has one, as in PaddleDetection's heads.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        norm: Callable[[int], nn.Module],
        stride: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, 3, norm=norm, stride=stride)
        if bias:
            self.conv.bias = nn.Parameter(torch.zeros(out_channels))
        self.offset = Conv2d(in_channels, 27, 3, stride, padding=1)
        self.reset_offset()

    def reset_offset(self) -> None:
        """Begin without displacement."""
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H / stride, W / stride]."""
        conv, norm = self.conv, self.norm
        offset, logits = self.offset(x).split([18, 9], dim=1)
        weight, shift = conv.weight, conv.bias
        folded = self.foldable()
        if folded:
            scale, of_norm = norm.scale_and_shift()
            shift = of_norm if shift is None else of_norm + scale * shift
            weight = weight * scale.view(-1, 1, 1, 1)
        x = deform_conv2d(x, offset, weight, shift, conv.stride, conv.padding, mask=torch.sigmoid(logits))
        if folded:
            return x
        if self.calibrating and isinstance(norm, FrozenBatchNorm2d):
            norm.set_statistics(x)
        return norm(x)
