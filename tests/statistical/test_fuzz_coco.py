"""Ground truth and detections with mistakes in them: they are evaluated, or one error says what is wrong."""

from __future__ import annotations

import contextlib
import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError
from bench.judge import accuracy
from bench.judge.results import what_is_there
from tests.helpers.coco import BACKENDS, small_truth
from tests.statistical.test_fuzz_runs import VALUES, change_bytes, places

MUTATIONS = 5000
NUMBERS: list[Any] = [2**53 + 1, 10**400, -1e308, 1e-320, 0.5, "1", "NaN", 3.0, 8, 101]
DETECTIONS = [
    {"image_id": 1, "category_id": 3, "bbox": [11, 9, 40, 42], "score": 0.9,
     "segmentation": {"size": [80, 100], "counts": [100, 1600, 6300]}},
    {"image_id": 2, "category_id": 8, "bbox": [1, 2, 3, 4], "score": 0.3,
     "segmentation": {"size": [80, 100], "counts": [0, 8000]}},
]  # fmt: skip


def changed(rng: random.Random, content: Any) -> Any:
    """The content with one to three values replaced, removed or doubled."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 3))):
        path = rng.choice([place for place in places(content) if place])
        target = content
        for key in path[:-1]:
            target = target[key]
        kind = rng.random()
        if kind < 0.7:
            target[path[-1]] = rng.choice([*VALUES, *NUMBERS])
        elif kind < 0.85:
            del target[path[-1]]
        elif isinstance(target, list):
            target.append(copy.deepcopy(target[path[-1]]))
    return content


@pytest.mark.filterwarnings("ignore")
def test_mutated_pair_gives_one_error_or_numbers(tmp_path: Path) -> None:
    truth, found = tmp_path / "truth.json", tmp_path / "found.json"
    outcomes = {"numbers": 0, "error": 0}
    for seed in range(MUTATIONS):
        rng = random.Random(seed)
        which = rng.random()
        truth.write_text(json.dumps(changed(rng, small_truth()) if which < 0.5 else small_truth()))
        found.write_text(json.dumps(changed(rng, DETECTIONS) if which >= 0.5 else DETECTIONS))
        if which > 0.9:
            change_bytes(rng, rng.choice((truth, found)))
        outcome = "error"
        with contextlib.suppress(BenchError):
            for kind in what_is_there(truth, found)[0]:
                accuracy.evaluate(truth, found, kind, backend=rng.choice(BACKENDS), errors=True)
            outcome = "numbers"
        outcomes[outcome] += 1
    assert min(outcomes.values()) > MUTATIONS // 20
