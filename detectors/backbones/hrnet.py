"""HRNetV2 (Sun et al. 2019, arXiv:1904.04514): branches of all strides side by side, which exchange what they see.

Matches mmdet/models/backbones/hrnet.py with the widths 18, 32 and 48 of its hrnetv2p configs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.backbones.resnet import Bottleneck
from detectors.layers import ConvNorm, FrozenBatchNorm2d

#: Exchanges in the second, third and fourth stage, which have as many branches as their number.
EXCHANGES = (1, 4, 3)
BLOCKS = 4


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut; the shape stays."""

    def __init__(self, channels: int, norm: type[nn.Module]) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3, norm=norm)
        self.conv2 = ConvNorm(channels, channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return F.relu_(self.conv2(F.relu_(self.conv1(x))).add_(x))


class Exchange(nn.Module):
    """Four blocks on every branch, after which each branch becomes the sum of all, brought to its size and width.

    ``fuse[i][j]`` takes branch j to branch i: from a coarser one by a 1×1 convolution and nearest upsampling, from a
    finer one by a strided 3×3 convolution for every halving; the branch itself is taken as it is.
    """

    def __init__(self, widths: Sequence[int], norm: type[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(width, norm) for _ in range(BLOCKS))) for width in widths
        )
        self.fuse = nn.ModuleList(
            nn.ModuleList(_path(widths, source, goal, norm) for source in range(len(widths)))
            for goal in range(len(widths))
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """As many maps as branches, [B, widths[i], H / 2^i, W / 2^i], to maps of the same shapes."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        outputs = []
        for goal, paths in enumerate(self.fuse):
            total = maps[goal]
            for source, path in enumerate(paths):
                if source != goal:
                    term = path(maps[source])
                    if source > goal:
                        term = F.interpolate(term, size=total.shape[-2:], mode="nearest")
                    total = total + term if total is maps[goal] else total.add_(term)
            outputs.append(F.relu_(total))
        return outputs


def _path(widths: Sequence[int], source: int, goal: int, norm: type[nn.Module]) -> nn.Sequential:
    if source > goal:
        return nn.Sequential(ConvNorm(widths[source], widths[goal], 1, norm=norm))
    layers: list[nn.Module] = []
    for step in range(source + 1, goal + 1):
        width = widths[goal] if step == goal else widths[source]
        layers += [ConvNorm(widths[source], width, 3, norm=norm, stride=2), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])  # the sum comes before the last ReLU


class Stage(nn.Module):
    """One branch more than before, made from the coarsest, and ``exchanges`` among them.

    The second stage also makes its first branch anew, since what comes before is wider.
    """

    def __init__(
        self, in_channels: int, widths: Sequence[int], exchanges: int, norm: type[nn.Module]
    ) -> None:
        """in_channels: of the coarsest branch before."""
        super().__init__()
        self.transition = nn.ModuleList()
        if len(widths) == 2:
            self.transition.append(ConvNorm(in_channels, widths[0], 3, norm=norm))
        self.transition.append(ConvNorm(in_channels, widths[-1], 3, norm=norm, stride=2))
        self.exchanges = nn.ModuleList(Exchange(widths, norm) for _ in range(exchanges))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps of the branches before to maps of all branches, finest first."""
        new = [F.relu_(transition(maps[-1])) for transition in self.transition]
        maps = [*maps, *new] if len(new) == 1 else new
        for exchange in self.exchanges:
            maps = exchange(maps)
        return list(maps)


class HRNet(nn.Module):
    """Stem and four stages; returns the four branches of the last, strides 4, 8, 16 and 32.

    ``width``: of the finest branch; each coarser one is twice as wide. ``frozen_stages`` as for ``ResNet``;
    mmdetection's configs freeze nothing.
    """

    def __init__(self, width: int = 18, *, frozen_stages: int = 1, frozen_bn: bool = True) -> None:
        super().__init__()
        norm: type[nn.Module] = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        self.frozen_stages = frozen_stages
        self.out_channels = [width * 2**branch for branch in range(4)]
        self.stem = nn.Sequential(
            ConvNorm(3, 64, 3, norm=norm, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(64, 64, 3, norm=norm, stride=2),
            nn.ReLU(inplace=True),
        )
        first = [Bottleneck(256 if block else 64, 64, 1, norm, width=64) for block in range(BLOCKS)]
        self.stages = nn.ModuleList([nn.Sequential(*first)])
        in_channels = 256
        for branches, exchanges in enumerate(EXCHANGES, start=2):
            self.stages.append(Stage(in_channels, self.out_channels[:branches], exchanges, norm))
            in_channels = self.out_channels[branches - 1]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():  # residual branches start small, as ResNet's
            if isinstance(module, Bottleneck):
                nn.init.constant_(module.conv3.norm.weight, 0.2)
            elif isinstance(module, BasicBlock):
                nn.init.constant_(module.conv2.norm.weight, 0.2)
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        return [self.stem, *self.stages[: self.frozen_stages]] if self.frozen_stages > 0 else []

    def train(self, mode: bool = True) -> HRNet:
        """Frozen stages stay in evaluation mode, so that their batch statistics are not updated either."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to four maps [B, width·2^i, H / 2^(i+2), W / 2^(i+2)]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_stages < 1):
            maps = [self.stages[0](self.stem(images))]
        for index, stage in enumerate(self.stages[1:], start=1):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen_stages):
                maps = stage(maps)
        return maps
