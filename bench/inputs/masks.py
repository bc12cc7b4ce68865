"""Is a mask sound? Asked before pycocotools sees it, whose C code believes what it is told."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Numbers of one outline.
MAX_NUMBERS = 1_000_000
_DIGIT_BITS, _MORE, _SIGN, _LONGEST = 5, 32, 16, 6


def mask_problem(outline: Any, height: int, width: int) -> str | None:
    """What is wrong with a mask of an image, None where nothing is.

    Args:
        outline: Polygons, or run lengths as a list or in COCO's text form.
        height: Pixels of the image.
        width: Pixels of the image.
    """
    if isinstance(outline, list):
        return _polygons_problem(outline, height, width)
    if not isinstance(outline, dict) or not {"size", "counts"} <= outline.keys():
        return "neither polygons nor run lengths"
    size, counts = outline["size"], outline["counts"]
    if not isinstance(size, list | tuple) or not all(type(side) is int for side in size) or len(size) != 2:
        return f"size {str(size)[:40]} is not [height, width]"
    if list(size) != [height, width]:
        return f"mask has size {list(size)}, its image [{height}, {width}]"
    runs = _runs_of_text(counts) if isinstance(counts, str | bytes) else _runs_of_list(counts)
    if runs is None or (runs < 0).any() or runs.sum() != height * width:
        return f"run lengths do not add up to {height} x {width} pixels"
    return None


def _polygons_problem(polygons: list[Any], height: int, width: int) -> str | None:
    side = max(height, width)
    numbers = 0
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "a polygon is a list of x and y of 3 or more points"
        numbers += len(polygon)
        if numbers > MAX_NUMBERS:
            return f"more than {MAX_NUMBERS:,} numbers"
        # Also false for NaN. The cost of a polygon grows with the way around it.
        if not all(type(value) in (int, float) and -side <= value <= 2 * side for value in polygon):
            return f"a polygon far outside of its image of {width}x{height}"
    return None


def _runs_of_list(counts: Any) -> NDArray[np.int64] | None:
    if not isinstance(counts, list) or len(counts) > MAX_NUMBERS:
        return None
    if not all(type(value) is int and 0 <= value < 2**31 for value in counts):
        return None
    return np.array(counts, np.int64)


def _runs_of_text(counts: str | bytes) -> NDArray[np.int64] | None:
    """Run lengths of COCO's text: digits of five bits, lowest first; from the fourth run on, the difference to the run
    before the last one."""
    try:
        codes = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8)
    except UnicodeEncodeError:
        return None
    digits = codes.astype(np.int64) - 48
    if len(digits) == 0 or len(digits) > MAX_NUMBERS or (digits < 0).any() or (digits > 63).any():
        return None
    last = (digits & _MORE) == 0
    if not last[-1]:
        return None
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        return None
    place = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 31) << (_DIGIT_BITS * place), starts)
    runs -= np.where(digits[ends] & _SIGN, np.int64(1) << (_DIGIT_BITS * lengths), 0)
    for first in (1, 2):
        runs[first::2] = np.cumsum(runs[first::2])
    return runs
