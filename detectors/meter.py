"""Numbers of a training: means of losses and times, lines of the log, files for plots."""

from __future__ import annotations

import csv
import secrets
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detectors import runtime
from detectors.runtime import MIB, Failed, Ranks
from detectors.schedule import Schedule


class Meter:
    """Means since the last line of the log. Losses are added up on the device and read when a line is due."""

    def __init__(self, ranks: Ranks, batch: int) -> None:
        self.ranks = ranks
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        """Begin anew, after a line."""
        self.start_s = time.perf_counter()
        self.data_s = 0.0
        self.count = 0
        self.names: list[str] = []
        self.sums: Tensor | None = None
        self.numbers: dict[str, float] = {}

    def add(self, losses: Mapping[str, Tensor], data_s: float) -> None:
        """Count a step that waited ``data_s`` for its batch."""
        values = torch.stack([loss.float() for loss in losses.values()])
        self.sums = values if self.sums is None else self.sums + values
        # Readers of the log know a loss by its name.
        self.names = [name if "loss" in name else f"loss_{name}" for name in losses]
        self.data_s += data_s
        self.count += 1

    def pause(self, seconds: float) -> None:
        """Take time out that was no training."""
        self.start_s += seconds

    def losses(self) -> dict[str, float]:
        """Means over steps and ranks, their sum first. Raises Failed for one that is no number."""
        assert self.sums is not None
        means = self.ranks.mean(self.sums / self.count).tolist()
        losses = {"loss": sum(means), **dict(zip(self.names, means, strict=True))}
        if not np.isfinite(means).all():
            found = "  ".join(f"{name}: {value:g}" for name, value in losses.items())
            raise Failed(
                f"a loss is no number ({found}); try a lower rate, a longer warm-up or optimizer.clip_norm"
            )
        return losses

    def line(self, iteration: int, schedule: Schedule) -> str:
        """The line of the log after step ``iteration`` = 1, 2, …; its parts are described in the README.

        ``numbers`` then holds its values.
        """
        losses = self.losses()  # first: on a GPU it waits for the steps to end
        s_per_iter = (time.perf_counter() - self.start_s) / self.count
        left = timedelta(seconds=round(s_per_iter * (schedule.iterations - iteration)))
        memory = self.ranks.largest(runtime.max_memory_bytes(self.ranks.device)) / MIB
        self.numbers = {
            "lr": schedule.lr_at(iteration - 1),
            **losses,
            "s_per_iter": s_per_iter,
            "data_s": self.data_s / self.count,
            "max_mem_mb": memory,
        }
        shown = "  ".join(f"{name}: {value:.4g}" for name, value in losses.items())
        return (
            f"iter: {iteration}/{schedule.iterations}  lr: {schedule.lr_at(iteration - 1):.6g}  {shown}  eta: {left}  "
            f"s/iter: {s_per_iter:.4f} (data {self.data_s / self.count:.4f})  "
            f"images/s: {self.batch / s_per_iter:.2f}  max_mem: {memory:.0f} MB"
        )


class Records:
    """Numbers by iteration and name, for plots: `metrics.csv`, which a resumed training goes on with, and others'.

    Args:
        output: folder of the training.
        kinds: "csv", "tensorboard", "wandb"; ``preflight`` has looked for the packages.
        config: what Weights & Biases shows beside the numbers.
    """

    def __init__(self, output: Path, kinds: Sequence[str], config: Mapping[str, Any] | None = None) -> None:
        self.file = output / "metrics.csv" if "csv" in kinds else None
        self.writer = _tensorboard(output) if "tensorboard" in kinds else None
        self.wandb = _wandb(output, config) if "wandb" in kinds else None

    def add(self, iteration: int, numbers: Mapping[str, float]) -> None:
        """Keep some numbers of an iteration."""
        if self.file is not None:
            new = not self.file.exists()
            with self.file.open("a", newline="") as file:
                rows = csv.writer(file)
                if new:
                    rows.writerow(("iteration", "name", "value"))
                rows.writerows((iteration, name, value) for name, value in numbers.items())
        if self.writer is not None:
            for name, value in numbers.items():
                self.writer.add_scalar(name, value, iteration)
            self.writer.flush()
        if self.wandb is not None:
            self.wandb.log(dict(numbers), step=iteration)


def _tensorboard(output: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(output / "tensorboard"))


def _wandb(output: Path, config: Mapping[str, Any] | None) -> Any:
    """A run of Weights & Biases; a training that goes on in a folder goes on with the folder's run."""
    import wandb

    known = output / "wandb_id"
    if not known.exists():
        known.write_text(secrets.token_hex(4))
    return wandb.init(
        project="detectors",
        id=known.read_text(),
        name=output.absolute().name,
        dir=str(output),
        config=dict(config or {}),
        resume="allow",
    )
