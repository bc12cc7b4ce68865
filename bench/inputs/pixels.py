"""Image files of any kind as 8-bit RGB pixels, by one rule for all codebases.

* The orientation of EXIF is obeyed. Pixels stay as they are stored where only that fits the size in the annotations.
* Of 16 bits the high byte is taken, as Pillow does for colour and OpenCV for all images.
* Grey, palette and CMYK become RGB as Pillow converts them. Transparency is left out.
* Of several frames the first counts.
* A file that is cut off or of another size is an error that names it.

`detectors.image_files` reads by the same rule; a test compares the two.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from bench.errors import BenchError, read_file

Size = tuple[int, int]
ORIENTATION = 0x0112
DEEP = ("I", "I;16", "I;16B", "I;16L", "I;16N")
#: What is odd about a file, and what is done about it.
ODDITIES = {
    "EXIF rotation": "turned",
    "16 bit": "the high byte of each value is used",
    "CMYK": "converted to RGB",
    "palette": "converted to RGB",
    "grayscale": "converted to RGB",
    "alpha": "transparency is left out",
}


def decode(path: Path, size: Size | None = None) -> NDArray[np.uint8]:
    """The pixels of an image file.

    Args:
        path: Of the file.
        size: Height and width by the annotations; None if they are not known.

    Returns:
        uint8 [H, W, 3], RGB.

    Raises:
        BenchError: It names the file: it cannot be read as a whole, or has another size.
    """
    with _opened(path) as image:
        return np.asarray(_rgb(_turned(image, size, path)))


def check(path: Path, size: Size | None = None) -> None:
    """Raises BenchError for what `decode` would refuse. JPEGs are decoded at an eighth of their size, to be quick."""
    with _opened(path) as image:
        _turn_needed(image, size, path)
        deep = image.mode in DEEP or image.mode == "F"
        image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
        image.load()
        if deep:
            _rgb(image)


def oddities(path: Path) -> list[str]:
    """Which of ODDITIES a file has. Raises BenchError."""
    with _opened(path) as image:
        tiles = str(getattr(image, "tile", ""))  # names the type of the stored values
        found = {
            "EXIF rotation": _orientation(image) > 1,
            "16 bit": image.mode in DEEP or ";16" in tiles,
            "CMYK": image.mode == "CMYK",
            "palette": image.mode in ("P", "PA"),
            "grayscale": image.mode in ("1", "L", "LA", "La", *DEEP),
            "alpha": image.has_transparency_data,
        }
    return [kind for kind, has in found.items() if has]


class WrongSize(BenchError):
    """An image has another size than its annotations say."""


def is_turned(path: Path, size: Size) -> bool:
    """Whether the orientation of EXIF is obeyed. Raises BenchError."""
    with _opened(path) as image:
        return _turn_needed(image, size, path)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    content = read_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata and transparency, which do not matter here
            with Image.open(io.BytesIO(content)) as image:
                yield image
    except UnidentifiedImageError:
        raise BenchError("image cannot be decoded: it is of no known format", where=str(path)) from None
    except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
        raise BenchError(f"image cannot be decoded: {error}", where=str(path)) from None


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of broken metadata: many kinds
        return 1
    return found if found in range(2, 9) else 1


def _turn_needed(image: Image.Image, size: Size | None, path: Path) -> bool:
    """Whether the orientation is obeyed. Raises BenchError for an image of another size."""
    stored = image.height, image.width
    orientation = _orientation(image)
    turned = stored[::-1] if orientation >= 5 else stored
    if size is not None and size not in (stored, turned):
        told = f"image is {stored[1]}x{stored[0]}" + (", turned by its EXIF" if orientation >= 5 else "")
        raise WrongSize(f"{told}, its annotations say {size[1]}x{size[0]}", where=str(path))
    return orientation > 1 and size in (None, turned)


def _turned(image: Image.Image, size: Size | None, path: Path) -> Image.Image:
    return ImageOps.exif_transpose(image) if _turn_needed(image, size, path) else image


def _rgb(image: Image.Image) -> Image.Image:
    """Raises ValueError for values that are no 8 or 16 bits."""
    if image.mode == "F":
        raise ValueError("floating-point pixels; save it with 8 bits")
    if image.mode in DEEP:
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("more than 16 bits; save it with 8 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    return image.convert("RGB")
