"""What a trainer of one's own classes may want beside: changes of its own, rare classes, compiled losses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from bench.inputs import shapes
from detectors import config as configs
from detectors import hook, preflight, train, training_state
from detectors.order import repeated
from detectors.transforms import Sample
from tests.helpers.models import few_layers, narrow_heads

MIRROR = """
class Mirror:
    seed = None

    def set_random_seed(self, seed):
        self.seed = seed

    def __call__(self, image, bboxes, objects, masks=()):
        kept = objects[::-1][:2]
        width = image.shape[1]
        boxes = [[width - bboxes[one][2], bboxes[one][1], width - bboxes[one][0], bboxes[one][3]] for one in kept]
        return {
            "image": image[:, ::-1],
            "bboxes": boxes,
            "objects": kept,
            "masks": [mask[:, ::-1] for mask in masks],
        }

changes = Mirror()
number = 3

def broken(image, **more):
    return {"image": image[:, :, 0], **more}

def raising(**given):
    raise RuntimeError("no such colour")
"""


@pytest.fixture
def augment(tmp_path: Path) -> Path:
    path = tmp_path / "augment.py"
    path.write_text(MIRROR)
    return path


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., Path]:
    shapes.write(tmp_path / "shapes", "train", 3)
    split = {
        "annotations": str(tmp_path / "shapes" / "annotations" / "instances_train.json"),
        "images": str(tmp_path / "shapes" / "train"),
    }

    def write(**changes: Any) -> Path:
        content = {
            "model": {"name": "retinanet_r50_fpn", "settings": {"frozen_stages": 0, "frozen_bn": False}},
            "data": {"train": split, "workers": 0},
            "augment": {"resize": {"size": [64, 64]}},
            "optimizer": {"lr": 0.001},
            "schedule": {"iterations": 2, "warmup": 1},
            "batch": 1,
            "output": str(tmp_path / "run"),
            **changes,
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


def sample() -> Sample:
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 4], [4, 0, 6, 3]], np.float64)
    masks = np.zeros((3, 4, 6), np.uint8)
    masks[2, :3, 4:] = 1
    return Sample(image, boxes, np.array([5, 6, 7]), masks)


def test_a_hook_changes_image_boxes_and_masks(augment: Path) -> None:
    before = sample()
    after = hook.changed(before, f"{augment}:changes", np.random.default_rng(0))
    assert np.array_equal(after.image, before.image[:, ::-1])
    assert after.boxes.tolist() == [[0, 0, 2, 3], [3, 1, 5, 4]]
    assert after.labels.tolist() == [7, 6]
    assert np.array_equal(after.masks, before.masks[[2, 1], :, ::-1])
    assert hook.load(f"{augment}:changes").seed == np.random.default_rng(0).integers(2**31)


def test_a_hook_may_leave_no_object(augment: Path) -> None:
    empty = sample().only(np.zeros(3, bool))
    after = hook.changed(empty, f"{augment}:changes", np.random.default_rng(0))
    assert (after.boxes.shape, after.masks.shape) == ((0, 4), (0, 4, 6))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raising", r"raising fails: RuntimeError: no such colour \(.*augment.py:26\)"),
        ("broken", r"returns an image uint8 \[4, 6\], expected uint8 \[h, w, 3\]"),
        ("number", r"has no number that can be called"),
        ("missing", r"has no missing that can be called"),
    ],
)
def test_a_wrong_hook_is_told_in_one_line(augment: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        hook.changed(sample(), f"{augment}:{name}", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("place", "code", "message"),
    [
        ("nowhere.py:changes", 2, "config.yaml:12: no such hook: nowhere.py:changes; expected FILE.py:NAME"),
        ("{augment}:raising", 2, "raising fails: RuntimeError: no such colour"),
    ],
)
def test_training_ends_where_a_hook_does(
    place: str,
    code: int,
    message: str,
    augment: Path,
    write_config: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_config(augment={"hook": place.format(augment=augment), "resize": {"size": [64, 64]}})
    with few_layers(), narrow_heads():
        assert train.main([str(path)]) == code
    assert message in capsys.readouterr().err


def test_images_of_rare_categories_come_more_often() -> None:
    """Of 16 images one shows category 2; half of them should, so that it comes sqrt(8) times, rounded up."""
    shown = [{1}] * 14 + [{1, 2}, set()]
    assert repeated(range(16), shown, 0.5) == [*range(14), 14, 14, 14, 15]
    assert repeated(range(16), shown, 0.0) == [*range(16)]


@pytest.mark.nightly
def test_compiled_losses_take_the_same_steps(tmp_path: Path, write_config: Callable[..., Path]) -> None:
    states = []
    for compiled in (False, True):
        output = str(tmp_path / f"compiled {compiled}")
        with few_layers(), narrow_heads():
            assert train.main([str(write_config(compile=compiled, output=output))]) == 0
        states.append(training_state.read(training_state.checkpoints(Path(output))[-1])["model"])
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_statistics_of_all_ranks_are_for_cuda(write_config: Callable[..., Path]) -> None:
    loaded = configs.load(write_config(sync_bn=True, batch=2))
    preflight.check_ranks(loaded, 2, "cuda")
    preflight.check_ranks(loaded, 1, "cpu")
    with pytest.raises(configs.ConfigError, match=r"config.yaml:\d+: sync_bn is for CUDA devices"):
        preflight.check_ranks(loaded, 2, "cpu")


@pytest.mark.parametrize(
    ("package", "changes"),
    [
        ("tensorboard", {"records": ["csv", "tensorboard"]}),
        ("wandb", {"records": "wandb"}),
        ("timm", {"model": {"name": "fcos_timm_resnet18_fpn"}}),
        ("torchvision", {"weights": "imagenet"}),
    ],
)
def test_missing_package_is_named_before_anything_is_read(
    package: str, changes: dict[str, Any], write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = configs.load(write_config(**changes), ["data.train.annotations=/nowhere"])
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        configs.ConfigError, match=rf"yaml:\d+: {package} is not installed; pip install {package}$"
    ):
        train.train(loaded)
