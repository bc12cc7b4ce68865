"""One set of trained weights, evaluated by two codebases from files to AP: the same AP to 0.001.

Eight scenes are learned for some dozen steps, enough for detections that are right and wrong.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.inputs.coco import read_coco
from bench.judge.accuracy import evaluate
from benchmarks.overfit import batches_of, config_for, fit, look_at_fewer_regions, resize_for, write_scenes
from detectors import build, calibrate, runtime
from detectors.coco import CocoFolder
from tests.conftest import Cli
from tests.peers.conftest import peer

pytestmark = [pytest.mark.peers, pytest.mark.nightly]

SIDE = 128
STEPS = int(os.environ.get("EQUAL_AP_STEPS", "60"))


@pytest.mark.parametrize(
    ("codebase", "model"),
    [
        ("torchvision", "retinanet_r50_fpn"),
        ("torchvision", "fcos_r50_fpn"),
        ("torchvision", "ssd300_vgg16"),
        ("torchvision", "faster_rcnn_r50_fpn"),
        ("torchvision", "mask_rcnn_r50_fpn"),
        ("mmdet", "retinanet_r50_fpn"),
        ("mmdet", "mask_rcnn_r50_fpn"),
        ("mmdet", "solov2_light_r50_fpn"),
    ],
)
def test_two_codebases_give_the_same_ap(cli: Cli, tmp_path: Path, codebase: str, model: str) -> None:
    if codebase != "torchvision":
        peer(codebase, tmp_path)  # or skip
    scenes = write_scenes(tmp_path / "scenes", "train", 8, smallest=96)
    classes = len(read_coco(Path(scenes.annotations))["categories"])
    torch.manual_seed(0)
    settings = {} if model.startswith("solov2") else {"conventions": codebase}
    trained = build(model, num_classes=classes, frozen_stages=0, **settings)
    look_at_fewer_regions(trained, 64, 200)
    config = config_for(scenes, scenes, resize_for(model, SIDE), batch=4)
    masks = runtime.uses_masks(trained)
    batch = next(batches_of(CocoFolder(scenes.annotations, scenes.images, masks=masks), config))
    calibrate(trained, batch.images, batch.sizes())
    fit(trained, config, tmp_path / "fit", iterations=STEPS, lr=3e-4, look_every=STEPS)
    weights = tmp_path / "weights.npz"
    np.savez(weights, **{name: value.numpy() for name, value in trained.state_dict().items()})

    size = [300, 300] if model.startswith("ssd") else {"short": SIDE, "long": 4 * SIDE // 3}
    recipe = cli.recipe(
        name="ap",
        workload={
            "task": "eval",
            "model": model,
            "weights": str(weights),
            "batch_size": 1,
            "input": {"annotations": scenes.annotations, "images": scenes.images, "size": size},
        },
        arms=[codebase, {"codebase": "native", "options": settings}],
        baseline="native",
        measure={"quiet": "off", "warmup": 1, "steps": 1, "rounds": 1, "launches": 1, "deadline_s": 300},
    )
    done = cli("run", recipe, "--results", cli.results, "--quiet")
    assert done.code == 0, done.err
    found = {}
    for file in (cli.runs()[-1] / "arms").glob("*.json"):
        arm = json.loads(file.read_text())
        assert arm["status"] == "ok", arm["failure"]
        truth = cli.runs()[-1] / arm["evaluated"]["ground_truth"]
        results = cli.runs()[-1] / arm["predictions"]["path"]
        tasks = ("bbox", "segm") if masks else ("bbox",)
        found[arm["codebase"]] = [
            evaluate(truth, results, task, image_ids=tuple(arm["evaluated"]["image_ids"])).metrics["AP"]
            for task in tasks
        ]
    print(codebase, model, found)
    assert found[codebase] == pytest.approx(found["native"], abs=1e-3)
    assert min(found["native"]) > 0.1  # two models that find nothing would be equal, too
