"""Weights by name from files of torch, safetensors, numpy, detectron2 and Paddle, whose code is never run."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: Under which key a checkpoint of a training run may keep the weights.
CONTAINERS = ("state_dict", "model", "model_state_dict")
#: What a pickle of arrays is made of; a name that is not here ends the reading.
HARMLESS = {
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *(
        (f"numpy.{core}.{module}", name)
        for core in ("core", "_core")
        for module, name in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Weights by name.

    Args:
        path: a `.pth` or `.pt` of torch, `.safetensors`, `.npz`, a `.pkl` of detectron2 or a `.pdparams` of
            PaddleDetection. Of pickles only arrays and plain values are read.

    Returns:
        Tensors on the CPU; what else the file holds is left out.

    Raises:
        ValueError: for another kind of file, or one that holds more than arrays and plain values.
    """
    path = Path(path)
    if path.suffix in (".pth", ".pt"):
        return _tensors(_of_torch(path))
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file  # only now: a foreign interpreter may lack it

        return load_file(path)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    if path.suffix in (".pkl", ".pdparams"):
        with path.open("rb") as file:
            return _tensors(_ArraysOnly(file).load())
    kinds = ".pth, .pt, .safetensors, .npz, .pkl or .pdparams"
    raise ValueError(f"{path}: expected a {kinds} file, not {path.suffix or 'this'}")


class _Inert:
    """Stands for an object of a class that is not loaded; it takes whatever it is made of and forgets it."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Forget it."""

    def extend(self, values: Any) -> None:
        """Forget them."""


def _of_torch(path: Path) -> Any:
    """What a file of torch holds; loggers and configs that mmengine's have beside the weights become inert."""
    inert = [
        (type(name.rpartition(".")[2], (_Inert,), {}), name)
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(path)
    ]
    with torch.serialization.safe_globals(inert):
        return torch.load(path, map_location="cpu", weights_only=True)


class _ArraysOnly(pickle.Unpickler):
    """Reads arrays and plain values. Another global is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises ValueError for what is not in ``HARMLESS``."""
        if (module, name) not in HARMLESS:
            raise ValueError(f"a file of weights holds {module}.{name}, which could run code; it is not read")
        return super().find_class(module, name)


def _tensors(content: Any) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise ValueError(f"expected weights by name (model.state_dict()), got {type(content).__name__}")
    for key in CONTAINERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    found = {}
    for name, value in content.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            value = torch.from_numpy(value.copy())
        if isinstance(value, Tensor):
            found[name] = value
    return found
