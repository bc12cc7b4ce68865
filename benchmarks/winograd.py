"""Where Winograd's convolution is faster than torch's: both, interleaved, for the shapes that detectors have.

    python -m benchmarks.winograd [--threads N] [--repeats R]

Best of the repeats in milliseconds, torch and ours and how many times as fast: forward, gradient of the input, gradient
of the weight (of which torch gets the faster memory layout, copies included). Rows that `detectors.winograd` leaves to
torch are shown too, with a star.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import best_ms, repeats_from
from detectors.cpu import winograd

#: Images, channels, height and width, output channels: pyramid levels and towers, stages of a ResNet, regions.
SHAPES = (
    (2, 256, 128, 256), (2, 256, 128, 128), (2, 256, 64, 256), (2, 256, 40, 256), (2, 256, 32, 256), (2, 256, 20, 256),
    (2, 256, 16, 256), (2, 256, 10, 256), (2, 512, 16, 512), (2, 128, 64, 128), (2, 128, 32, 128), (2, 64, 128, 64),
    (2, 64, 80, 64), (100, 256, 14, 256), (20, 256, 14, 256),
)  # fmt: skip
SETTINGS = ((1, 1), (1, 1), (1, 1), 1)


def of_torch(which: tuple[bool, bool, bool], layout: torch.memory_format, *sides: Tensor) -> Any:
    gradient, x, weight = (side.contiguous(memory_format=layout) for side in sides)
    backward = torch.ops.aten.convolution_backward
    return backward(gradient, x, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1, which)


def passes(images: int, channels: int, size: int, outputs: int, repeats: int) -> list[str]:
    """A row of the table."""
    last, first = torch.channels_last, torch.contiguous_format
    x = torch.randn(images, channels, size, size).contiguous(memory_format=last)
    gradient = torch.randn(images, outputs, size, size).contiguous(memory_format=last)
    weight = torch.randn(outputs, channels, 3, 3).contiguous(memory_format=last)
    sides = gradient, x, weight
    forward = best_ms(
        [partial(F.conv2d, x, weight, padding=1), partial(winograd.convolution, x, weight, None)], repeats
    )
    of_input = best_ms(
        [
            partial(of_torch, (True, False, False), last, *sides),
            partial(winograd.gradient_of_input, gradient, weight),
        ],
        repeats,
    )
    copied, straight, ours = best_ms(
        [
            partial(of_torch, (False, True, False), first, *sides),
            partial(of_torch, (False, True, False), last, *sides),
            partial(winograd.gradient_of_weight, x, gradient),
        ],
        repeats,
    )
    row = [f"{images}×{channels}×{size}×{size} → {outputs}", str(images * (-(-size // 4)) ** 2)]
    of_weight = [min(copied, straight), ours]
    for what, (theirs, mine) in (("forward", forward), ("input", of_input), ("weight", of_weight)):
        star = "" if winograd.worthwhile(x, weight, SETTINGS, what) else " *"
        row.append(f"{theirs:.1f}  {mine:.1f}  {theirs / mine:.2f}{star}")
    return row


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    repeats = repeats_from(arguments, __doc__)
    table = Table(
        "images", "tiles", "forward", "gradient of input", "of weight", title="ms: torch, ours, ratio"
    )
    for shape in track(SHAPES, transient=True):
        table.add_row(*passes(*shape, repeats=repeats))
    Console().print(table)


if __name__ == "__main__":
    main()
