"""The pyramid of SSD: two maps of its backbone and ever smaller ones after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.layers import Conv2d


class ExtraLayer(NamedTuple):
    """One more level: a 1×1 convolution to half of ``channels``, then this one."""

    channels: int
    kernel_size: int
    stride: int
    padding: int


class SSDNeck(nn.Module):
    """The first map scaled to length 20 at every position, the second as it is, and extra layers.

    Matches torchvision/models/detection/ssd.py, ``SSDFeatureExtractorVGG``, and mmdet/models/necks/ssd_neck.py.
    """

    def __init__(self, in_channels: Sequence[int], layers: Sequence[ExtraLayer]) -> None:
        """in_channels: of the two maps."""
        super().__init__()
        self.scale = nn.Parameter(torch.full((in_channels[0],), 20.0))
        self.extra = nn.ModuleList()
        channels = in_channels[-1]
        for layer in layers:
            self.extra.append(
                nn.ModuleList(
                    [
                        Conv2d(channels, layer.channels // 2, 1),
                        Conv2d(
                            layer.channels // 2,
                            layer.channels,
                            layer.kernel_size,
                            layer.stride,
                            layer.padding,
                        ),
                    ]
                )
            )
            channels = layer.channels
        self.out_channels = [*in_channels, *(layer.channels for layer in layers)]
        for reduce, conv in self.extra:
            for module in (reduce, conv):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of strides 8 and 16 to these two and one smaller map per extra layer, [B, out_channels[i], H_i, W_i]."""
        first, x = features
        outputs = [F.normalize(first) * self.scale.view(1, -1, 1, 1), x]
        for reduce, conv in self.extra:
            x = F.relu_(conv(F.relu_(reduce(x))))
            outputs.append(x)
        return outputs
