"""ResNet (He et al. 2015, arXiv:1512.03385) and ResNeXt (Xie et al. 2016, arXiv:1611.05431).

Matches torchvision/models/resnet.py (resnet50, resnet101) as used by its detection models. Style "pytorch" has the
stride of a bottleneck on its 3×3, "caffe" on its first 1×1, as mmdet/models/backbones/resnet.py. The variant "vd"
(He et al. 2018, arXiv:1812.01187, where it is ResNet-D) has three 3×3 convolutions as its stem, and in a shortcut an
average before the 1×1 in place of its stride, as ppdet/modeling/backbones/resnet.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.deformable import DeformConvNorm
from detectors.layers import ConvNorm, FrozenBatchNorm2d

#: Depth → blocks of each stage.
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class Bottleneck(nn.Module):
    """1×1 reduce, 3×3 in ``groups``, 1×1 expand to four times ``channels``, and a shortcut.

    The shortcut is projected where the shape changes. ``width``: channels of the 3×3.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: type[nn.Module],
        *,
        width: int,
        groups: int = 1,
        style: str = "pytorch",
        vd: bool = False,
        deformable: bool = False,
    ) -> None:
        super().__init__()
        out_channels = 4 * channels
        first, second = (stride, 1) if style == "caffe" else (1, stride)
        self.averaging = vd and stride != 1
        self.conv1 = ConvNorm(in_channels, width, 1, norm=norm, stride=first)
        self.conv2 = (
            DeformConvNorm(width, width, norm=norm, stride=second)
            if deformable
            else ConvNorm(width, width, 3, norm=norm, stride=second, groups=groups)
        )
        self.conv3 = ConvNorm(width, out_channels, 1, norm=norm)
        projected = stride != 1 or in_channels != out_channels
        reduction = 1 if vd else stride
        self.shortcut = (
            ConvNorm(in_channels, out_channels, 1, norm=norm, stride=reduction) if projected else None
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

    ``dcn_stages``: the stages, called 2 to 5 as their outputs C2 to C5 are, whose 3×3 are deformable. ``groups`` of the
    3×3, ``width_per_group`` in the first stage: 32 and 4 make ResNeXt 32x4d. ``style``: "pytorch" or "caffe".
    """

    def __init__(
        self,
        depth: int = 50,
        *,
        frozen_stages: int = 1,
        frozen_bn: bool = True,
        vd: bool = False,
        dcn_stages: Sequence[int] = (),
        groups: int = 1,
        width_per_group: int = 64,
        style: str = "pytorch",
    ) -> None:
        super().__init__()
        if style not in ("pytorch", "caffe"):
            raise ValueError(f"unknown style {style!r} of ResNet; there are pytorch and caffe")
        if not set(dcn_stages) <= {2, 3, 4, 5}:
            raise ValueError(f"dcn_stages {tuple(dcn_stages)}: the stages of ResNet are 2 to 5")
        if dcn_stages and groups != 1:
            raise ValueError("a deformable convolution has one group; set groups=1 or leave dcn_stages empty")
        norm: type[nn.Module] = FrozenBatchNorm2d if frozen_bn else nn.BatchNorm2d
        self.frozen_stages = frozen_stages
        self.stem = _deep_stem(norm) if vd else ConvNorm(3, 64, 7, norm=norm, stride=2)
        self.out_channels = [256 * 2**index for index in range(len(BLOCKS[depth]))]
        self.stages = nn.ModuleList(
            _stage(
                index,
                blocks,
                norm,
                width_of_group=width_per_group,
                groups=groups,
                style=style,
                vd=vd,
                deformable=index + 2 in dcn_stages,
            )
            for index, blocks in enumerate(BLOCKS[depth])
        )
        self._initialise()
        for module in self._frozen():
            module.requires_grad_(False)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck):
                # Residual branches start small (Goyal et al. 2017, arXiv:1706.02677, start them at 0, which a frozen
                # normalisation could never leave): with 1 a random network multiplies rounding errors tenfold.
                nn.init.constant_(module.conv3.norm.weight, 0.2)
        for module in self.modules():
            if isinstance(module, DeformConvNorm):
                module.reset_offset()

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


def _stage(
    index: int, blocks: int, norm: type[nn.Module], *, width_of_group: int, groups: int, **settings: Any
) -> nn.Sequential:
    """The stage ``index`` = 0, 1, …; all but the first halve the size. ``settings``: of ``Bottleneck``."""
    channels = 64 * 2**index
    return nn.Sequential(
        *(
            Bottleneck(
                4 * channels if block else (2 * channels if index else 64),
                channels,
                2 if block == 0 and index > 0 else 1,
                norm,
                width=channels * width_of_group // 64 * groups,
                groups=groups,
                **settings,
            )
            for block in range(blocks)
        )
    )


def _deep_stem(norm: type[nn.Module]) -> nn.Sequential:
    """Three 3×3 in place of one 7×7. The last ReLU is the caller's, as with the 7×7."""
    layers: list[nn.Module] = []
    for in_channels, channels, stride in ((3, 32, 2), (32, 32, 1), (32, 64, 1)):
        layers += [ConvNorm(in_channels, channels, 3, norm=norm, stride=stride), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])
