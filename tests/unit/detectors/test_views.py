"""Detections in several views of an image."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detectors.config import Evaluate, Resize
from detectors.eval import detect_views
from detectors.structures import Detections
from detectors.views import suppression_of
from tests.helpers.configs import plain_config


class Brightest(nn.Module):
    """Finds what is white; of a larger view it is surer."""

    nms_threshold, max_detections = 0.5, 10

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def network(self, images: Tensor, sizes: Tensor) -> Tensor:
        return images

    def postprocess(self, raw: Tensor, sizes: list, original: list) -> list[Detections]:
        found = []
        for image, (height, width), (old_height, old_width) in zip(raw, sizes, original, strict=True):
            rows, columns = (image[0, :height, :width] > 0.5).nonzero(as_tuple=True)
            x, y = old_width / width, old_height / height
            box = torch.stack(
                [columns.min() * x, rows.min() * y, (columns.max() + 1) * x, (rows.max() + 1) * y]
            )
            masks = torch.zeros(1, old_height, old_width, dtype=torch.bool)
            left, top, right, bottom = box.round().int().tolist()
            masks[0, top:bottom, left:right] = True
            score = torch.tensor([min(height / 100, 1.0)])
            found.append(Detections(box[None], score, torch.zeros(1, dtype=torch.int64), masks))
        return found


def test_views_are_joined_in_the_pixels_of_the_image() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[8:24, 4:20] = 255
    evaluate = Evaluate(resize=Resize(short=(40,), long=600), scales=(80,), mirror=True)
    config = replace(plain_config(), evaluate=evaluate)
    found = detect_views(Brightest(), image, config)
    assert found.scores.tolist() == pytest.approx([0.8])  # four views, one object
    assert (found.boxes - torch.tensor([4.0, 8, 20, 24])).abs().max() <= 1
    assert found.masks[0, 10:22, 6:18].all()
    assert not found.masks[0, :, 24:].any()


def test_a_model_without_boxes_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear suppresses no boxes"):
        suppression_of(nn.Linear(1, 1))
