"""Anchors: reference boxes at every position of a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(scales: Sequence[float], ratios: Sequence[float], *, rounded: bool = True) -> Tensor:
    """Boxes [len(ratios) * len(scales), 4] around the origin; ratio = height / width, area = scale².

    Order and rounding as torchvision/models/detection/anchor_utils.py, ``AnchorGenerator.generate_anchors``; not
    ``rounded`` as mmdet/models/task_modules/prior_generators/anchor_generator.py.
    """
    height_factor = torch.sqrt(torch.tensor(ratios, dtype=torch.float32))
    sizes = torch.tensor(scales, dtype=torch.float32)
    widths = ((1 / height_factor)[:, None] * sizes).flatten()
    heights = (height_factor[:, None] * sizes).flatten()
    cells = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
    return cells.round() if rounded else cells


def level_anchors(cells: Tensor, grid: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Cell anchors [A, 4] moved to every position of a grid (height, width): [height * width * A, 4]."""
    shift_y = torch.arange(grid[0], dtype=torch.float32, device=cells.device) * stride[0]
    shift_x = torch.arange(grid[1], dtype=torch.float32, device=cells.device) * stride[1]
    y, x = torch.meshgrid(shift_y, shift_x, indexing="ij")
    shifts = torch.stack([x, y, x, y], dim=-1).view(-1, 1, 4)
    return (shifts + cells).view(-1, 4)


def pyramid_anchors(
    scales: tuple[tuple[float, ...], ...],
    ratios: tuple[float, ...],
    grids: tuple[tuple[int, int], ...],
    image_size: tuple[int, int],
    device: torch.device,
    *,
    rounded: bool = True,
    strides: tuple[int, ...] | None = None,
) -> Tensor:
    """Anchors of all levels one after the other, [N, 4]; within a level in order (row, column, ratio and scale).

    ``scales``: per level. Without ``strides`` per level, that of a level is the image's size over the grid's, rounded
    down, as in torchvision: other than the nominal one where the grid's size was rounded up. Only the anchors of one
    cell are sent to the device.
    """
    levels = []
    for level, (level_scales, grid) in enumerate(zip(scales, grids, strict=True)):
        stride = (
            (strides[level], strides[level])
            if strides is not None
            else (image_size[0] // grid[0], image_size[1] // grid[1])
        )
        cells = cell_anchors(level_scales, ratios, rounded=rounded).to(device, non_blocking=True)
        levels.append(level_anchors(cells, grid, stride))
    return torch.cat(levels)
