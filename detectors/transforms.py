"""From a decoded image and its objects to what a network takes: resize, normalise, pad."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # (height, width)

IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
IMAGENET_STD = (58.395, 57.12, 57.375)


def fit_within(old: Size, limit: Size) -> Size:
    """The largest size of the same ratio that fits into ``limit``, to whole pixels."""
    return _scaled(old, min(limit[0] / old[0], limit[1] / old[1]), limit)


def short_long(old: Size, short: int, long: int) -> Size:
    """The size of the same ratio whose short side is ``short``, unless its long side would pass ``long``."""
    return _scaled(old, min(short / min(old), long / max(old)), (long, long))


def _scaled(old: Size, scale: float, limit: Size) -> Size:
    height, width = (
        max(1, min(most, int(side * scale + 0.5))) for side, most in zip(old, limit, strict=True)
    )
    return height, width


def resize_image(pixels: np.ndarray, size: Size) -> np.ndarray:
    """Antialiased bilinear resize of uint8 [h, w, 3] to [H, W, 3]."""
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: Size) -> np.ndarray:
    """Nearest-pixel resize of uint8 [h, w] to [H, W]."""
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(mask.shape, size, strict=True)
    )
    return mask[rows[:, None], columns]


def normalised_batch(images: Sequence[np.ndarray], size: Size) -> Tensor:
    """Images uint8 [h_i, w_i, 3] to one float32 batch [B, 3, H, W], channels last in memory, padded with zeros right
    and bottom. The pixels are never transposed."""
    batch = torch.zeros((len(images), *size, 3))
    mean, scale = torch.tensor(IMAGENET_MEAN), 1 / torch.tensor(IMAGENET_STD)
    for padded, image in zip(batch, images, strict=True):
        height, width = image.shape[:2]
        torch.sub(torch.from_numpy(np.array(image)), mean, out=padded[:height, :width]).mul_(scale)
    return batch.permute(0, 3, 1, 2)


def pad_masks(masks: Tensor, size: Size) -> Tensor:
    """[N, h, w] to [N, H, W], zeros right and bottom."""
    return F.pad(masks, (0, size[1] - masks.shape[2], 0, size[0] - masks.shape[1]))
