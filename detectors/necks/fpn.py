"""Feature pyramid network (Lin et al. 2016, arXiv:1612.03144)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detectors.layers import Conv2d


class FPN(nn.Module):
    """Lateral 1×1, top-down nearest upsampling and addition, output 3×3, and P6 as every second pixel of P5.

    Matches torchvision/ops/feature_pyramid_network.py with ``LastLevelMaxPool``.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.lateral = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.output = nn.ModuleList(Conv2d(out_channels, out_channels, 3, padding=1) for _ in in_channels)
        for conv in (*self.lateral, *self.output):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of strides 4, 8, 16, 32 to maps [B, out_channels, H_i, W_i] of strides 4, 8, 16, 32, 64."""
        top = self.lateral[-1](features[-1])
        outputs = [self.output[-1](top)]
        for feature, lateral, output in zip(
            features[-2::-1], self.lateral[-2::-1], self.output[-2::-1], strict=True
        ):
            lateral_feature = lateral(feature)
            upsampled = F.interpolate(top, size=lateral_feature.shape[-2:], mode="nearest")
            top = lateral_feature.add_(upsampled)
            outputs.insert(0, output(top))
        outputs.append(outputs[-1][:, :, ::2, ::2])
        return outputs
