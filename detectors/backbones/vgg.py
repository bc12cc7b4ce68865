"""VGG-16 (Simonyan & Zisserman 2014, arXiv:1409.1556) as SSD uses it.

Without its classifier, of which the first two layers become convolutions (Liu et al. 2015, arXiv:1512.02325, section
3.1).

Matches torchvision/models/vgg.py (vgg16) in torchvision/models/detection/ssd.py, and
mmdet/models/backbones/ssd_vgg.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.layers import Conv2d

#: Output channels of the 3×3 convolutions of each stage; a stage but the first begins with a pooling by two.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Thirteen convolutions in five stages, then fc6 (3×3 with holes of six) and fc7 (1×1).

    Returns the output of the fourth stage, conv4_3, and fc7: strides 8 and 16.

    ``frozen_stages``: so many stages need no gradient, and no autograd graph is built below the first trainable one.
    """

    def __init__(self, *, frozen_stages: int = 1) -> None:
        super().__init__()
        self.frozen_stages = frozen_stages
        self.stages = nn.ModuleList()
        in_channels = 3
        for widths in STAGES:
            stage = nn.ModuleList()
            for channels in widths:
                stage.append(Conv2d(in_channels, channels, 3, padding=1))
                in_channels = channels
            self.stages.append(stage)
        self.fc6 = Conv2d(in_channels, 1024, 3, padding=6, dilation=6)
        self.fc7 = Conv2d(1024, 1024, 1)
        self.out_channels = [STAGES[3][-1], 1024]
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        for stage in self.stages[:frozen_stages]:
            stage.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """[B, 3, H, W] to [B, 512, ⌈H / 8⌉, ⌈W / 8⌉] and [B, 1024, ⌈H / 16⌉, ⌈W / 16⌉]."""
        x = images
        outputs = []
        for index, stage in enumerate(self.stages):
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.frozen_stages):
                if index > 0:
                    x = F.max_pool2d(x, 2, ceil_mode=True)
                for conv in stage:
                    x = F.relu_(conv(x))
            if index == 3:
                outputs.append(x)
        x = F.max_pool2d(x, 3, stride=1, padding=1)
        x = F.relu_(self.fc7(F.relu_(self.fc6(x))))
        return [*outputs, x]
