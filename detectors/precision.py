"""Losses and coordinates in float32, whatever precision the network runs in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def full(x: Tensor) -> Tensor:
    """The tensor in float32; float64 stays."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Without autocast, which would take products and sums of float32 values back to half precision.

    A sum of more than 65,504 pixels overflows in float16, and the slope of a focal loss at probabilities below 0.002
    is 0 there.
    """
    with torch.autocast(device.type, enabled=False):
        yield
