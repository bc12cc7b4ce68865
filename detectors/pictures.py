"""Images of any kind as the pixels that a model takes, and detections drawn on them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from detectors import image_files
from detectors.structures import Detections


def as_pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """An image as RGB.

    Args:
        image: of Pillow, in any mode but of floats; of 16 bits the high byte is taken. Or an array [h, w], [h, w, 1],
            [h, w, 3] or [h, w, 4] of uint8, or of floats from 0 to 1. A fourth channel is transparency and left out.

    Returns:
        uint8 [h, w, 3].

    Raises:
        ValueError: for another shape, type or range of values.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image_files.rgb(image))
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(
            f"expected an image [h, w], [h, w, 1], [h, w, 3] or [h, w, 4], got {list(np.shape(image))}"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise ValueError(
                f"expected floats from 0 to 1, got {array.min():g} to {array.max():g}; or pass uint8"
            )
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(f"expected an image of uint8 or of floats from 0 to 1, got {array.dtype}")
    array = array[..., :3]
    return np.ascontiguousarray(np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array)


def draw(pixels: np.ndarray, found: Detections, names: Sequence[str]) -> np.ndarray:
    """Boxes with class and score, and masks, on an image.

    Args:
        pixels: uint8 [h, w, 3].
        found: detections in its pixels.
        names: of the classes 0, 1, …

    Returns:
        uint8 [h, w, 3], another image.
    """
    from torchvision.utils import draw_bounding_boxes  # a package of its own size

    drawn = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    if not len(found.boxes):
        return drawn.permute(1, 2, 0).numpy()
    labels = found.labels.tolist()
    colours = [colour_of(label) for label in labels]
    if found.masks is not None:
        painted = drawn.int()
        # torchvision blackens what two masks have in common; here the better one is on top.
        for mask, colour in zip(found.masks.cpu().flip(0), reversed(colours), strict=True):
            painted[:, mask] = torch.tensor(colour, dtype=torch.int32)[:, None]
        drawn = ((drawn + painted) // 2).to(torch.uint8)
    texts = [
        f"{names[label]} {score:.2f}" for label, score in zip(labels, found.scores.tolist(), strict=True)
    ]
    width = max(1, round(min(pixels.shape[:2]) / 200))
    boxes = found.boxes.cpu()
    drawn = draw_bounding_boxes(drawn, boxes, texts, colours, width=width, fill_labels=True)
    return drawn.permute(1, 2, 0).numpy()


def colour_of(label: int) -> tuple[int, int, int]:
    """A colour for a class, far from those of its neighbours (the hue turns by the golden angle)."""
    hue = int(label * 0.618034 * 256) % 256
    red, green, blue = Image.new("HSV", (1, 1), (hue, 200, 240)).convert("RGB").getpixel((0, 0))
    return red, green, blue
