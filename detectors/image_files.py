"""Image files of any kind as 8-bit RGB pixels.

The orientation of EXIF is obeyed, unless only the stored pixels have the size that annotations give. Of 16 bits the
high byte is taken. Grey, palette and CMYK become RGB as Pillow converts them, and transparency is left out.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from detectors.transforms import Size

#: Modes of Pillow with more than eight bits.
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
ORIENTATION = 0x0112


def read(path: str | Path, size: Size | None = None) -> np.ndarray:
    """The pixels of an image file.

    Args:
        path: of the file.
        size: height and width by the annotations, if there are some.

    Returns:
        uint8 [h, w, 3], RGB.

    Raises:
        OSError, ValueError: for a file that cannot be read as a whole; the first line is a message without the path.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and transparency, which do not matter here
            with Image.open(path) as image:
                return np.asarray(rgb(turned(image, size)))
    except OSError:
        raise
    except Exception as error:  # of a broken or a huge file Pillow raises many kinds
        raise ValueError(str(error) or type(error).__name__) from None


def turned(image: Image.Image, size: Size | None = None) -> Image.Image:
    """The image as its EXIF orientation says, or as stored where only that fits a ``size`` (height, width)."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of broken metadata: many kinds
        return image
    if orientation not in range(2, 9):
        return image
    stored = image.height, image.width
    wanted = stored[::-1] if orientation >= 5 else stored
    return image if size == stored != wanted else ImageOps.exif_transpose(image)


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB of 8 bits. Raises ValueError for floats and for more than 16 bits."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 bits")
    if image.mode in DEEP:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("more than 16 bits; save it with 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")
