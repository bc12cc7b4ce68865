"""From a shared batch (RGB, ImageNet statistics, zeros as padding) to what a model of another convention is fed with.

Pixels are those of the shared batch: nothing is decoded or resized again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MEAN = np.array([123.675, 116.28, 103.53], np.float32).reshape(
    3, 1, 1
)  # of bench.recipe.workload, RGB, 0..255
STD = np.array([58.395, 57.12, 57.375], np.float32).reshape(3, 1, 1)


@dataclass(frozen=True)
class Preparation:
    """Colours from the 8-bit pixels of RGB images: (pixels - mean) / std, the channels turned around for BGR.

    ``mean`` and ``std``: per channel in the model's order. ``padding``: grey level right and bottom; None: 0 after
    normalising.
    """

    bgr: bool = False
    mean: tuple[float, float, float] = (0, 0, 0)
    std: tuple[float, float, float] = (1, 1, 1)
    padding: float | None = None


PREPARATIONS = {
    "imagenet": Preparation(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)),
    "unit": Preparation(std=(255, 255, 255)),
    "bgr": Preparation(bgr=True, padding=114),
    "bgr-normalised": Preparation(bgr=True, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)),
}


def prepare(images: np.ndarray, sizes: Sequence[tuple[int, int]], how: Preparation) -> np.ndarray:
    """Images [B, 3, H, W] of a shared batch as the model wants them.

    Args:
        images: float32, normalised.
        sizes: (height, width) of each image inside the padding.
        how: The model's convention.

    Returns:
        float32 [B, 3, H, W].
    """
    pixels = np.rint(images * STD + MEAN)  # exactly the 8-bit values that were normalised
    if how.bgr:
        pixels = pixels[:, ::-1]
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (how.mean, how.std))
    grey = np.zeros((3, 1, 1), np.float32) if how.padding is None else (how.padding - mean) / std
    prepared = np.broadcast_to(grey, pixels.shape).astype(np.float32)
    for target, image, (height, width) in zip(prepared, pixels, sizes, strict=True):
        target[:, :height, :width] = ((image - mean) / std)[:, :height, :width]
    return np.ascontiguousarray(prepared)
