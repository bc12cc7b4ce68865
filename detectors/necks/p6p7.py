"""The pyramid of dense detectors: levels P3 to P7."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from detectors.necks.fpn import FPN


class P3P7(FPN):
    """FPN on strides 8, 16 and 32, with P6 and P7 by strided 3×3 convolutions.

    P6 is made from P5 and P7 from its positive part (FCOS, arXiv:2006.09214), as torchvision's
    ``LastLevelP6P7(256, 256)``, and mmdetection's FPN with add_extra_convs="on_output" and relu_before_extra_convs.
    With ``p6_from_c5``, P6 is made from C5 and P7 from all of it, as mmdetection's FPN with "on_input" for RetinaNet.
    """

    def __init__(
        self, in_channels: Sequence[int], out_channels: int = 256, *, p6_from_c5: bool = False
    ) -> None:
        """in_channels: of strides 8, 16 and 32."""
        super().__init__(in_channels, out_channels)
        self.p6_from_c5 = p6_from_c5
        source = in_channels[-1] if p6_from_c5 else out_channels
        self.p6 = nn.Conv2d(source, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            nn.init.kaiming_uniform_(conv.weight, a=1)
            nn.init.zeros_(conv.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Maps of strides 4, 8, 16, 32 to maps [B, out_channels, H_i, W_i] of strides 8, 16, 32, 64, 128."""
        *outputs, _ = super().forward(features[1:])  # FPN's own P6 is a view and costs nothing
        if self.p6_from_c5:
            p6 = self.p6(features[-1])
            return [*outputs, p6, self.p7(p6)]
        p6 = self.p6(outputs[-1])
        return [*outputs, p6, self.p7(F.relu(p6))]
