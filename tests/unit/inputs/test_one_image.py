"""One image: sizes, the filter of resizing, and masks in every form that COCO has."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from bench.inputs import batches, coco
from bench.recipe.workload import ShortLong
from tests.helpers.resizing import bilinear

SQUARE = [[10, 10, 60, 10, 60, 50, 10, 50]]


@given(st.integers(1, 2000), st.integers(1, 2000), st.integers(32, 1333), st.integers(32, 1333))
def test_resized_image_keeps_its_ratio_within_half_a_pixel(h: int, w: int, a: int, b: int) -> None:
    for size in ((a, b), ShortLong(short=min(a, b), long=max(a, b))):
        height, width = batches.resized_size(h, w, size)
        if isinstance(size, ShortLong):
            scale = min(Fraction(size.short, min(h, w)), Fraction(size.long, max(h, w)))
            assert max(height, width) <= size.long
        else:
            scale = min(Fraction(a, h), Fraction(b, w))
            assert height <= a
            assert width <= b
        for new, old in ((height, h), (width, w)):
            assert abs(new - max(1, old * scale)) <= Fraction(1, 2) + Fraction(1, 10**6)


side = st.integers(1, 90)


@settings(max_examples=50, deadline=None)
@given(side, side, side, side, st.integers(0, 2**32 - 1))
def test_masks_are_resized_as_pillows_nearest_does(
    h: int, w: int, height: int, width: int, seed: int
) -> None:
    mask = np.random.default_rng(seed).integers(0, 2, (h, w), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    ours = batches.resize_mask(mask, height, width)
    # Pillow accumulates its coordinate in floats; a sample on the edge of two pixels may fall to either.
    on_edge = [(2 * np.arange(n) + 1) * o % (2 * n) == 0 for n, o in ((height, h), (width, w))]
    clear = ~(on_edge[0][:, None] | on_edge[1][None, :])
    assert np.array_equal(ours[clear], expected[clear])


@pytest.mark.parametrize(("height", "width"), [(40, 50), (120, 150), (33, 77)])
def test_images_are_resized_by_the_documented_filter(height: int, width: int) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    assert np.abs(batches.resize_image(pixels, height, width) - bilinear(pixels, height, width)).max() < 1.01


@pytest.mark.parametrize("form", ["polygon", "compressed", "uncompressed", "box only"])
def test_every_form_of_a_coco_mask_gives_the_same_pixels(form: str) -> None:
    image = {"height": 80, "width": 100}
    expected = np.zeros((80, 100), np.uint8)
    expected[10:50, 10:60] = 1
    rle = coco_mask.encode(np.asfortranarray(expected))
    runs = np.flatnonzero(np.diff(np.concatenate([[0], expected.T.ravel(), [2]])))
    counts = np.diff(np.concatenate([[0], runs])).tolist()
    outline: Any = {
        "polygon": SQUARE,
        "compressed": {"size": [80, 100], "counts": rle["counts"].decode()},
        "uncompressed": {"size": [80, 100], "counts": counts},
        "box only": None,
    }[form]
    annotation = {"bbox": [10, 10, 50, 40], "segmentation": outline}
    assert np.array_equal(coco.object_mask(annotation, image), expected)
