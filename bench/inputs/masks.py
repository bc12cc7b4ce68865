"""Masks of COCO files, checked before any C code sees them: that code reads beyond what a file may say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: A corner may lie outside its image by so many times the image's longer side.
FAR = 10
#: Run lengths are 32-bit.
MAX_PIXELS = 2**32 - 1
_CHUNK_CHARACTERS = 1 << 19
_MOST_DIGITS = 7


def check_mask(mask: Any, size: tuple[int, int]) -> Any:
    """A mask that is sound but for its compressed run lengths, which `check_run_lengths` checks many at once.

    Args:
        mask: Polygons, or run lengths (`size`, and `counts` compressed or not).
        size: Height and width of its image, in pixels.

    Returns:
        The mask, with `size` in whole numbers and compressed `counts` as text.

    Raises:
        ValueError: It says what is wrong.
    """
    if not mask or not isinstance(mask, list | dict):
        raise ValueError("no segmentation")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"an image of {size[1]}x{size[0]} is too large for masks")
    if isinstance(mask, list):
        _check_polygons(mask, size)
        return mask
    if not {"size", "counts"} <= mask.keys():
        raise ValueError("a run-length encoded mask has size and counts")
    if not isinstance(mask["size"], list | tuple) or list(mask["size"]) != list(size):
        raise ValueError(f"mask has size {mask['size']}, its image {list(size)}")
    counts = mask["counts"]
    if isinstance(counts, bytes):
        counts = counts.decode("latin-1")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a run length is no whole number of 0 or more")
        if sum(counts) != size[0] * size[1]:
            raise ValueError(f"run lengths add up to {sum(counts)} of {size[0] * size[1]} pixels")
    elif not isinstance(counts, str):
        raise ValueError("counts are text or a list of run lengths")
    return {"size": list(size), "counts": counts}


def _check_polygons(polygons: list[Any], size: tuple[int, int]) -> None:
    far = FAR * max(size)
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("no valid mask: a polygon has three corners or more, x and y of each")
        if not set(map(type, polygon)) <= {int, float}:
            raise ValueError("no valid mask: a corner is no number")
        if not (
            min(polygon) >= -far and max(polygon) <= far and sum(polygon) == sum(polygon)
        ):  # nan is not itself
            raise ValueError(f"no valid mask: a corner lies further than {far} from its image")


def check_run_lengths(counts: Sequence[str], pixels: Sequence[int]) -> tuple[int, str] | None:
    """Compressed run lengths: what is wrong with the first that are not sound, and its place; None when all are.

    Args:
        counts: Text of each mask, as pycocotools' `encode` writes it.
        pixels: Pixels of each mask's image.
    """
    start = 0
    while start < len(counts):
        end, characters = start, 0
        while end < len(counts) and (end == start or characters + len(counts[end]) <= _CHUNK_CHARACTERS):
            characters += len(counts[end])
            end += 1
        if (wrong := _wrong_run_lengths(counts[start:end], pixels[start:end])) is not None:
            return start + wrong[0], wrong[1]
        start = end
    return None


def _wrong_run_lengths(counts: Sequence[str], pixels: Sequence[int]) -> tuple[int, str] | None:
    """A number is digits of 5 bits, the lowest first; 32 is added to all but the last, 16 in the last is the sign, 48
    makes characters of them. From the fourth number on, the number two places before is taken off."""
    for place, text in enumerate(counts):
        if not text or not text.isascii() or (ord(text[-1]) - 48) & 32:
            return place, "run lengths are missing, or cut"
    digits = np.frombuffer("".join(counts).encode("ascii"), np.uint8) - np.uint8(48)
    ends = np.cumsum(list(map(len, counts)))
    if (bad := np.flatnonzero(digits > 63)).size:
        place = int(np.searchsorted(ends, bad[0], side="right"))
        return place, "run lengths hold a character that is none of theirs"
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    width = last - first + 1
    begin = np.searchsorted(last, np.concatenate([[0], ends[:-1]]))
    if (bad := np.flatnonzero(width > _MOST_DIGITS)).size:
        return _mask_of(begin, bad[0]), "a run length is too large"
    values = (digits[first] & 31).astype(np.int64)
    longer = np.flatnonzero(width > 1)
    for place in range(1, _MOST_DIGITS):
        values[longer] |= (digits[first[longer] + place] & 31).astype(np.int64) << (5 * place)
        longer = longer[width[longer] > place + 1]
    negative = np.flatnonzero(digits[last] & 16)
    values[negative] -= np.int64(1) << (5 * width[negative])
    runs = _without_differences(values, begin)
    if (bad := np.flatnonzero((runs < 0) | (runs > MAX_PIXELS))).size:
        return _mask_of(begin, bad[0]), "a run length is negative or too large"
    totals = np.add.reduceat(runs, begin)
    if (bad := np.flatnonzero(totals != np.array(pixels))).size:
        place = int(bad[0])
        return place, f"run lengths add up to {totals[place]} of {pixels[place]} pixels"
    return None


def _mask_of(begin: NDArray[np.int64], number: int) -> int:
    return int(np.searchsorted(begin, number, side="right")) - 1


def _without_differences(values: NDArray[np.int64], begin: NDArray[np.int64]) -> NDArray[np.int64]:
    """Run lengths of numbers that are, from the fourth of a mask on, differences to the one two places before.

    ``begin``: the place of each mask's first number. Sums of every second number, over all masks, less the sum where
    a chain of differences begins: at a mask's second number, and at its third.
    """
    runs = np.empty_like(values)
    for parity in (0, 1):
        np.cumsum(values[parity::2], out=runs[parity::2])
    third, second = runs[begin], np.where(begin > 0, runs[begin - 1], 0)
    lengths = np.diff(begin, append=len(values))
    for parity in (0, 1):
        before = np.where(begin % 2 == parity, third, second)
        runs[parity::2] -= np.repeat(before, lengths)[parity::2]
    runs[begin] = values[begin]
    return runs
