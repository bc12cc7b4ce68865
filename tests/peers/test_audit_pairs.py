"""Honest pairs, with `bench audit` as a user calls it: equal, or with the difference that their READMEs tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Cli
from tests.peers.conftest import peer

pytestmark = [pytest.mark.peers, pytest.mark.nightly]

EQUAL = [
    ("mmdet", "retinanet_r50_fpn", "train", "mmdet"),
    ("mmdet", "retinanet_r50_fpn", "infer", "mmdet"),
    ("mmdet", "faster_rcnn_r50_fpn", "train", "mmdet"),
    ("mmdet", "faster_rcnn_r50_fpn", "infer", "mmdet"),
    ("mmdet", "solov2_light_r50_fpn", "train", "mmdet"),
    ("mmdet", "mask_rcnn_r50_fpn", "infer", "mmdet"),
    ("detectron2", "faster_rcnn_r50_fpn", "infer", "mmdet"),
    ("detectron2", "faster_rcnn_r50_fpn", "train", "paddledet"),
    ("torchvision", "retinanet_r50_fpn", "infer", "torchvision"),
    ("torchvision", "faster_rcnn_r50_fpn", "train", "torchvision"),
    ("paddledet", "solov2_light_r50_fpn", "train", "paddledet"),
    ("paddledet", "retinanet_r50_fpn", "train", "paddledet"),
    ("paddledet", "retinanet_r50_fpn", "infer", "paddledet"),
]
UNEQUAL = [
    (
        "paddledet",
        "retinanet_r50_fpn",
        "train",
        "torchvision",
        "values of head.deltas with a gradient in step 1",
    ),
    ("detectron2", "retinanet_r50_fpn", "train", "mmdet", "total loss in step 1"),
    ("detectron2", "faster_rcnn_r50_fpn", "train", "mmdet", "values of rpn.deltas with a gradient in step 1"),
]


def audited(
    cli: Cli, codebase: str, model: str, task: str, conventions: str, **workload: str
) -> dict[str, object]:
    recipe = cli.recipe(
        name="pair",
        workload={"task": task, "model": model, "input": {"images": 6, "size": [128, 128]}, **workload},
        arms=[codebase, {"codebase": "native", "options": {"conventions": conventions}}],
        baseline="native",
        measure={"deadline_s": 300},
    )
    done = cli("audit", recipe, "--json")
    assert done.code == 0, done.err
    (verdict,) = done.json()
    return dict(verdict)


@pytest.mark.parametrize(("codebase", "model", "task", "conventions"), EQUAL)
def test_honest_pair_is_equal(
    cli: Cli, tmp_path: Path, codebase: str, model: str, task: str, conventions: str
) -> None:
    peer(codebase, tmp_path)  # or skip
    verdict = audited(cli, codebase, model, task, conventions)
    assert (verdict["verdict"], verdict["differences"], verdict["unknown"]) == ("equal", [], [])


@pytest.mark.parametrize(("codebase", "model", "task", "conventions", "fact"), UNEQUAL)
def test_documented_difference_is_named(
    cli: Cli, tmp_path: Path, codebase: str, model: str, task: str, conventions: str, fact: str
) -> None:
    peer(codebase, tmp_path)  # or skip
    verdict = audited(cli, codebase, model, task, conventions)
    assert verdict["verdict"] == "unequal"
    assert fact in {difference["fact"] for difference in verdict["differences"]}  # type: ignore[attr-defined]


@pytest.mark.parametrize("task", ["train", "infer"])
def test_paddledetection_in_float64_is_equal(cli: Cli, tmp_path: Path, task: str) -> None:
    peer("paddledet", tmp_path)  # or skip
    verdict = audited(cli, "paddledet", "solov2_light_r50_fpn", task, "paddledet", precision="float64")
    assert (verdict["verdict"], verdict["differences"], verdict["unknown"]) == ("equal", [], [])
