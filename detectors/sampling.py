"""Choosing the boxes that a loss is computed on."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from detectors.boxes import NEGATIVE, POSITIVE


def positions(*flags: Tensor) -> list[Tensor]:
    """Where each of several tensors bool [N_i] is true, int64 [P_i]: the host waits for a device once for all."""
    if flags[0].device.type == "cpu" or torch.compiler.is_compiling():
        return [one.nonzero().squeeze(1) for one in flags]
    counts = torch.stack([one.sum() for one in flags]).tolist()
    orders = (one.to(torch.uint8).argsort(descending=True, stable=True) for one in flags)
    return [order[:count] for order, count in zip(orders, counts, strict=True)]


class Sample(NamedTuple):
    """What a loss is computed on; positives come first, padding last.

    index: int64 [B, S] into the candidates. positive: bool [B, S]. valid: bool [B, S], False where an image had fewer
    candidates than S.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor


class BalancedSampler:
    """At most ``size`` candidates per image, at random, up to ``positive_fraction`` of them positive.

    The rule of torchvision's ``BalancedPositiveNegativeSampler``, with tensors of fixed shape, so that a device never
    has to tell the host how many there are. ``keys`` draws the random order; it can be replaced to fix a sample.
    """

    def __init__(self, size: int, positive_fraction: float) -> None:
        self.size = size
        self.max_positive = int(size * positive_fraction)

    def keys(self, role: Tensor) -> Tensor:
        """A number in [0, 1) for each candidate: of a role, those with the largest are taken."""
        return torch.rand(role.shape, device=role.device)

    def __call__(self, role: Tensor) -> Sample:
        """role: [B, N] of POSITIVE, NEGATIVE, IGNORED."""
        keys = self.keys(role)
        candidates = role.shape[1]
        positive_key, positive_index = torch.where(role == POSITIVE, keys, -1.0).topk(
            min(self.max_positive, candidates), dim=1
        )
        negative_key, negative_index = torch.where(role == NEGATIVE, keys, -1.0).topk(
            min(self.size, candidates), dim=1
        )
        positive = positive_key >= 0
        rank = torch.arange(negative_key.shape[1], device=role.device)
        negative = (negative_key >= 0) & (rank < self.size - positive.sum(dim=1, keepdim=True))
        index = torch.cat([positive_index, negative_index], dim=1)
        positive = torch.cat([positive, torch.zeros_like(negative)], dim=1)
        valid = torch.cat([positive[:, : positive_index.shape[1]], negative], dim=1)
        order = valid.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : self.size]
        return Sample(index.gather(1, order), positive.gather(1, order), valid.gather(1, order))
