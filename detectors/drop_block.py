"""DropBlock (Ghiasi et al. 2018, arXiv:1810.12890)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DropBlock(nn.Module):
    """While training, squares of ``size`` pixels become 0, each channel's its own, and what is left is scaled up.

    ``keep``: share of the values that are to be left, but for overlaps. As ppdet/modeling/layers.py, where the squares
    reach over the border and the scale is that of the whole batch.
    """

    def __init__(self, size: int = 3, keep: float = 0.9) -> None:
        super().__init__()
        self.size = size
        self.keep = keep

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W], sides of at least ``size``, to the same shape."""
        if not self.training or self.keep == 1:
            return x
        chance = (1 - self.keep) / self.size**2
        for side in x.shape[2:]:
            chance *= side / (side - self.size + 1)
        centres = (torch.rand_like(x) < chance).to(x.dtype)
        left = 1 - F.max_pool2d(centres, self.size, stride=1, padding=self.size // 2)
        return x * (left * (left.numel() / left.sum()))
