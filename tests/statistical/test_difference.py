"""How often the interval of a difference in AP holds the difference."""

from __future__ import annotations

import numpy as np

from bench.judge.difference import match
from benchmarks.images import difference


def test_interval_holds_the_difference_as_often_as_it_says() -> None:
    """Detectors that find each object with probability 0.7 and 0.5, on sets of 60 images."""
    image = {"file_name": "", "width": 100, "height": 80}
    truth = {
        "images": [{"id": i, **image} for i in range(1, 61)],
        "categories": [{"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 2 * i + k, "image_id": i, "category_id": 3, "bbox": [50 * k, 10, 40, 40], "area": 1600}
            for i in range(1, 61)
            for k in (0, 1)
        ],
    }
    rng = np.random.default_rng(5)
    inside, repetitions = 0, 40
    for _ in range(repetitions):
        sides = [
            [
                {"image_id": row["image_id"], "category_id": 3, "bbox": row["bbox"], "score": 0.5}
                for row in truth["annotations"]
                if rng.random() < chance
            ]
            for chance in (0.7, 0.5)
        ]
        found = difference(*(match(truth, side, "bbox") for side in sides), 200)
        inside += found.low <= 0.2 <= found.high  # no false positives: AP is the share that is found
    assert inside >= 0.85 * repetitions  # of 95 %, less three standard deviations
