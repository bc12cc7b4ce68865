"""Configs of a training that takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bench.inputs import shapes
from detectors import build, calibrate
from tests.helpers.models import narrow_heads

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
