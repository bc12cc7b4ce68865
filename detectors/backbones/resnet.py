"""ResNet (He et al. 2015, arXiv:1512.03385), the `pytorch` style: the stride of a bottleneck is on its 3×3.

Matches torchvision/models/resnet.py (resnet50, resnet101) as used by its detection models. The variant "vd" (He et al.
2018, arXiv:1812.01187, where it is ResNet-D) has three 3×3 convolutions as its stem, and in a shortcut an average before
the 1×1 in place of its stride, as ppdet/modeling/backbones/resnet.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.deformable import DeformConvNorm
from detectors.layers import ConvNorm, FrozenBatchNorm2d

BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1×1 reduce, 3×3, 1×1 expand by four, and a shortcut that is projected where the shape changes."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: type[nn.Module],
        *,
        vd: bool = False,
        deformable: bool = False,
    ) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.averaging = vd and stride != 1
        self.conv1 = ConvNorm(in_channels, channels, 1, norm=norm)
        self.conv2 = (
            DeformConvNorm(channels, channels, norm=norm, stride=stride)
            if deformable
            else ConvNorm(channels, channels, 3, norm=norm, stride=stride)
        )
        self.conv3 = ConvNorm(channels, out_channels, 1, norm=norm)
        projected = stride != 1 or in_channels != out_channels
        self.shortcut = (
            ConvNorm(in_channels, out_channels, 1, norm=norm, stride=1 if vd else stride) if projected else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, 4 * channels, H / stride, W / stride]."""
        identity = F.avg_pool2d(x, 2, ceil_mode=True) if self.averaging else x
        if self.shortcut is not None:
            identity = self.shortcut(identity)
        x = F.relu_(self.conv1(x))
        x = F.relu_(self.conv2(x))
        return F.relu_(self.conv3(x).add_(identity))


class ResNet(nn.Module):
    """Stem and four stages; returns the outputs of all four, strides 4, 8, 16 and 32.

    ``frozen_stages``: 0 freezes nothing, 1 the stem and the first stage, 2 also the second, … Frozen parameters need
    no gradient, and no autograd graph is built below the first trainable stage.
    """

    def __init__(self, depth: int = 50, *, frozen_stages: int = 1, frozen_bn: bool = True) -> None:
        super().__init__()
        norm: type[nn.Module] = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        self.frozen_stages = frozen_stages
        self.stem = ConvNorm(3, 64, 7, norm=norm, stride=2)
        self.stages = nn.ModuleList()
        self.out_channels: list[int] = []
        in_channels = 64
        for index, blocks in enumerate(BLOCKS[depth]):
            channels = 64 * 2**index
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if block == 0 and index > 0 else 1
                stage.append(Bottleneck(in_channels, channels, stride, norm))
                in_channels = 4 * channels
            self.stages.append(stage)
            self.out_channels.append(in_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                # Residual branches start small (Goyal et al. 2017, arXiv:1706.02677, start them at 0, which a frozen
                # normalisation could never leave): with 1 a random network multiplies rounding errors tenfold.
                nn.init.constant_(module.conv3.norm.weight, 0.2)
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [self.stem, *self.stages[: self.frozen_stages]] if self.frozen_stages > 0 else []

    def train(self, mode: bool = True) -> ResNet:
        """Frozen stages stay in evaluation mode, so that their batch statistics are not updated either."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to four maps [B, 256·2^i, H / 2^(i+2), W / 2^(i+2)]."""
        outputs = []
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_stages < 1):
            x = F.max_pool2d(F.relu_(self.stem(images)), kernel_size=3, stride=2, padding=1)
        for index, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen_stages):
                x = stage(x)
            outputs.append(x)
        return outputs
