"""Checkpoints of a training: everything that the next step depends on, written whole or not at all.

A step depends on the weights, the optimizer's momenta, the average, the loss scale and the number of the iteration.
The rate, the order of the images, their augmentation and the random numbers of the step follow from the seed and that
number (``schedule``, ``coco``, ``train.seed_step``), so there is nothing else to store.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detectors.config import ConfigError
from detectors.ema import EMA

VERSION = 1
#: The checkpoint of the highest AP.
BEST = "best.pt"
_NAME = re.compile(r"checkpoint_(\d{8})\.pt")

State = dict[str, Any]


def state_of(
    iteration: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    scaler: torch.amp.GradScaler,
    config: State,
) -> State:
    """Tensors and plain values only. ``iteration``: how many steps have been made."""
    return {
        "version": VERSION,
        "iteration": iteration,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": None if ema is None else ema.state_dict(),
        "scaler": scaler.state_dict(),
        "config": config,
    }


def restore(
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA | None,
    scaler: torch.amp.GradScaler,
) -> int:
    """Put a state back; returns the iteration to go on with.

    An average that is new begins with the weights. Raises ConfigError for the state of another model or optimizer.
    """
    try:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        told = str(error).splitlines()[-1].strip()
        raise ConfigError(f"the checkpoint is of another model or optimizer: {told}") from None
    if ema is not None and state["ema"] is not None:
        ema.load_state_dict(state["ema"])
    elif ema is not None:
        ema.model.load_state_dict(state["model"])
    scaler.load_state_dict(state["scaler"])
    return state["iteration"]


def save(state: State, folder: Path, keep: int) -> Path:
    """Write ``checkpoint_<iteration>.pt`` and delete all but the last ``keep``; or ``best.pt`` of a state with an AP.

    The file gets its name when all of it is on the disk, so a killed or full machine leaves the one before in place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    is_best = state.get("best") is not None
    path = folder / (BEST if is_best else f"checkpoint_{state['iteration']:08d}.pt")
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    for old in checkpoints(folder)[:-keep]:
        old.unlink(missing_ok=True)
    for left_over in folder.glob("*.part"):  # of a process that was killed
        with contextlib.suppress(OSError):
            left_over.unlink()
    return path


def best(folder: Path) -> tuple[float, int]:
    """AP and iteration of the best checkpoint of a folder; less than every AP where there is none."""
    if not (folder / BEST).exists():
        return -1.0, 0
    state = read(folder / BEST)
    return state["best"], state["iteration"]


def checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path for path in folder.glob("checkpoint_*.pt") if _NAME.fullmatch(path.name))


def read(path: str | Path) -> State:
    """A checkpoint's content on the CPU. Raises ConfigError for a file that is none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError("no such checkpoint", str(path)) from None
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        raise ConfigError(f"not a checkpoint of detectors: {str(error).splitlines()[0]}", str(path)) from None
    if not isinstance(state, dict) or "iteration" not in state or "model" not in state:
        raise ConfigError("not a checkpoint of detectors.train", str(path))
    if state["version"] != VERSION:
        raise ConfigError(f"a checkpoint of version {state['version']}, not {VERSION}", str(path))
    return state


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file was written by ``save``, of whatever version."""
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except Exception:
        return False
    return isinstance(state, dict) and {"version", "iteration", "model"} <= state.keys()


def weights(state: State, *, averaged: bool = True) -> dict[str, Tensor]:
    """The model's weights, the averaged ones if there are some and they are wanted."""
    return state["ema"]["model"] if averaged and state["ema"] is not None else state["model"]


def differences(old: State, new: State, keys: tuple[str, ...] = ()) -> list[str]:
    """What two configs as dictionaries differ in: ``optimizer.lr 0.02 → 0.01``."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += differences(before, after, (*keys, key))
        elif before != after:
            found.append(f"{'.'.join((*keys, key))} {before} → {after}")
    return found
