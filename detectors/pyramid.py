"""A feature pyramid as one table of feature vectors, and pooling of regions from all its levels at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

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
        self._table: Tensor | None = None
        self._geometry: Tensor | None = None

    @property
    def table(self) -> Tensor:
        """All feature vectors, [sum_i(B * H_i * W_i), C]."""
        if self._table is None:  # not a cached property: older Pythons lock that, which no graph can hold
            rows = [feature.permute(0, 2, 3, 1).reshape(-1, self.channels) for feature in self.maps]
            self._table = torch.cat(rows)
        return self._table

    def detach(self) -> Pyramid:
        """The same maps without gradient."""
        return Pyramid([feature.detach() for feature in self.maps])

    @property
    def geometry(self) -> Tensor:
        """int64 [levels, 3]: height, width, first row of the table."""
        if self._geometry is None:
            rows = [(h, w, start) for (h, w), start in zip(self.grids, self.level_starts, strict=True)]
            self._geometry = torch.tensor(rows).to(self.maps[0].device, non_blocking=True)
        return self._geometry


def roi_level(boxes: Tensor, *, levels: int) -> Tensor:
    """Level [R] in 0..levels-1 from which a box [R, 4] is pooled: equation 1 of the FPN paper, level 0 is its P2.

    The offset 1e-6 keeps sizes at a boundary on one side of it, as in torchvision/ops/poolers.py.
    """
    level = torch.floor(4 + torch.log2(area(boxes).sqrt() / 224) + 1e-6)
    return level.clamp(min=2, max=levels + 1).to(torch.int64) - 2


def roi_align(
    pyramid: Pyramid,
    boxes: Tensor,
    image: Tensor,
    *,
    size: int,
    levels: int = 4,
    stride: int = 4,
    samples: int = 2,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign (He et al. 2017, arXiv:1703.06870) of regions on the levels that equation 1 of FPN gives them.

    boxes: [R, 4] in input pixels; image: int64 [R], the region's image. Level i has stride ``stride`` * 2^i; with
    ``levels`` = 1 all regions are pooled from the first. Returns [R, C, size, size], channels last in memory.

    A bin is the mean of ``samples``² points, or, with 0, of as many per axis as it has pixels, rounded up. ``aligned``
    shifts regions by half a pixel. Values as torchvision.ops.roi_align(sampling_ratio=samples or -1, aligned=aligned)
    on each level.

    Every bin is a weighted sum of rows of the pyramid's table, which is what an embedding bag computes: in parallel,
    over all levels, with contiguous reads.
    """
    if samples == 0 and (boxes.device.type != "cpu" or torch.compiler.is_compiling()):
        return by_level(
            pyramid, boxes, image, size=size, levels=levels, stride=stride, samples=0, aligned=aligned
        )
    level = roi_level(boxes, levels=levels) if levels > 1 else torch.zeros_like(image)
    height, width, first = pyramid.geometry[level].unbind(-1)
    corners = boxes / (stride * torch.exp2(level.to(boxes.dtype)))[:, None] - (0.5 if aligned else 0.0)
    x1, y1, x2, y2 = corners.unbind(-1)
    least = 0.0 if aligned else 1.0  # pixels
    axes = (
        Axis(y1, (y2 - y1).clamp(min=least) / size, height),
        Axis(x1, (x2 - x1).clamp(min=least) / size, width),
    )
    start = first + image * height * width
    read = _adaptive_reads if samples == 0 else partial(_fixed_reads, samples=samples)
    index, weight, begins, order = read(axes, start, width, size)
    pooled = F.embedding_bag(
        index,
        pyramid.table,
        begins,
        mode="sum",
        per_sample_weights=weight.to(pyramid.table.dtype),
    ).view(-1, size, size, pyramid.channels)
    return (pooled if order is None else pooled[order]).permute(0, 3, 1, 2)


def by_level(
    pyramid: Pyramid,
    boxes: Tensor,
    image: Tensor,
    *,
    size: int,
    levels: int = 4,
    stride: int = 4,
    samples: int = 2,
    aligned: bool = False,
) -> Tensor:
    """As ``roi_align``, by torchvision's operator on every level, of which one counts for each region.

    The host learns nothing, and a graph can hold it. Regions without extent, as which those of other levels are given
    to it, cost an adaptive kernel nothing.
    """
    import torchvision  # noqa: F401  # knows the operator's gradient and its shape in a graph

    level = roi_level(boxes, levels=levels) if levels > 1 else torch.zeros_like(image)
    total = None
    for number, feature in enumerate(pyramid.maps[:levels]):
        here = (level == number).unsqueeze(1)
        regions = torch.cat([image.unsqueeze(1).to(boxes.dtype), boxes.where(here, 0.0)], dim=1)
        pooled = torch.ops.torchvision.roi_align(
            feature, regions.to(feature.dtype), 1 / (stride * 2**number), size, size, samples or -1, aligned
        )
        pooled = pooled.where(here.view(-1, 1, 1, 1), 0.0)
        total = pooled if total is None else total + pooled
    assert total is not None
    return total


class Axis(NamedTuple):
    """One axis of regions, in pixels of their level, all [R]: where they begin, a bin's extent, the level's size."""

    start: Tensor
    bin_extent: Tensor
    limit: Tensor


#: The arguments of an embedding bag: rows of the table and their weights; where bags begin, or None if both are
#: [bags, reads]; and which of the regions that were computed is the first, the second, … (None: they are in order).
Reads = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def _outer(
    y: tuple[Tensor, Tensor], x: tuple[Tensor, Tensor], start: Tensor, width: Tensor
) -> tuple[Tensor, Tensor]:
    """Positions and weights along both axes, [R, bins, reads], to rows of the table and their weights.

    Both [R * bins², reads_y * reads_x]. start, width: [R], the first row of the region's map and the map's width.
    """
    (y, weight_y), (x, weight_x) = y, x
    row = start[:, None, None] + y * width[:, None, None]
    index = row[:, :, None, :, None] + x[:, None, :, None, :]
    weight = weight_y[:, :, None, :, None] * weight_x[:, None, :, None, :]
    reads = y.shape[2] * x.shape[2]
    return index.reshape(-1, reads), weight.reshape(-1, reads)


def _fixed_reads(axes: tuple[Axis, Axis], start: Tensor, width: Tensor, bins: int, *, samples: int) -> Reads:
    """``samples`` points per bin and axis, two reads for each."""
    y, x = (_points_read(axis, bins, samples) for axis in axes)
    return *_outer(y, x, start, width), None, None


def _points_read(axis: Axis, bins: int, samples: int) -> tuple[Tensor, Tensor]:
    """Where and with what weight one axis is read: positions and weights, both [R, bins, 2 * samples].

    Each sample point reads its two neighbours linearly; a point more than a pixel outside reads nothing.
    """
    step = torch.arange(bins * samples, device=axis.start.device)
    bin_extent = axis.bin_extent[:, None]
    # The order of operations of torchvision's kernel, so that rounding puts the points in the same place.
    point = (axis.start[:, None] + (step // samples) * bin_extent) + (
        step % samples + 0.5
    ) * bin_extent / samples
    limit = axis.limit[:, None]
    inside = (point >= -1.0) & (point <= limit)
    point = point.clamp(min=0)
    last = limit - 1
    low = torch.minimum(point.to(torch.int64), last)
    high = torch.minimum(low + 1, last)
    upper = torch.where(low >= last, 0.0, point - low)
    position = torch.stack([low, high], dim=-1)
    weight = torch.stack([1.0 - upper, upper], dim=-1) * inside.unsqueeze(-1) / samples
    return position.view(-1, bins, 2 * samples), weight.view(-1, bins, 2 * samples)


def _adaptive_reads(axes: tuple[Axis, Axis], start: Tensor, width: Tensor, bins: int) -> Reads:
    """As many points per bin as it has pixels: n points, at most a pixel apart, read n + 1 neighbouring pixels.

    So what several points read of one pixel is added up first, (n + 1)² reads instead of (2n)² with the same sum.
    Regions are computed in groups of about the same n on either axis, which is the only thing that the host learns.
    """
    counts = [axis.bin_extent.ceil() for axis in axes]
    sizes = torch.tensor(GROUP_SIZES).to(start.device, non_blocking=True)
    # Float counts beyond the last size, of boxes as large as hundreds of images, lose their farthest points.
    groups = [torch.bucketize(count, sizes).clamp(max=len(GROUP_SIZES) - 1) for count in counts]
    group = groups[0] * len(GROUP_SIZES) + groups[1]
    order = group.argsort(stable=True)
    indices, weights, lengths = [], [], []
    numbers = group.new_zeros(len(GROUP_SIZES) ** 2).scatter_add_(0, group, torch.ones_like(group)).tolist()
    for number, regions in zip(range(len(numbers)), order.split(numbers), strict=True):
        if numbers[number] == 0:
            continue
        reads = [
            _window_read(Axis(*(value[regions] for value in axis)), count[regions], GROUP_SIZES[side], bins)
            for axis, count, side in zip(axes, counts, divmod(number, len(GROUP_SIZES)), strict=True)
        ]
        index, weight = _outer(reads[0], reads[1], start[regions], width[regions])
        indices.append(index.flatten())
        weights.append(weight.flatten())
        lengths.append(torch.full((len(index),), index.shape[1]))
    if not indices:
        return start.new_zeros((0, 1)), axes[0].start.new_zeros((0, 1)), None, None
    ends = torch.cat(lengths).cumsum(0)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]]).to(start.device, non_blocking=True)
    return torch.cat(indices), torch.cat(weights), begins, order.argsort()


#: Points per bin for which regions are computed together; their number is rounded up to the next of these.
GROUP_SIZES = (1, 2, 3, 4, 5, 6, 8, 11, 16, 24, 48, 128)


def _window_read(axis: Axis, count: Tensor, most: int, bins: int) -> tuple[Tensor, Tensor]:
    """As ``_points_read`` for ``count`` [R] points per bin, ≤ ``most``, but a pixel at a time: [R, bins, most + 1]."""
    device = axis.start.device
    step = torch.arange(most, device=device)
    bin_extent = axis.bin_extent[:, None, None]
    begin = axis.start[:, None, None] + torch.arange(bins, device=device)[:, None] * bin_extent
    point = begin + (step + 0.5) * bin_extent / count.clamp(min=1)[:, None, None]
    limit = axis.limit[:, None, None]
    counted = (point >= -1.0) & (point <= limit) & (step < count[:, None, None])
    last = limit - 1
    point = torch.minimum(point.clamp(min=0), last.to(point.dtype))
    pixel = point[..., :1].to(torch.int64) + torch.arange(most + 1, device=device)
    # What linear interpolation at a point gives a pixel falls from 1 to 0 over the distance of one pixel.
    weight = 1 - (point.unsqueeze(-1) - pixel.unsqueeze(-2)).abs()
    weight = (weight.clamp_(min=0) * counted.unsqueeze(-1)).sum(dim=2) / count.clamp(min=1)[:, None, None]
    return torch.minimum(pixel, last), weight
