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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import yaml
from PIL import Image
from torch import Tensor, nn

from bench.importers import import_logs
from bench.importers.clock import Clock
from bench.importers.formats.detectors import FORMATS
from bench.inputs import shapes
from detectors import build, calibrate, runtime, train, training_state
from detectors import config as configs
from detectors import eval as evaluation
from detectors.coco import Batch
from detectors.config import ConfigError
from detectors.eval import METRICS
from tests.helpers.models import few_layers, narrow_heads
from tests.helpers.process import ROOT

#: Small, of one thread, and as little written as can be: frozen stages have no momentum.
TINY: dict[str, Any] = {
    "model": {"name": "mask_rcnn_r50_fpn", "settings": {"frozen_stages": 4}},
    "augment": {"resize": {"short": [64, 96], "long": 128}},
    "optimizer": {"lr": 0.002, "clip_norm": 10, "rules": [{"match": "bias$", "lr": 2, "weight_decay": 0}]},
    "schedule": {"iterations": 2, "warmup": 1},
    "batch": 2,
    "ema": 0.9,
    "log_every": 1,
    "evaluate": {"batch": 2, "resize": {"short": 64, "long": 128}},
}


@pytest.fixture(scope="module")
def shapes_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    shapes.write(folder, "train", 4)
    return folder


@pytest.fixture(scope="module")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a backbone whose frozen statistics fit its random convolutions."""
    torch.manual_seed(0)
    model = build("mask_rcnn_r50_fpn", num_classes=8)
    calibrate(model, torch.randn(1, 3, 96, 128), torch.tensor([[96, 128]]))
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(model.backbone.state_dict(), path)
    return path


@pytest.fixture
def write_config(tmp_path: Path, shapes_folder: Path, backbone_file: Path) -> Callable[..., Path]:
    """Writes a config on shapes; keyword arguments replace top-level keys of ``TINY``.

    Nothing is evaluated unless ``evaluated``: that takes longer than training does.
    """

    def write(name: str = "run", *, evaluated: bool = False, **changes: Any) -> Path:
        split = {
            "annotations": str(shapes_folder / "annotations" / "instances_train.json"),
            "images": str(shapes_folder / "train"),
        }
        data = {"train": split, "workers": 0} | ({"val": split} if evaluated else {})
        path = tmp_path / f"{name}.yaml"
        content = {
            **TINY,
            "data": data,
            "weights": str(backbone_file),
            "output": str(tmp_path / name),
            **changes,
        }
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture
def narrow() -> Iterator[None]:
    with narrow_heads():
        yield


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
    augment = {**TINY["augment"], "distort": True, "expand": 2, "crop": True}
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


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


class Toy(nn.Module):
    """A model with one loss, for what does not depend on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def losses(self, images: Tensor, image_sizes: Tensor, targets: object) -> dict[str, Tensor]:
        return {"loss": self.linear(images.mean(dim=(2, 3))).float().square().mean()}


def toy_trainer(path: Path, *overrides: str) -> tuple[train.Trainer, Batch]:
    torch.manual_seed(0)
    config = configs.load(path, overrides).config
    schedule = train.make_schedule(config.schedule, lr=config.optimizer.lr, iterations_per_epoch=1)
    ranks = runtime.Ranks(0, 1, torch.device("cpu"))
    model = Toy()
    with torch.no_grad():  # so small that the first scale, 65536, is not too much
        for parameter in model.parameters():
            parameter.mul_(0.1)
    batch = Batch(torch.randn(2, 3, 8, 8), [(8, 8)] * 2, [(8, 8)] * 2, [1, 2], [])
    return train.Trainer(model, config, schedule, ranks), batch


def test_float16_steps_as_float32_and_skips_what_overflows(
    write_config: Callable[..., Path],
) -> None:
    path = write_config(optimizer={"lr": 0.1, "clip_norm": 0.01}, schedule={"iterations": 9, "warmup": 0})
    half, batch = toy_trainer(path, "precision=float16")
    full, _ = toy_trainer(path)
    before = half.model.linear.weight.clone()
    half.step(0, batch)
    full.step(0, batch)
    moved = full.model.linear.weight - before  # of length 0.001
    torch.testing.assert_close(half.model.linear.weight - before, moved, rtol=0, atol=1.5e-4)
    assert not torch.equal(half.model.linear.weight, before)

    state = half.state(1)
    assert state["scaler"]["scale"] > 1
    after = half.model.linear.weight.clone()
    half.step(1, batch._replace(images=batch.images * 1e20))
    assert torch.equal(half.model.linear.weight, after)
    assert half.state(2)["scaler"]["scale"] < state["scaler"]["scale"]


def test_a_batch_in_parts_has_the_gradients_of_the_whole(write_config: Callable[..., Path]) -> None:
    gradients = []
    for accumulate in (1, 2):
        trainer, batch = toy_trainer(write_config(), f"optimizer.accumulate={accumulate}")
        losses = trainer.gradients(batch)
        gradients.append([one.grad for one in trainer.model.parameters()] + list(losses.values()))
    for whole, parts in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, parts)


def test_adamw_takes_torchs_step(write_config: Callable[..., Path]) -> None:
    overrides = ("optimizer={name: adamw, lr: 0.01, weight_decay: 0.1, betas: [0.8, 0.9]}", "ema=null")
    trainer, batch = toy_trainer(write_config(schedule={"iterations": 5, "warmup": 0}), *overrides)
    reference = Toy()
    reference.load_state_dict(trainer.model.state_dict())
    theirs = torch.optim.AdamW(reference.parameters(), lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    for iteration in range(3):
        trainer.step(iteration, batch)
        theirs.zero_grad()
        reference.losses(batch.images, batch.sizes(), [])["loss"].backward()
        theirs.step()
    for ours, expected in zip(trainer.model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_bfloat16_computes_what_float32_does_but_for_rounding(write_config: Callable[..., Path]) -> None:
    half, batch = toy_trainer(write_config(), "precision=bfloat16")
    full, _ = toy_trainer(write_config())
    rounded, exact = (trainer.step(0, batch)["loss"].item() for trainer in (half, full))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


def test_gradients_are_clipped_and_rules_scale_rate_and_decay(write_config: Callable[..., Path]) -> None:
    path = write_config(
        optimizer={
            "lr": 0.5,
            "momentum": 0,
            "weight_decay": 0,
            "clip_norm": 0.01,
            "rules": [{"match": "bias", "lr": 2}],
        },
        schedule={"iterations": 9, "warmup": 0},
    )
    trainer, batch = toy_trainer(path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.step(0, batch)
    moved = {name: value - before[name] for name, value in trainer.model.state_dict().items()}
    gradient = torch.cat([moved["linear.weight"].flatten() / 0.5, moved["linear.bias"] / 1.0])
    assert gradient.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_the_log_says_what_bench_reads(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    path = write_config(evaluated=True, model={"name": "retinanet_r50_fpn", "settings": {"frozen_stages": 3}})
    given = ["--set", "evaluate.every=1", "--set", "checkpoint.best=bbox", "--set", "checkpoint.patience=9"]
    assert train.main([str(path), *given]) == 0
    file = tmp_path / "run" / "train.log"
    log = import_logs("auto", [file]).log
    rows = list(csv.DictReader((tmp_path / "run" / "metrics.csv").open()))
    assert {row["iteration"] for row in rows} == {"1", "2"}
    precisions = [float(row["value"]) for row in rows if row["name"] == "bbox/AP"]
    assert training_state.best(tmp_path / "run") == max(precisions)
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


@pytest.mark.usefixtures("narrow")
def test_a_finished_run_is_not_written_over(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(schedule={"iterations": 1})
    assert train.main([str(path)]) == 0
    assert train.main([str(path)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert train.main([str(path), "--resume"]) == 0  # nothing is left to do


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        pytest.param("batch: 2\nbatsh: 3", 7, "unknown key 'batsh'; did you mean batch?", id="unknown key"),
        pytest.param("optimizer: {lr: fast}", 6, "optimizer.lr must be a valid number", id="type"),
        pytest.param("batch: 0", 6, "batch must be greater than or equal to 1, got 0", id="limit"),
        pytest.param("batch: true", 6, "batch must be a valid integer, got True", id="true is no number"),
        pytest.param("precision: float61", 6, "did you mean float16", id="choice"),
        pytest.param("optimizer: {lr: true}", 6, "lr must be a valid number, got True", id="true rate"),
        pytest.param("optimizer: {lr: .inf}", 6, "lr must be a finite number, got inf", id="infinite"),
        pytest.param("optimizer: {}", 6, "'optimizer.lr' is missing", id="missing"),
        pytest.param("optimizer: {rate: 1}", 6, "unknown key 'rate'; known: accumulate, betas", id="nested"),
        pytest.param("evaluate: {resize: {shrt: 3}}", 6, "did you mean short?", id="deep"),
        pytest.param("augment: {crop: 1}", 6, "augment.crop must be a valid boolean", id="no truth"),
        pytest.param("kernels: fast", 6, "kernels must be 'auto' or 'torch', got 'fast'", id="kernels"),
        pytest.param("augment:\n  resize: {short: [600, 1400]}", 7, "longer than the long one", id="sides"),
        pytest.param(
            "schedule: {name: 1x, iterations: 5}", 6, "either name (1x, 2x, …) or iterations", id="both"
        ),
        pytest.param("output: a\noutput: b", 7, "'output' is given twice", id="twice"),
        pytest.param("batch: [1, 2", 7, "not valid YAML", id="syntax"),
    ],
)
def test_a_wrong_config_is_told_with_file_and_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    head = "\n".join(
        [
            "model: {name: mask_rcnn_r50_fpn}",
            "data:",
            "  train: {annotations: a.json, images: a}",
            "",
            "# The rest of it",
            "",
        ]
    )
    present = {line.partition(":")[0] for line in text.splitlines()}
    rest = {
        "optimizer": "optimizer: {lr: 0.1}",
        "schedule": "schedule: {name: 1x}",
        "output": "output: runs/a",
    }
    path = tmp_path / "config.yaml"
    path.write_text(
        "\n".join([head + text, *(value for key, value in rest.items() if key not in present)]) + "\n"
    )
    with pytest.raises(ConfigError) as caught:
        configs.load(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("model.name=mask_rcnn_r50_fpm", "did you mean mask_rcnn_r50_fpn", id="model"),
        pytest.param("model.settings.frozen=3", "frozen", id="setting"),
        pytest.param("data.train.images=/nowhere", "no such folder: /nowhere", id="folder"),
        pytest.param("data.train.images=/", "4 of 4 images are not in /", id="images"),
        pytest.param("weights=/nowhere.pt", "no such checkpoint", id="weights"),
        pytest.param(
            "optimizer.rules=[{match: nothing_is_called_so}]", "is found in no trainable parameter", id="rule"
        ),
    ],
)
def test_what_is_not_there_ends_with_code_2(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str], override: str, message: str
) -> None:
    assert train.main([str(write_config()), "--set", override]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.usefixtures("narrow")
def test_a_loss_that_is_no_number_stops_the_run(
    tmp_path: Path, write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_config(optimizer={"lr": 1e20}, schedule={"iterations": 5, "warmup": 0}, log_every=3)
    assert train.main([str(path)]) == 4
    assert "a loss is no number" in capsys.readouterr().err
    assert not training_state.checkpoints(tmp_path / "run")


def test_the_configs_that_we_ship_can_be_read_and_built() -> None:
    files = sorted((ROOT / "detectors" / "configs").glob("*.yaml"))
    assert len(files) >= 12
    for file in files:
        loaded = configs.load(file)
        assert loaded.config.output.startswith("runs/"), file
        with torch.device("meta"):
            runtime.build_model(loaded, 3)


@pytest.mark.usefixtures("narrow")
def test_training_ends_when_no_ap_is_better(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    path = write_config(
        evaluated=True,
        model={"name": "retinanet_r50_fpn", "settings": {"frozen_stages": 3}},
        optimizer={"lr": 1e-12},
        schedule={"iterations": 100},
        checkpoint={"best": "bbox", "patience": 1},
        evaluate={"every": 1, "resize": {"short": 64, "long": 96}},
    )
    assert train.main([str(path)]) == 0
    assert (
        "no better AP in 1 evaluations: stopped after iteration 2" in (tmp_path / "run/train.log").read_text()
    )
    assert [one.name for one in training_state.checkpoints(tmp_path / "run")] == ["checkpoint_00000002.pt"]
    assert training_state.read(tmp_path / "run" / "best.pt")["iteration"] == 1


def test_no_detections_are_an_ap_of_zero(shapes_folder: Path) -> None:
    split = configs.Split(
        str(shapes_folder / "annotations" / "instances_train.json"), str(shapes_folder / "train")
    )
    assert evaluation.summary(evaluation.evaluated(split, [], "segm")) == dict.fromkeys(METRICS, 0.0)
