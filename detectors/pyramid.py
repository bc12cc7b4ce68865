"""A feature pyramid as one table of feature vectors, and pooling of regions from all its levels at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.boxes import area


class Pyramid:
    """Maps [B, C, H_i, W_i] of equal width C, finest first.

    ``table``: [sum_i(B * H_i * W_i), C], all feature vectors of all levels and images, one after the other in order
    (level, image, row, column). Reading from one table makes reading from several levels a single operation.
    """

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self.maps = list(maps)
        self.batch_size, self.channels = maps[0].shape[:2]
        self.grids = tuple((feature.shape[2], feature.shape[3]) for feature in maps)
        sizes = [height * width for height, width in self.grids]
        self.level_starts = [self.batch_size * sum(sizes[:level]) for level in range(len(sizes))]

    @cached_property
    def table(self) -> Tensor:
        return torch.cat([feature.permute(0, 2, 3, 1).reshape(-1, self.channels) for feature in self.maps])

    def detach(self) -> Pyramid:
        return Pyramid([feature.detach() for feature in self.maps])

    @cached_property
    def geometry(self) -> Tensor:
        """int64 [levels, 3]: height, width, first row of the table."""
        rows = [(h, w, start) for (h, w), start in zip(self.grids, self.level_starts, strict=True)]
        return torch.tensor(rows).to(self.maps[0].device, non_blocking=True)


def roi_level(boxes: Tensor, *, levels: int) -> Tensor:
    """Level [R] in 0..levels-1 from which a box [R, 4] is pooled: equation 1 of the FPN paper, level 0 is its P2.

    The offset 1e-6 keeps sizes at a boundary on one side of it, as in torchvision/ops/poolers.py.
    """
    level = torch.floor(4 + torch.log2(area(boxes).sqrt() / 224) + 1e-6)
    return level.clamp(min=2, max=levels + 1).to(torch.int64) - 2


def _axis_samples(
    start: Tensor, extent: Tensor, bins: int, samples: int, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Where and with what weight one axis is read: positions and weights, both [R, bins, 2 * samples].

    start, extent: [R] of the region in feature pixels; limit: [R] number of pixels of the level. Each sample point
    reads its two neighbours linearly; a point more than a pixel outside reads nothing.
    """
    step = torch.arange(bins * samples, device=start.device)
    bin_extent = (extent / bins)[:, None]
    # The order of operations of torchvision's kernel, so that rounding puts the points in the same place.
    point = (start[:, None] + (step // samples) * bin_extent) + (step % samples + 0.5) * bin_extent / samples
    limit = limit[:, None]
    inside = (point >= -1.0) & (point <= limit)
    point = point.clamp(min=0)
    last = limit - 1
    low = torch.minimum(point.to(torch.int64), last)
    high = torch.minimum(low + 1, last)
    upper = torch.where(low >= last, 0.0, point - low)
    position = torch.stack([low, high], dim=-1)
    weight = torch.stack([1.0 - upper, upper], dim=-1) * inside.unsqueeze(-1)
    return position.view(-1, bins, 2 * samples), weight.view(-1, bins, 2 * samples)


def roi_align(
    pyramid: Pyramid, boxes: Tensor, image: Tensor, *, size: int, levels: int = 4, samples: int = 2
) -> Tensor:
    """RoIAlign (He et al. 2017, arXiv:1703.06870) of regions on the levels that equation 1 of FPN gives them.

    boxes: [R, 4] in input pixels; image: int64 [R], the region's image. Level i has stride 4 * 2^i.
    Returns [R, C, size, size], channels last in memory. ``samples``² points per bin, their mean; coordinates are
    not shifted by half a pixel. Values as torchvision.ops.MultiScaleRoIAlign(sampling_ratio=samples), aligned=False.

    Every bin is a weighted sum of (2 * samples)² rows of the pyramid's table, which is what an embedding bag
    computes: in parallel, over all levels, with contiguous reads.
    """
    level = roi_level(boxes, levels=levels)
    height, width, first = pyramid.geometry[level].unbind(-1)
    x1, y1, x2, y2 = (boxes * (0.25 * torch.exp2(-level.to(boxes.dtype)))[:, None]).unbind(-1)
    y, weight_y = _axis_samples(y1, (y2 - y1).clamp(min=1.0), size, samples, height)
    x, weight_x = _axis_samples(x1, (x2 - x1).clamp(min=1.0), size, samples, width)
    row_start = (first + image * height * width)[:, None, None] + y * width[:, None, None]
    index = row_start[:, :, None, :, None] + x[:, None, :, None, :]
    weight = weight_y[:, :, None, :, None] * (weight_x / samples**2)[:, None, :, None, :]
    reads = (2 * samples) ** 2
    pooled = F.embedding_bag(
        index.reshape(-1, reads),
        pyramid.table,
        mode="sum",
        per_sample_weights=weight.reshape(-1, reads).to(pyramid.table.dtype),
    )
    return pooled.view(-1, size, size, pyramid.channels).permute(0, 3, 1, 2)
