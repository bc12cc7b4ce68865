"""Where oneDNN multiplies matrices faster than torch: both, interleaved, for the shapes that detectors have.

    python -m benchmarks.products [--threads N] [--repeats R]

Best of the repeats in milliseconds, torch and ours and how many times as fast, of a [N, K] times b [K, M]. Rows that
`detectors.products` leaves to torch on this machine have a star.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.winograd import best_ms
from detectors import products

#: N, K, M and what they are: of a transposed side with a T.
SHAPES = (
    ("regions to hidden", 1024, 12544, 1024),
    ("regions to hidden, inference", 2000, 12544, 1024),
    ("few regions to hidden", 200, 12544, 1024),
    ("gradient of regions", 1024, 1024, 12544),
    ("T: gradient of that weight", 12544, 1024, 1024),
    ("hidden to hidden", 1024, 1024, 1024),
    ("hidden to classes", 1024, 1024, 81),
    ("pixels of masks to four each", 19600, 256, 1024),
    ("T: gradient of that weight", 1024, 19600, 256),
    ("columns of a deformable convolution", 1600, 2304, 256),
    ("gradient of columns", 1600, 256, 2304),
    ("T: gradient of that weight", 2304, 1600, 256),
)


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    table = Table("product", "N × K × M", "ms: torch, ours, ratio")
    for what, n, k, m in SHAPES:
        a = torch.randn(k, n).T if what.startswith("T") else torch.randn(n, k)
        b = (
            torch.randn(m, k).T if " to " in what else torch.randn(k, m)
        )  # a layer's weight is [outputs, inputs]
        theirs, ours = best_ms(
            [partial(torch.mm, a, b), partial(products.by_convolution, a, b)], chosen.repeats
        )
        star = "" if products.worthwhile(a, b) else " *"
        table.add_row(what, f"{n} × {k} × {m}", f"{theirs:.2f}  {ours:.2f}  {theirs / ours:.2f}{star}")
    Console().print(table)


if __name__ == "__main__":
    main()
