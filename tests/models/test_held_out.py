"""What the backbone of `python -m benchmarks.held_out` is taught: the shape in the middle of a crop, by its label."""

from __future__ import annotations

import pytest
import torch

from benchmarks.held_out import CROP, crops, turned
from detectors.coco import Batch
from detectors.structures import Target


def test_a_crop_shows_the_object_that_it_is_labelled_with() -> None:
    images = torch.zeros(2, 3, 120, 160)
    images[0, 0, 20:60, 30:70] = 1  # red, label 3
    images[1, 1, 50:90, 100:140] = 1  # green, label 5
    boxes = [torch.tensor([[30.0, 20, 70, 60]]), torch.tensor([[100.0, 50, 140, 90]])]
    targets = [Target(box, torch.tensor([label]), None) for box, label in zip(boxes, (3, 5), strict=True)]
    sizes = [(120, 160)] * 2
    found, labels = crops(Batch(images, sizes, sizes, [1, 2], targets), jitter=0.0)
    assert found.shape == (2, 3, CROP, CROP)
    assert labels.tolist() == [3, 5]
    share = (40 / 48) ** 2  # the window is 1.2 times as wide as the object
    assert found[0].mean(dim=(1, 2)).tolist() == [pytest.approx(share, rel=0.02), 0, 0]
    assert found[1].mean(dim=(1, 2)).tolist() == [0, pytest.approx(share, rel=0.02), 0]
    # Turned, mirrored, in other colours: as much of it.
    assert float(turned(found)[0].sum()) == pytest.approx(float(found[0].sum()))
