"""Which grid cells have to predict which object (SOLOv2, arXiv:2003.10152), for all objects and levels at once.

Matches ``_get_targets_single`` of mmdet/models/dense_heads/solov2_head.py, rounding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.structures import Target


@dataclass(frozen=True)
class Level:
    """A grid of ``cells`` × ``cells`` for objects whose √(width · height), in pixels, is within ``sizes``.

    ``min_area``: a predicted mask has to have more pixels than this, at stride 4.
    """

    cells: int
    sizes: tuple[float, float]
    min_area: int


class Assignment(NamedTuple):
    """The positives of one image. Cells of all levels are numbered through: level by level, row by row.

    labels: int64 [cells], num_classes where no object is. cell, object: int64 [P], the pairs whose mask is learned.
    A cell that several objects share has the label of the last, and is in a pair with each.
    """

    labels: Tensor
    cell: Tensor
    object: Tensor


def centres_of_mass(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """y, x float32 [N] in pixels and area int64 [N] of masks [N, H, W] of zeros and ones."""
    rows, columns = masks.sum(dim=2), masks.sum(dim=1)
    area = rows.sum(dim=1)
    pixels = area.to(torch.float32).clamp(min=1e-6)
    # Sums of whole numbers: exact, in whatever order.
    y = (rows * torch.arange(masks.shape[1], device=masks.device)).sum(dim=1)
    x = (columns * torch.arange(masks.shape[2], device=masks.device)).sum(dim=1)
    return y / pixels, x / pixels, area


def quarter_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks [N, H, W] of zeros and ones at stride 4, uint8 [N, *size]: 1 where two of four middle pixels are.

    That is what OpenCV's bilinear resize of bytes by 1/4 gives: the mean of the middle 2×2 of each 4×4 block,
    rounded half up. Where H or W is no multiple of 4, zeros complete the last block.
    """
    height, width = size
    masks = F.pad(masks.to(torch.uint8), (0, 4 * width - masks.shape[2], 0, 4 * height - masks.shape[1]))
    upper, lower = masks[:, 1::4], masks[:, 2::4]
    count = upper[:, :, 1::4] + upper[:, :, 2::4] + lower[:, :, 1::4] + lower[:, :, 2::4]
    return (count >= 2).to(torch.uint8)


@torch.no_grad()
def assign(
    targets: Sequence[Target], levels: Sequence[Level], num_classes: int, image_size: tuple[int, int]
) -> list[Assignment]:
    """The cells of each object of each image, padding included, of image_size (height, width).

    The host waits for a device where the targets have no ``pairs`` yet, else never.
    """
    if any(target.pairs is None for target in targets):
        targets = with_pairs(targets, image_size, levels=levels)
    total = sum(level.cells**2 for level in levels)
    found = []
    for target in targets:
        assert target.pairs is not None
        cell, number = target.pairs
        owner = torch.full((total,), -1, device=cell.device).scatter_reduce_(0, cell, number, "amax")
        background = target.labels.new_full((1,), num_classes)  # of owner -1
        found.append(Assignment(torch.cat([target.labels, background])[owner], cell, number))
    return found


@torch.no_grad()
def with_pairs(
    targets: Sequence[Target], image_size: tuple[int, int], *, levels: Sequence[Level], centre: float = 0.2
) -> list[Target]:
    """The targets with their ``pairs``, of images of image_size (height, width), padding included.

    An object is learned by every level in whose range its size is, there by the cells that its box, shrunk to
    ``centre`` of its extent and moved to the mask's centre of mass, touches; at most the 3×3 around that centre. An
    object without a pixel has none. On a device the host waits once, for the number of pairs: loaders call this.
    """
    boxes = torch.cat([target.boxes for target in targets])
    device = boxes.device
    cells = torch.tensor([level.cells for level in levels]).to(device, non_blocking=True)
    smallest, largest = (
        torch.tensor([level.sizes for level in levels]).to(device, non_blocking=True).unbind(1)
    )
    extent = boxes[:, 2:] - boxes[:, :2]
    size = extent.prod(dim=1).sqrt()[:, None]
    centres = [centres_of_mass(target.masks) for target in targets if target.masks is not None]
    y, x, area = (torch.cat(one) for one in zip(*centres, strict=True))
    learned = (size >= smallest) & (size <= largest) & (area > 0)[:, None]  # [N, levels]
    rows, in_rows = _cells_around(y, 0.5 * extent[:, 1] * centre, image_size[0], cells)
    columns, in_columns = _cells_around(x, 0.5 * extent[:, 0] * centre, image_size[1], cells)
    hit = learned[:, :, None, None] & in_rows[:, :, :, None] & in_columns[:, :, None, :]
    objects = [len(target.boxes) for target in targets]
    counts = torch.stack([one.sum() for one in hit.split(objects)]).tolist()
    pair = hit.flatten().to(torch.uint8).argsort(descending=True, stable=True)[: sum(counts)]
    index, level, row, column = pair // (9 * len(levels)), pair // 9 % len(levels), pair // 3 % 3, pair % 3
    first = (cells**2).cumsum(0) - cells**2
    cell = first[level] + rows[index, level, row] * cells[level] + columns[index, level, column]
    starts = accumulate(objects, initial=0)
    return [
        target._replace(pairs=torch.stack([own, number - start]))
        for target, own, number, start in zip(
            targets, cell.split(counts), index.split(counts), starts, strict=False
        )
    ]


def _cells_around(centre: Tensor, reach: Tensor, extent: int, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Along one axis.

    The cell of centre [N] and its two neighbours, int64 [N, levels, 3], and which of the three centre ± reach
    touches. ``extent``: pixels of the axis; cells: [levels].
    """
    width = (1.0 / cells.double()).float()

    def cell_of(position: Tensor) -> Tensor:
        # Two divisions, as the reference: at the border of two cells the last bit decides.
        return torch.div((position / extent)[:, None], width, rounding_mode="trunc").to(torch.int64)

    around = cell_of(centre).unsqueeze(-1) + torch.arange(-1, 2, device=centre.device)
    low = cell_of(centre - reach).clamp(min=0).unsqueeze(-1)
    high = torch.minimum(cell_of(centre + reach), cells - 1).unsqueeze(-1)
    return around, (around >= low) & (around <= high)
