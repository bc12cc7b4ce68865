"""The feature pyramid of HRNetV2p (Sun et al. 2019, arXiv:1904.04514)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.layers import Conv2d


class HRFPN(nn.Module):
    """All branches at the size of the finest, side by side, reduced by a 1×1; each level an average of it, and a 3×3.

    Matches mmdet/models/necks/hrfpn.py.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256, levels: int = 5) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.reduction = Conv2d(sum(in_channels), out_channels, 1)
        self.output = nn.ModuleList(Conv2d(out_channels, out_channels, 3, padding=1) for _ in range(levels))
        for conv in (self.reduction, *self.output):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of strides 4, 8, 16, 32 to maps [B, out_channels, H_i, W_i] of strides 4, 8, 16, 32, 64."""
        finest, *coarser = features
        size = finest.shape[-2:]
        resized = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in coarser]
        x = self.reduction(torch.cat([finest, *resized], dim=1))
        return [conv(F.avg_pool2d(x, 2**level) if level else x) for level, conv in enumerate(self.output)]
