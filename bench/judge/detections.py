"""Whether two codebases found the same objects in one image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

IOU = 0.9
SCORE = 0.01
#: Relative difference of the areas of two masks of one object, and of their centres to the root of the area.
MASK = 0.05
#: Of the lengths of their borders.
BORDER = 0.1


def matched(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float, float]:
    """The share of detections, of both sides together, that have a partner on the other one, and how near partners are.

    Args:
        first: ``boxes`` [N, 4] (x1, y1, x2, y2), ``scores`` [N], ``labels`` [N] and perhaps ``masks``, per object
            height and width of the image, area, centre (row, column) and border, as `bench.worker.probe` keeps them.
        second: The same of the other side.

    Returns:
        The share, from 0 to 1; the mean IoU of partners; the mean score of those of the second side to that of the
        first side's. Partners have one label, IoU of at least 0.9 (of boxes a pixel larger), and scores that differ by
        at most 0.01; each has one.
    """
    counts = len(first["scores"]), len(second["scores"])
    if not any(counts):
        return 1.0, 1.0, 1.0
    if not all(counts) or ("masks" in first) != ("masks" in second):
        return 0.0, 1.0, 1.0
    overlaps = _iou(np.asarray(first["boxes"]), np.asarray(second["boxes"]))
    scores = [np.asarray(one["scores"]) for one in (first, second)]
    fits = (overlaps >= IOU) & (np.abs(scores[0][:, None] - scores[1]) <= SCORE)
    fits &= np.asarray(first["labels"])[:, None] == np.asarray(second["labels"])[None, :]
    if "masks" in first:
        fits &= _alike(np.asarray(first["masks"], float), np.asarray(second["masks"], float))
    free = np.ones(counts[1], bool)
    pairs = []
    for row, one in enumerate(fits):
        partners = np.flatnonzero(one & free)
        if len(partners):
            nearest = partners[overlaps[row, partners].argmax()]
            free[nearest] = False
            pairs.append((row, nearest))
    if not pairs:
        return 0.0, 1.0, 1.0
    rows, columns = np.array(pairs).T
    near = float(scores[1][columns].sum() / max(scores[0][rows].sum(), 1e-9))
    return 2 * len(pairs) / sum(counts), float(overlaps[rows, columns].mean()), near


def _iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    grown = np.array([0, 0, 1, 1])  # a box that was cut to the border may have no area
    a, b = (first + grown)[:, None], (second + grown)[None, :]
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    common = sides.prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (a, b)]
    return np.asarray(common / np.maximum(areas[0] + areas[1] - common, 1e-9))


def _alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """By size of the image, area, centre, and border, which old records lack."""
    a, b = first[:, None], second[None, :]
    area = np.maximum(np.maximum(a[..., 2], b[..., 2]), 1)
    sizes = (a[..., :2] == b[..., :2]).all(-1)
    areas = np.abs(a[..., 2] - b[..., 2]) <= MASK * area + 4
    centres = np.abs(a[..., 3:5] - b[..., 3:5]).max(-1) <= MASK * np.sqrt(area) + 1
    first, second = (one[..., 5:].sum(-1) for one in (a, b))
    borders = np.abs(first - second) <= BORDER * np.maximum(first, second) + 8
    return np.asarray(sizes & areas & centres & (borders | (first * second == 0)))
