"""3×3 convolutions on a CPU with a quarter of the multiplications: Winograd's minimal filtering F(4×4, 3×3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), section 4.3. Of every tile d of 6×6
inputs, overlapping by two, and every kernel g come 4×4 outputs

    A' [(G g G') * (B' d B)] A

where * multiplies 36 pairs of elements; summed over the input channels that makes 36 matrix products, of tiles by
channels with channels by channels. Libraries for GPUs choose this by themselves; oneDNN does not on CPUs with AVX2.
With AVX-512 its direct convolutions are twice as fast and win, so there all is left to them.

The gradient of the input is a convolution too, with the kernels turned. That of the weight is the adjoint in g,

    G' [sum over tiles of (B' d B) * (A y A')] G,   y: the gradient of a tile's 4×4 outputs.

Transforms of tiles are matrix products with the Kronecker squares of B', A' and A. Tiles are processed some dozens at a
time, so that what lies between two products stays in the cache. Rounding: 1e-5 of the largest output, where a direct
sum has 2e-6; so `detectors.layers` takes it for gradients and for inference, not for the forward pass of a training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

#: Fewest channels, and fewest tiles of 256 channels: below them what the transforms cost is not won back
#: (`benchmarks/winograd.py`). Transformed kernels that are larger have to serve more tiles.
FEWEST_CHANNELS = {"forward": 128, "weight": 64}
FEWEST_TILES = {"forward": 64, "weight": 32}
#: Tiles at a time and thread. With 256 channels the two arrays between the products take 5 MB.
TILES_AT_ONCE = 64

_INPUT = torch.tensor(
    [
        [4.0, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)  # B'
_KERNEL = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)  # G
_OUTPUT = torch.tensor(
    [
        [1.0, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)  # A'
INPUT, KERNEL, OUTPUT = (torch.kron(one, one) for one in (_INPUT, _KERNEL, _OUTPUT))
OUTPUT_ADJOINT, KERNEL_ADJOINT = OUTPUT.T.contiguous(), KERNEL.T.contiguous()


def worthwhile(x: Tensor, weight: Tensor, settings: Sequence[Any], what: str = "forward") -> bool:
    """Whether this is a convolution that is faster so. ``settings``: stride, padding, dilation as pairs, and groups;
    ``what``: "forward" (and the gradient of the input) or "weight" (its gradient)."""
    stride, padding, dilation, groups = settings
    tiles = len(x) * math.prod(_grid(x))
    return (
        x.device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability() == "AVX2"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and tuple(stride) == tuple(padding) == tuple(dilation) == (1, 1)
        and groups == 1
        and min(weight.shape[:2]) >= FEWEST_CHANNELS[what]
        and tiles >= FEWEST_TILES[what] * max(1.0, math.prod(weight.shape[:2]) / 256**2)
        and x.is_contiguous(memory_format=torch.channels_last)
    )


@torch.library.custom_op("detectors::winograd", mutates_args=())
def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of images [B, C, H, W] with weight [C', C, 3, 3], padded by one: [B, C', H, W] in channels-last memory."""
    return _convolved(x, weight.permute(2, 3, 1, 0), bias)


@convolution.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    shape = len(x), len(weight), *x.shape[2:]
    return x.new_empty(shape).contiguous(memory_format=torch.channels_last)


@register_flop_formula(torch.ops.detectors.winograd)
def _flops(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Those of the convolution that it is, so that work is counted alike whoever does it."""
    return conv_flop_count(x, weight, out_shape)


def gradient_of_input(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient [B, C', H, W] of the outputs to that of the images [B, C, H, W]."""
    return _convolved(gradient, weight.flip(2, 3).permute(2, 3, 0, 1), None)


def gradient_of_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """Images [B, C, H, W] and gradient [B, C', H, W] of the outputs to that of the weight [C', C, 3, 3]."""
    channels, outputs = x.shape[1], gradient.shape[1]
    grid = _grid(x)
    images, gradients = _padded(x, grid, 1), _padded(gradient, grid, 0)
    total = x.new_zeros(36, channels, outputs)
    for part in _parts(len(x), *grid):
        tiles = INPUT @ _tiles(images, part, 6).reshape(36, -1)
        given = OUTPUT_ADJOINT @ _tiles(gradients, part, 4).reshape(16, -1)
        total.baddbmm_(tiles.view(36, -1, channels).transpose(1, 2), given.view(36, -1, outputs))
    found = (KERNEL_ADJOINT @ total.view(36, -1)).view(3, 3, channels, outputs)
    return found.permute(3, 2, 0, 1)


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """weight: [3, 3, C, C']."""
    count, _, height, width = x.shape
    channels, outputs = weight.shape[2:]
    grid = _grid(x)
    images = _padded(x, grid, 1)
    kernels = (KERNEL @ weight.reshape(9, -1)).view(36, channels, outputs)
    found = torch.empty(count, outputs, height, width, memory_format=torch.channels_last)
    pixels_of = found.permute(0, 2, 3, 1)
    for part in _parts(count, *grid):
        tiles = INPUT @ _tiles(images, part, 6).reshape(36, -1)
        products = tiles.view(36, -1, channels) @ kernels
        (first, last), (top, bottom) = part
        tile = (OUTPUT @ products.view(36, -1)).view(4, 4, last - first, bottom - top, grid[1], outputs)
        pixels = tile.permute(2, 3, 0, 4, 1, 5).reshape(
            last - first, 4 * (bottom - top), 4 * grid[1], outputs
        )
        place = pixels_of[first:last, 4 * top : 4 * bottom]
        pixels = pixels[:, : place.shape[1], :width]
        if bias is None:
            place.copy_(pixels)
        else:
            torch.add(pixels, bias, out=place)
    return found


Part = tuple[tuple[int, int], tuple[int, int]]


def _grid(x: Tensor) -> tuple[int, int]:
    """Tiles in a column and in a row."""
    return -(-x.shape[2] // 4), -(-x.shape[3] // 4)


def _parts(count: int, rows: int, columns: int) -> Iterator[Part]:
    """Whole images, or rows of tiles of one image, of about as many tiles as are processed at once."""
    at_once = TILES_AT_ONCE * torch.get_num_threads()
    images = max(1, at_once // (rows * columns))
    step = max(1, at_once // columns)
    for first in range(0, count, images):
        for top in range(0, rows, step):
            yield (first, min(count, first + images)), (top, min(rows, top + step))


def _padded(x: Tensor, grid: tuple[int, int], border: int) -> Tensor:
    """[B, C, H, W] to [B, H', W', C] with whole tiles and a border on every side."""
    bottom, right = (4 * tiles - size + border for tiles, size in zip(grid, x.shape[2:], strict=True))
    return F.pad(x.permute(0, 2, 3, 1), (0, 0, border, right, border, bottom)).contiguous()


def _tiles(images: Tensor, part: Part, size: int) -> Tensor:
    """Tiles of so many pixels, one every four: a view [size, size, images, rows, columns, C]."""
    (first, last), (top, bottom) = part
    image, row, column, channel = images.stride()
    columns = (images.shape[2] - size) // 4 + 1
    shape = size, size, last - first, bottom - top, columns, images.shape[3]
    strides = row, column, image, 4 * row, 4 * column, channel
    return images.as_strided(shape, strides, images.storage_offset() + first * image + 4 * top * row)
