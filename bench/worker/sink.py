"""What an observer sees in one step, in numbers that are small enough for a record."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List

import numpy as np

#: Numbers in the projection of an image or of a layer's output.
SIGNS = 8
CELLS = 16

Facts = Dict[str, Any]


class Projection:
    """Sums over positions with random signs, always the same ones: they move when a position does."""

    def __init__(self) -> None:
        self._signs: Dict[Any, np.ndarray] = {}

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Any shape to float64 [SIGNS]."""
        if values.shape not in self._signs:
            draw = np.random.RandomState(values.size % 2**31)
            self._signs[values.shape] = draw.randint(0, 2, (SIGNS, values.size), dtype=np.int8)
        flat = np.ascontiguousarray(values, np.float32).ravel()
        total = flat.sum(dtype=np.float64)
        return np.array(
            [2 * flat[row.view(np.bool_)].sum(dtype=np.float64) - total for row in self._signs[values.shape]]
        )


def norm(values: np.ndarray) -> float:
    flat = np.ascontiguousarray(values, np.float32).ravel()
    return float(np.sqrt(np.dot(flat, flat)))


class Sink:
    """Takes what an `Observer` sees in one step."""

    def __init__(self, project: Projection) -> None:
        self._project = project
        self.flops: Dict[str, Counter[str]] = {"forward": Counter(), "backward": Counter()}
        self.images: List[Facts] = []
        self.batches: List[int] = []
        self.rounded: Counter[str] = Counter()
        self.settings: Dict[str, List[Any]] = {}
        self.operators: Counter[str] = Counter()
        self.values: Counter[str] = Counter()
        self.normalised: Counter[str] = Counter()
        self.random_values = 0
        self.suppressed: List[int] = []
        self.layers: Dict[str, Facts] = {}

    def operation(self, direction: str, types: str, flops: int) -> None:
        """A convolution or matrix product. direction: forward or backward. types: of its operands, as ``float32``."""
        self.flops[direction][types] += int(flops)

    def setting(self, settings: Facts) -> None:
        """Settings of the framework at an operation: every value of each is kept."""
        for name, value in settings.items():
            seen = self.settings.setdefault(name, [])
            if value not in seen:
                seen.append(value)

    def first_input(self, images: np.ndarray) -> None:
        """images: [B, 3, H, W], what enters the first convolution in one call of it."""
        self.batches.append(len(images))
        for image in images:
            self.images.append({"shape": list(image.shape), "projection": _plain(self._project(image)),
                                "norm": norm(image), "coarse": _plain(self._project(_coarse(image)))})  # fmt: skip

    def rounding(self, types: str, values: int) -> None:
        """Values that were converted to numbers of fewer than 32 bits. types: as ``bfloat16``."""
        self.rounded[types] += int(values)

    def operator(self, phase: str, values: int = 0) -> None:
        """One operator of a phase ran, whichever it was. values: in its first argument."""
        self.operators[phase] += 1
        self.values[phase] += values

    def normalisation(self, mode: str, values: int) -> None:
        """Values that a norm layer gave. mode: ``batch`` by statistics of the batch, ``fixed``, ``group``."""
        self.normalised[mode] += int(values)

    def layer(self, name: str, output: np.ndarray) -> None:
        """The output of the layer with this weight: [B, C, H, W], or rows [N, C], of which the largest norm is kept."""
        facts = self._layer(name)
        facts["square"] += norm(output) ** 2
        facts["sum"] += float(output.sum(dtype=np.float64))
        facts["rows"] += output.size // output.shape[1]
        if output.ndim == 4:
            facts["projection"] += self._project(output.sum(axis=(0, 1), dtype=np.float64))
        elif output.ndim == 2 and output.size:
            facts["largest"] = max(facts["largest"], norm(output[np.square(output).sum(axis=1).argmax()]))

    def gradient(self, name: str, gradient: np.ndarray) -> None:
        """The gradient of that output: values that are 0 belong to no sample of the loss."""
        facts = self._layer(name)
        facts["gradients"] += int(np.count_nonzero(gradient))
        if gradient.ndim == 2 or gradient.shape[3] == 1:  # rows of a product
            facts["gradient_rows"] += int(np.count_nonzero(gradient.any(axis=1)))

    def _layer(self, name: str) -> Facts:
        empty = {"square": 0.0, "sum": 0.0, "rows": 0, "projection": np.zeros(SIGNS), "largest": 0.0,
                 "gradients": 0, "gradient_rows": 0}  # fmt: skip
        return self.layers.setdefault(name, empty)

    def facts(self) -> Facts:
        seen = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        layers = {
            name: {
                "norm": float(np.sqrt(one["square"])),
                "projection": _plain(one["projection"]),
                **{kind: one[kind] for kind in ("sum", "rows", "largest", "gradients", "gradient_rows")},
            }
            for name, one in self.layers.items()
        }
        return {**seen, "suppressed": sum(self.suppressed), "layers": layers}


def _coarse(image: np.ndarray) -> np.ndarray:
    """[3, H, W] to means over a grid, [3, 16, 16], which resizing with other rounding hardly changes."""
    channels, *sides = image.shape
    height, width = (max(1, side // CELLS) for side in sides)
    cut = image[:, : CELLS * height, : CELLS * width]
    if cut.shape[1:] != (CELLS * height, CELLS * width):
        return cut
    return np.asarray(cut.reshape(channels, CELLS, height, CELLS, width).mean((2, 4)))


def _plain(values: np.ndarray) -> List[float]:
    return [float(value) for value in values]
