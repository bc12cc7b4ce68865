"""Where oneDNN multiplies matrices faster than torch: both, interleaved, for the shapes that detectors have.

    python -m benchmarks.products [--threads N] [--repeats R]

Best of the repeats in milliseconds, torch and ours and how many times as fast, of a [N, K] times b [K, M]. Rows that
`detectors.products` leaves to torch on this machine have a star.
"""

from __future__ import annotations

from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.timing import best_ms, repeats_from
from detectors.cpu import products

#: What it is, N, K, M, and which of a and b is a transposed view, as a layer's weight [outputs, inputs] is.
SHAPES = (
    ("regions to hidden", 1024, 12544, 1024, "b"),
    ("regions to hidden, inference", 2000, 12544, 1024, "b"),
    ("few regions to hidden", 200, 12544, 1024, "b"),
    ("gradient of regions", 1024, 1024, 12544, ""),
    ("gradient of that weight", 12544, 1024, 1024, "a"),
    ("hidden to hidden", 1024, 1024, 1024, "b"),
    ("hidden to classes", 1024, 1024, 81, "b"),
    ("pixels of masks to four each", 19600, 256, 1024, "b"),
    ("gradient of that weight", 1024, 19600, 256, "a"),
    ("columns of a deformable convolution", 1600, 2304, 256, ""),
    ("gradient of columns", 1600, 256, 2304, ""),
    ("gradient of that weight", 2304, 1600, 256, "a"),
)


def matrix(rows: int, columns: int, *, transposed: bool) -> Tensor:
    return torch.randn(columns, rows).T if transposed else torch.randn(rows, columns)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    repeats = repeats_from(arguments, __doc__)
    table = Table("product", "N × K × M", "ms: torch, ours, ratio")
    for what, n, k, m, turned in SHAPES:
        a, b = matrix(n, k, transposed=turned == "a"), matrix(k, m, transposed=turned == "b")
        theirs, ours = best_ms([partial(torch.mm, a, b), partial(products.by_convolution, a, b)], repeats)
        star = "" if products.worthwhile(a, b) else " *"
        table.add_row(what, f"{n} × {k} × {m}", f"{theirs:.2f}  {ours:.2f}  {theirs / ours:.2f}{star}")
    Console().print(table)


if __name__ == "__main__":
    main()
