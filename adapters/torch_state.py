"""Weights, averages and random numbers of torch models: what a training starts from and goes on from."""

from __future__ import annotations

import importlib.util
import pickle
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all generators, in types that are loaded without unpickling objects."""
    kind, keys, *place = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *place),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *place = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *place))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def freeze(modules: Iterable[nn.Module]) -> None:
    """No gradient, fixed normalisation statistics: how mmdetection and detectron2 treat frozen stages."""
    for module in modules:
        module.requires_grad_(False)
        module.eval()


def ema_average(decay: float, updates: Callable[[], int]) -> Any:
    """``multi_avg_fn`` of AveragedModel: ``e += (1 - d)(w - e)`` with the warm-up of PaddleDetection and
    TensorFlow, ``d = min(decay, (1 + t) / (10 + t))``. ``t`` counts the updates before this one, the first of
    which copies the weights. ``updates`` gives it: the count that AveragedModel hands over is on the device."""

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], _: Tensor) -> None:
        if averaged[0].is_floating_point():
            t = updates()
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + t) / (10 + t)))
        else:  # counters, such as num_batches_tracked
            torch._foreach_copy_(averaged, current)

    return average


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """The average of a model's weights, updated without a wait for the device: its own count is on the host."""
    found = AveragedModel(model, use_buffers=True)
    found.multi_avg_fn = ema_average(decay, lambda: int(found.n_averaged))
    return found


@torch.no_grad()
def sum_of_squares(values: Iterable[Tensor]) -> float:
    norms = [torch.linalg.vector_norm(one, dtype=torch.float64) for one in values]
    return float(torch.stack(norms).square().sum())


def save_weights(model: nn.Module, path: str) -> None:
    np.savez(path, **{name: value.detach().cpu().numpy() for name, value in model.state_dict().items()})


def read_weights(path: str) -> dict[str, Tensor]:
    """Weights by name, of an ``.npz`` or a checkpoint (`detectors.weight_files`, of which a worker sees no package)."""
    if path.endswith(".npz"):
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    reader = Path(__file__).resolve().parent.parent / "detectors" / "weight_files.py"
    spec = importlib.util.spec_from_file_location("bench_weight_files", reader)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return dict(module.read_checkpoint(path))
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{Path(path).name} cannot be read as weights: {error}") from error


def load_weights(model: nn.Module, path: str) -> None:
    """Load weights strictly: every name and shape has to agree.

    ``num_batches_tracked`` counts steps and is no weight; a model with frozen statistics has none.

    Args:
        model: Of the codebase.
        path: An ``.npz`` in its names, or a checkpoint as the codebase writes it (``.pth``, ``.safetensors``,
            ``.pkl``), of which tensors only are read.

    Raises:
        ValueError: Names or shapes do not agree; it says which.
    """
    counter = ".num_batches_tracked"
    state = model.state_dict()
    given = read_weights(path)
    if all(name.startswith("module.") for name in given):  # of DistributedDataParallel
        given = {name.removeprefix("module."): value for name, value in given.items()}
    wanted = {name for name in state if not name.endswith(counter)}
    found = {name for name in given if not name.endswith(counter)}
    shapes = {name for name in wanted & found if state[name].shape != given[name].shape}
    if shapes and not wanted ^ found:
        name = min(shapes, key=lambda one: given[one].numel())
        counts = tuple(given[name].shape), tuple(state[name].shape)
        raise ValueError(
            f"{path} is of another number of classes than the data set, or of another width: {name} is {counts[0]}, "
            f"and {type(model).__name__} for these classes has {counts[1]}"
        )
    problems = [
        f"{kind} {len(names)}: {', '.join(sorted(names)[:8])}{', …' if len(names) > 8 else ''}"
        for kind, names in (
            ("missing", wanted - found),
            ("unexpected", found - wanted),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}: " + "; ".join(problems))
    with torch.no_grad():
        for name, value in state.items():
            if name in given:
                value.copy_(given[name])
