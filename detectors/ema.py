"""Exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from detectors.layers import FrozenBatchNorm2d


class EMA:
    """Keeps a copy, ``model``, the given model that follows its weights: e ← d · e + (1 − d) · w.

    d = min(decay, (1 + t) / (10 + t)) at update t = 0, 1, … (the warm-up of TensorFlow's ExponentialMovingAverage and
    PaddleDetection's ``ModelEMA`` 'threshold'); without ``warm_up`` it is always the decay, as in mmengine.
    Statistics of batch normalisation are averaged, counters copied.
    Values that training never changes, those of frozen layers, are shared with the model and cost nothing;
    so move the model to its device first.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9998, warm_up: bool = True) -> None:
        self.decay = decay
        self.warm_up = warm_up
        self.updates = 0
        constant = {id(value): value for value in _constants(model)}
        self.model = copy.deepcopy(
            model, constant
        ).eval()  # what is in the memo counts as copied, so is shared
        self.model.requires_grad_(False)
        followed = [
            (average, value)
            for average, value in zip(_state(self.model), _state(model), strict=True)
            if average is not value
        ]
        self._floats = [pair for pair in followed if pair[1].is_floating_point()]
        self._counters = [pair for pair in followed if not pair[1].is_floating_point()]

    def decay_at(self, update: int) -> float:
        """The decay of an update, of which the first is number 0."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warm_up else self.decay

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the model's weights. Nothing is read back from the device."""
        averages, values = (list(tensors) for tensors in zip(*self._floats, strict=True))
        torch._foreach_lerp_(averages, values, 1 - self.decay_at(self.updates))
        for average, value in self._counters:
            average.copy_(value)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The averaged model's state and the number of updates, which the decay depends on."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave. Load the model itself first: shared values are those of the model."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def _state(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _constants(model: nn.Module) -> Iterator[Tensor]:
    for parameter in model.parameters():
        if not parameter.requires_grad:
            yield parameter
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            yield from module.buffers()
