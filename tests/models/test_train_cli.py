"""`python -m detectors.train` and `.eval` from a user's side: real images, a killed run, two ranks, odd configs."""

from __future__ import annotations

import csv
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor

from bench.importers import import_logs
from bench.importers.clock import Clock
from bench.importers.formats.detectors import FORMATS
from detectors import eval as evaluation
from detectors import runtime, train, training_state
from tests.helpers.models import few_layers
from tests.helpers.process import ROOT


def start(*arguments: str | Path, module: str = "detectors.train", ranks: int = 1) -> subprocess.Popen[str]:
    launcher = (
        ["torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks), "-m"] if ranks > 1 else []
    )
    command = [sys.executable, "-m", *launcher, module, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment
    )


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


def wait_for(process: subprocess.Popen[str], log: Path, text: str) -> None:
    deadline = time.monotonic() + 240
    while not (log.exists() and text in log.read_text()):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no '{text}' in {log}"
        time.sleep(0.05)


def tensors(state: Any, name: str = "") -> dict[str, Tensor]:
    """All tensors of a checkpoint by their place in it."""
    if isinstance(state, Tensor):
        return {name: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {place: tensor for key, item in items for place, tensor in tensors(item, f"{name}.{key}").items()}


@pytest.mark.usefixtures("narrow")
def test_four_real_images_are_trained_on_and_evaluated(
    tmp_path: Path, coco_tiny: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((coco_tiny / "annotations" / "instances_train2017.json").read_text())
    content["images"] = content["images"][:4]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] in ids]
    (tmp_path / "four.json").write_text(json.dumps(content))
    split = {"annotations": str(tmp_path / "four.json"), "images": str(coco_tiny / "train2017")}
    resize = {"short": [64, 96], "long": 128}
    augment = {"resize": resize, "distort": True, "expand": 2, "crop": True}
    path = write_config(data={"train": split, "val": split, "workers": 1}, augment=augment)

    assert train.main([str(path)]) == 0
    log = import_logs("detectors", [tmp_path / "run" / "train.log"]).log
    (section,) = log.sections
    assert (section.first, section.last) == (1, 2)
    assert log.broken_lines == 0

    checkpoint = tmp_path / "run" / "checkpoint_00000002.pt"
    assert evaluation.main([str(path), str(checkpoint), "--set", "evaluate.batch=1"]) == 0
    printed = capsys.readouterr().out
    for task in ("bbox", "segm"):
        assert re.search(rf"evaluation: {task}  AP: -?\d\.\d{{3}}  AP50: ", printed)
    assert_found_as_in_the_results(checkpoint, content["images"][0], coco_tiny / "train2017")
    for entry in json.loads((tmp_path / "run" / "eval" / "segm.json").read_text())[:5]:
        assert entry["image_id"] in ids
        (size,) = [
            [one["height"], one["width"]] for one in content["images"] if one["id"] == entry["image_id"]
        ]
        assert entry["segmentation"]["size"] == size  # masks of the file's size, not of the network's input


def assert_found_as_in_the_results(checkpoint: Path, image: dict[str, Any], folder: Path) -> None:
    """One image from Python gives what the evaluation of all wrote down."""
    model, config, category_ids = evaluation.load_model(checkpoint)
    pixels = np.asarray(Image.open(folder / image["file_name"]).convert("RGB"))
    (found,) = evaluation.detect(model, [pixels], config)
    results = json.loads((checkpoint.parent / "eval" / "bbox.json").read_text())
    written = [entry for entry in results if entry["image_id"] == image["id"]]
    assert len(written) == len(found.boxes)
    for entry, score, label in zip(written, found.scores.tolist(), found.labels.tolist(), strict=True):
        assert entry["score"] == pytest.approx(score, rel=1e-4)
        assert entry["category_id"] == category_ids[label]


@pytest.mark.nightly
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    changes = {
        "schedule": {"iterations": 4, "steps": [3], "warmup": 2},
        "checkpoint": {"every": 2, "keep": 2},
    }
    assert train.main([str(write_config("whole", **changes))]) == 0
    path = write_config("killed", **changes)
    process = start(path)
    wait_for(process, tmp_path / "killed" / "train.log", "wrote ")
    process.kill()
    process.communicate()
    assert [one.name for one in training_state.checkpoints(tmp_path / "killed")] == ["checkpoint_00000002.pt"]
    assert train.main([str(path), "--resume"]) == 0
    assert "resumed from" in (tmp_path / "killed" / "train.log").read_text()

    whole, killed = (
        tensors(training_state.read(tmp_path / name / "checkpoint_00000004.pt"))
        for name in ("whole", "killed")
    )
    assert whole.keys() == killed.keys()
    assert {name.split(".")[1] for name in whole} == {"model", "optimizer", "ema"}
    for name, value in whole.items():
        assert torch.equal(value, killed[name]), name


class TerminateAtFirstLine(logging.Handler):
    """Sends this process SIGTERM when the log says that an iteration is done."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("iter: 1/"):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.usefixtures("narrow")
def test_sigterm_leaves_a_checkpoint_to_go_on_from(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    path = write_config(schedule={"iterations": 1000})
    handler = TerminateAtFirstLine()
    runtime.log.addHandler(handler)
    try:
        assert train.main([str(path)]) == 130
    finally:
        runtime.log.removeHandler(handler)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    (checkpoint,) = training_state.checkpoints(tmp_path / "run")
    done = training_state.read(checkpoint)["iteration"]
    assert f"stopped after iteration {done};" in (tmp_path / "run" / "train.log").read_text()


@pytest.mark.nightly
def test_two_ranks_take_the_step_of_one_process(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    # A loss that is a mean over images and draws no random numbers, images without padding: nothing but the way the
    # gradients are joined can make a difference.
    changes = {
        "model": {"name": "retinanet_r50_fpn", "settings": {"frozen_stages": 3}},
        "augment": {"resize": {"size": [64, 64]}},
        "schedule": {"iterations": 1, "warmup": 0},
    }
    assert train.main([str(write_config("begin", **changes))]) == 0
    changes["weights"] = str(tmp_path / "begin" / "checkpoint_00000001.pt")
    assert train.main([str(write_config("one", **changes))]) == 0
    out = finish(start(write_config("two", **changes), ranks=2))
    assert out.count(" iter: 1/1 ") == 1  # only one rank writes
    one, two = (
        tensors(training_state.read(tmp_path / name / "checkpoint_00000001.pt")) for name in ("one", "two")
    )
    momenta = [name for name in one if name.startswith(".optimizer.")]
    assert len(momenta) > 40
    # Momenta after the first step are the gradients. Between a batch of one and of two, rounding lets some values fall
    # on the other side of a ReLU; a sum in place of the mean would be off by 1, a wrong image by more.
    for name in momenta:
        assert (two[name] - one[name]).norm() < 0.03 * one[name].norm(), name
    all_one, all_two = (torch.cat([state[name].flatten() for name in momenta]) for state in (one, two))
    assert (all_two - all_one).norm() < 0.005 * all_one.norm()


@pytest.mark.nightly
def test_two_ranks_learn_classes_of_pixels(
    tmp_path: Path, shapes_folder: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A part of the model that has no loss would stop two ranks at their second step; here they make fifty."""
    split = {
        "annotations": str(shapes_folder / "annotations" / "instances_train.json"),
        "images": str(shapes_folder / "train"),
    }
    changes = {
        "model": {"name": "htc_r50_fpn", "settings": {"frozen_stages": 0, "frozen_bn": False}},
        "augment": {"resize": {"size": [64, 64]}},
        "schedule": {"iterations": 50, "warmup": 5},
        "weights": None,
    }
    assert train.main([str(write_config(data={"train": split, "workers": 0}, **changes))]) == 2
    error = capsys.readouterr().err
    assert "set data.train.semantic" in error
    assert "take htc_without_semantic_r50_fpn" in error
    maps = tmp_path / "maps"
    maps.mkdir()
    for image in (shapes_folder / "train").iterdir():
        with Image.open(image) as file:
            classes = np.full((file.height, file.width), 7, np.uint8)
        classes[0] = 255
        Image.fromarray(classes).save(maps / f"{image.stem}.png")
    data = {"train": {**split, "semantic": str(maps)}, "workers": 0}
    path = write_config("two", data=data, **changes)
    out = finish(start(path, module="tests.helpers.narrow_train", ranks=2))
    losses = [float(value) for value in re.findall(r"loss_semantic_seg: ([\d.e-]+)", out)]
    assert len(losses) == 50
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])


@pytest.mark.usefixtures("narrow")
def test_a_backbone_of_another_project_is_begun_with(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    other = torchvision.models.resnet50(weights=None)
    torch.save(other.state_dict(), tmp_path / "resnet50.pth")
    path = write_config(weights=str(tmp_path / "resnet50.pth"), schedule={"iterations": 1})
    assert train.main([str(path)]) == 0
    assert "torchvision: matched 265 of 265" in (tmp_path / "run" / "train.log").read_text()
    model = training_state.read(tmp_path / "run" / "checkpoint_00000001.pt")["model"]
    assert torch.equal(model["backbone.stages.0.0.conv1.conv.weight"], other.layer1[0].conv1.weight)


def test_a_detector_of_torchvision_is_fine_tuned_on_other_classes(
    tmp_path: Path, write_config: Callable[..., Path]
) -> None:
    body = torchvision.models.resnet.ResNet(torchvision.models.resnet.Bottleneck, [1, 1, 1, 1])
    detection = torchvision.models.detection
    other = detection.MaskRCNN(detection.backbone_utils._resnet_fpn_extractor(body, 5), num_classes=91)
    torch.save(other.state_dict(), tmp_path / "coco.pth")
    path = write_config(weights=str(tmp_path / "coco.pth"), schedule={"iterations": 1})
    with few_layers():
        assert train.main([str(path)]) == 0
    log = (tmp_path / "run" / "train.log").read_text()
    assert "torchvision: matched 121 of 127; other shape 6 (box_head.classes.weight" in log
    model = training_state.read(tmp_path / "run" / "checkpoint_00000001.pt")["model"]
    assert torch.equal(
        model["backbone.stages.0.0.conv1.conv.weight"], other.backbone.body.layer1[0].conv1.weight
    )


def test_random_layers_that_never_learn_are_refused(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([str(write_config(weights=None))]) == 2
    error = capsys.readouterr().err
    assert "are random and never learn" in error
    assert "set weights: imagenet or a file" in error


@pytest.mark.parametrize("value", ["augment.copy_paste=0.5", "checkpoint.best=segm"])
def test_what_needs_masks_is_refused_without(
    value: str, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(model={"name": "retinanet_r50_fpn", "settings": {"frozen_stages": 3}})
    assert train.main([str(path), "--set", value]) == 2
    key = value.partition(".")[2].partition("=")[0]
    assert f"--set {value}: {key} needs masks; retinanet_r50_fpn has none" in capsys.readouterr().err


def test_the_log_says_what_bench_reads(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    path = write_config(evaluated=True, model={"name": "retinanet_r50_fpn", "settings": {"frozen_stages": 3}})
    given = ["--set", "evaluate.every=1", "--set", "checkpoint.best=bbox", "--set", "checkpoint.patience=9"]
    assert train.main([str(path), *given]) == 0
    file = tmp_path / "run" / "train.log"
    log = import_logs("auto", [file]).log
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert {row["iteration"] for row in rows} == {"1", "2"}
    precisions = [float(row["value"]) for row in rows if row["name"] == "bbox/AP"]
    assert training_state.best(tmp_path / "run")[0] == max(precisions)
    assert len(precisions) == 2
    by_class = json.loads((tmp_path / "run" / "eval" / "classes.json").read_text())
    found = [value for value in by_class["bbox"].values() if value >= 0]
    assert np.mean(found or [0]) == pytest.approx(precisions[-1])
    assert log.broken_lines == 0
    text = file.read_text()
    (last,) = [line for line in text.splitlines() if " iter: 2/2 " in line]
    line = FORMATS[0].read(last.encode(), Clock())
    assert line is not None
    fields = line.fields
    assert set(fields.losses) == {"loss", "loss_classification", "loss_bbox_regression"}
    assert fields.losses["loss"] == pytest.approx(
        fields.losses["loss_classification"] + fields.losses["loss_bbox_regression"], rel=1e-3
    )
    assert fields.lr == 0.002
    assert fields.eta_s == 0
    assert fields.s_per_iter > fields.data_s > 0
    assert fields.images_per_s == pytest.approx(2 / fields.s_per_iter, rel=0.01)
    assert fields.memory_mb > 100
    names = [type(placed.event).__name__ for placed in log.found]
    assert names.count("Evaluation") == 2  # boxes, twice
    assert names.count("Inference") == 2
