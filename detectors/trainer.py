"""Steps of a training: losses, gradients over parts and ranks, the optimizer, the average of the weights."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectors import runtime, training_state
from detectors.coco import Batch
from detectors.config import Config, Optimizer
from detectors.ema import EMA
from detectors.parameter_rules import Rule, parameter_groups
from detectors.runtime import Ranks
from detectors.schedule import Schedule
from detectors.structures import Target

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Losses(nn.Module):
    """The model's losses as one ``forward``, which is what DistributedDataParallel can wrap."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, image_sizes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The model's ``losses``."""
        return self.model.losses(images, image_sizes, targets)


def seed_step(seed: int, iteration: int, rank: int) -> None:
    """Let the random numbers of a step follow from its number, so that there is no generator to store."""
    first, second = np.random.SeedSequence((seed, iteration, rank)).generate_state(2, np.uint32).tolist()
    torch.manual_seed((first << 32 | second) >> 1)


def optimizer_groups(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    """Trainable parameters by rule; ``lr_factor`` of a group is what the schedule's rate is multiplied with.

    Raises ValueError for a rule that fits no trainable parameter, which is a mistake in its expression.
    """
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for rule in optimizer.rules:
        if not any(re.search(rule.match, name) for name in names):
            raise ValueError(f"{rule.match!r} is found in no trainable parameter's name")
    rules = [Rule(*astuple(rule)) for rule in optimizer.rules]
    groups = parameter_groups(model, lr=1.0, weight_decay=optimizer.weight_decay, rules=rules)
    return [{**group, "lr_factor": group["lr"]} for group in groups]


class Trainer:
    """A model in training. ``step`` makes one step of it; nothing in a step reads a value back from the device."""

    def __init__(self, model: nn.Module, config: Config, schedule: Schedule, ranks: Ranks) -> None:
        self.model = model
        self.config = config
        self.schedule = schedule
        self.ranks = ranks
        self.dtype = DTYPES[config.precision]
        losses: nn.Module = Losses(model)
        if config.compile:
            losses = runtime.compiled(losses)
        # Statistics of batch normalisation stay each rank's own, as in detectron2 and mmdetection.
        how = {
            "broadcast_buffers": False,
            "gradient_as_bucket_view": True,
            "static_graph": config.optimizer.accumulate == 1,  # no_sync does not go with it
        }
        self.losses = DistributedDataParallel(losses, **how) if ranks.count > 1 else losses
        groups = optimizer_groups(model, config.optimizer)
        settings = config.optimizer
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=schedule.lr, momentum=settings.momentum, fused=True)
            if settings.name == "sgd"
            else torch.optim.AdamW(groups, lr=schedule.lr, betas=settings.betas, fused=True)
        )
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=config.precision == "float16")
        self.ema = None if config.ema is None else EMA(model, config.ema)

    def step(self, iteration: int, batch: Batch) -> dict[str, Tensor]:
        """Loss terms of the batch, before the step."""
        seed_step(self.config.seed, iteration, self.ranks.rank)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.lr_at(iteration) * group["lr_factor"]
        losses = self.gradients(batch)
        if self.config.optimizer.clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.optimizer.clip_norm, foreach=True)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update()
        return losses

    def gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Add to the gradients (times the scale of float16), averaged over ranks; loss terms."""
        parts = batch.parts(self.config.optimizer.accumulate)
        found: list[dict[str, Tensor]] = []
        for place, part in enumerate(parts, start=1):
            # Ranks wait for each other's gradients after the last part only.
            alone = place < len(parts) and isinstance(self.losses, DistributedDataParallel)
            with self.losses.no_sync() if alone else contextlib.nullcontext():
                found.append(self._gradients(part, share=1 / len(parts)))
        return {name: torch.stack([one[name] for one in found]).mean(dim=0) for name in found[0]}

    def _gradients(self, batch: Batch, *, share: float) -> dict[str, Tensor]:
        """Of a part of a batch, whose loss counts by its ``share``."""
        autocast = torch.autocast(
            self.ranks.device.type, self.dtype, enabled=self.dtype is not torch.float32, cache_enabled=True
        )
        with autocast:
            losses = self.losses(batch.images, batch.sizes(), batch.targets)
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
        self.scaler.scale(total * share if share < 1 else total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def evaluated_model(self) -> nn.Module:
        """The averaged model if there is one, else the model itself."""
        return self.model if self.ema is None else self.ema.model

    def state(self, iteration: int) -> training_state.State:
        """What a checkpoint holds after so many steps."""
        return training_state.state_of(
            iteration, self.model, self.optimizer, self.ema, self.scaler, self.config.as_dict()
        )

    def restore(self, state: training_state.State) -> int:
        """Go on from what ``state`` gave; returns the iteration to go on with."""
        return training_state.restore(state, self.model, self.optimizer, self.ema, self.scaler)
