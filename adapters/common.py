"""What adapters of several codebases share, whatever framework they are written in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

PAD_MULTIPLE = 32


def near(name: str, known: Iterable[str]) -> str:
    """`; did you mean x or y?`, of known names that are spelled nearly so; empty without any."""
    found = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(found)}?" if found else ""


def by_module(sizes: Iterable[tuple[str, int]], depth: int = 2) -> dict[str, int]:
    """Sums by the first ``depth`` parts of the parameter's name."""
    sums: dict[str, int] = {}
    for name, size in sizes:
        key = ".".join(name.split(".")[:-1][:depth]) or name
        sums[key] = sums.get(key, 0) + size
    return sums


def resized_size(old: tuple[int, int], size: Any) -> tuple[int, int]:
    """(height, width) with the ratio kept, as the shared batches have it.

    Args:
        old: (height, width) of the file.
        size: ``input.size`` of the workload: [height, width] to fit into, or a short and a long side.
    """
    if isinstance(size, Mapping):
        scale = min(size["short"] / min(old), size["long"] / max(old))
        limit = (size["long"], size["long"])
    else:
        scale = min(size[0] / old[0], size[1] / old[1])
        limit = tuple(size)
    height, width = (max(1, min(most, int(side * scale + 0.5))) for side, most in zip(old, limit))
    return height, width


def padded_size(sizes: Sequence[tuple[int, int]], size: Any) -> tuple[int, int]:
    """(height, width) of a batch of images of these sizes: ``size`` where it is fixed, else the largest image's,
    rounded up to a multiple of 32."""
    if not isinstance(size, Mapping):
        return tuple(size)
    height, width = (-(-max(side) // PAD_MULTIPLE) * PAD_MULTIPLE for side in zip(*sizes))
    return height, width


class EndlessBatches:
    """Indices of one rank's batches, without end, in the order of the shared batches: the first images fill up the
    last batches; rank r of n has batches r, r + n, …"""

    def __init__(self, images: int, batch_size: int, rank: int, world_size: int) -> None:
        self.images, self.batch_size, self.rank, self.world_size = images, batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        batches = -(-self.images // (self.batch_size * self.world_size)) * self.world_size
        while True:
            for batch in range(self.rank, batches, self.world_size):
                first = batch * self.batch_size
                yield [index % self.images for index in range(first, first + self.batch_size)]
