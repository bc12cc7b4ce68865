"""Large scale jitter, and copies of objects pasted into other images (Ghiasi et al. 2021, arXiv:2012.07177)."""

from __future__ import annotations

import numpy as np

from detectors import transforms
from detectors.transforms import Sample, Size


def scale_jitter(
    sample: Sample, ratios: tuple[float, float], size: Size, random: np.random.Generator
) -> Sample:
    """The sample at a random scale, and of that a random part no larger than ``size``.

    Args:
        sample: of any size.
        ratios: the least and the largest scale; with 1 the whole image just fits into ``size``.
        size: height and width of the canvas that the result is padded to later.
        random: draws scale and place.

    Returns:
        The part, with the objects that have a pixel of width and height in it.
    """
    wanted = random.uniform(*ratios)
    scale = wanted * min(most / side for most, side in zip(size, sample.size, strict=True))
    new = tuple(max(1, round(side * scale)) for side in sample.size)
    resized = transforms.resize(sample, new)
    top, left = (int(random.integers(max(side - most, 0) + 1)) for side, most in zip(new, size, strict=True))
    part = np.array([left, top, min(left + size[1], new[1]), min(top + size[0], new[0])])
    cut = transforms.cut(resized, part)
    sides = cut.boxes[:, 2:] - cut.boxes[:, :2]
    return cut.only((sides >= 1).all(axis=1))


def paste_copies(below: Sample, other: Sample, random: np.random.Generator) -> Sample:
    """Some objects of another image on top of an image, which hides what lies below them.

    Args:
        below: with masks; its size is that of the result.
        other: with masks, of any size; both have their corner at the top left.
        random: draws which objects.

    Returns:
        The image with all objects that are still seen; boxes fit the masks that something was pasted over.
    """
    assert below.masks is not None
    assert other.masks is not None
    height, width = (min(pair) for pair in zip(below.size, other.size, strict=True))
    chosen = other.only(random.random(len(other.boxes)) < 0.5)
    pasted = np.zeros((len(chosen.boxes), *below.size), np.uint8)
    pasted[:, :height, :width] = chosen.masks[:, :height, :width]
    seen = pasted.any(axis=(1, 2))
    if not seen.any():
        return below
    pasted, labels = pasted[seen], chosen.labels[seen]
    cover = pasted.any(axis=0)
    image = below.image.copy()
    image[:height, :width][cover[:height, :width]] = other.image[:height, :width][cover[:height, :width]]
    hidden = (below.masks & cover).any(axis=(1, 2))
    masks = np.where(cover, 0, below.masks).astype(np.uint8)
    left = masks.any(axis=(1, 2))
    boxes = below.boxes.copy()
    for place in np.flatnonzero(hidden & left):
        boxes[place] = tight_box(masks[place])
    boxes = np.concatenate([boxes[left], [tight_box(mask) for mask in pasted]]).astype(np.float32)
    return Sample(
        image,
        boxes,
        np.concatenate([below.labels[left], labels]),
        np.concatenate([masks[left], pasted]),
        below.semantic,
    )


def tight_box(mask: np.ndarray) -> list[float]:
    """(x1, y1, x2, y2) around the pixels of a mask uint8 [h, w] that has some."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
