"""Whole detectors of other codebases in ours: weights that they saved, and what is found with them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from detectors import build, calibrate, config, runtime
from detectors.coco_classes import COCO_IDS, COCO_NAMES
from detectors.config import ConfigError
from detectors.foreign import CODEBASES, load_weights, shapes_of
from detectors.names import torchvision as torchvision_names
from detectors.weight_files import read_checkpoint
from tests.helpers.models import few_layers

SIZES = [(96, 128), (90, 100)]


def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 3, 96, 128), torch.tensor(SIZES)


def of_torchvision(name: str, classes: int) -> nn.Module:
    """torchvision's model with random weights and frozen normalisation that fits them."""
    ours = build(name, num_classes=classes)
    calibrate(ours, *images())
    state = {key: value.numpy() for key, value in ours.state_dict().items()}
    state = torchvision_names.convert(name, state)
    make: Callable[..., nn.Module] = {
        "faster_rcnn_r50_fpn": detection.FasterRCNN,
        "mask_rcnn_r50_fpn": detection.MaskRCNN,
    }[name]
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d)
    theirs = make(backbone, num_classes=classes + 1).eval()
    theirs.load_state_dict({key: torch.from_numpy(value.copy()) for key, value in state.items()})
    return theirs


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", [pytest.param("faster_rcnn_r50_fpn", marks=pytest.mark.nightly), "mask_rcnn_r50_fpn"]
)
def test_a_file_of_torchvision_detects_as_torchvision(name: str, tmp_path: Path) -> None:
    theirs = of_torchvision(name, 5)
    path = tmp_path / "theirs.pth"
    torch.save({"model": theirs.state_dict(), "epoch": 3}, path)
    ours = build(name, num_classes=5).eval()
    report = load_weights(ours, path)
    assert report.complete
    assert not report.unexpected
    batch, sizes = images()
    with torch.no_grad():
        found = ours.postprocess(ours.network(batch, sizes), SIZES, SIZES)
        listed = detection.image_list.ImageList(batch, SIZES)
        features = theirs.backbone(batch)
        proposals, _ = theirs.rpn(listed, features)
        expected, _ = theirs.roi_heads(features, proposals, SIZES)
    for detections, reference in zip(found, expected, strict=True):
        assert len(detections.boxes) > 5
        assert torch.equal(detections.labels, reference["labels"] - 1)
        torch.testing.assert_close(detections.scores, reference["scores"], rtol=0, atol=1e-4)
        torch.testing.assert_close(detections.boxes, reference["boxes"], rtol=0, atol=1e-2)


#: Models with few layers, whose names are those of the whole ones.
CASES = [
    *((codebase, "faster_rcnn_r50_fpn") for codebase in CODEBASES),
    *((codebase, "mask_rcnn_r50_fpn") for codebase in CODEBASES),
    *(("torchvision", name) for name in ("retinanet_r50_fpn", "fcos_r50_fpn", "ssd300_vgg16")),
    *(("mmdet", name) for name in ("retinanet_r50_fpn", "fcos_r50_fpn", "cascade_mask_rcnn_r50_fpn")),
    *(
        ("mmdet", name)
        for name in ("htc_r50_fpn", "solov2_light_r50_fpn", "faster_rcnn_r50_c4", "rpn_r50_fpn")
    ),
    *(("paddledet", name) for name in ("solov2_light_r50_fpn", "solov2_light_r50_dcn_fpn")),
]


def numbered(model: nn.Module) -> dict[str, Tensor]:
    """Another value at every place of a model's weights."""
    torch.manual_seed(1)
    return {
        key: torch.rand_like(value) for key, value in model.state_dict().items() if "num_batch" not in key
    }


def conventions(codebase: str, name: str) -> dict[str, str]:
    return {"conventions": "mmdet"} if codebase == "mmdet" and name.startswith(("retina", "fcos")) else {}


def foreign(codebase: str, name: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    arrays = {key: value.numpy() for key, value in state.items()}
    converted = CODEBASES[codebase].convert(name, arrays)
    return {key: torch.from_numpy(np.array(value)) for key, value in converted.items()}


@pytest.mark.parametrize(("codebase", "name"), CASES)
def test_every_name_leads_back(codebase: str, name: str) -> None:
    with few_layers():
        model = build(name, num_classes=7, **conventions(codebase, name))
        state = numbered(model)
        report = load_weights(model, foreign(codebase, name, state))
    assert report.layout == codebase
    assert report.complete
    assert not report.unexpected
    for key, value in model.state_dict().items():
        if key in state:
            assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(("codebase", "name"), CASES[::3])
def test_another_number_of_classes_leaves_their_layers(codebase: str, name: str) -> None:
    settings = conventions(codebase, name)
    with few_layers():
        state = numbered(build(name, num_classes=7, **settings))
        model = build(name, num_classes=4, **settings)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        report = load_weights(model, foreign(codebase, name, state))
        of_classes = {
            key for key, shape in shapes_of(name, settings, 5).items() if shape != tuple(before[key].shape)
        }
    assert set(report.other_shape) == of_classes
    assert not report.missing
    for key, value in model.state_dict().items():
        if key in state:
            assert torch.equal(value, before[key] if key in of_classes else state[key]), key


def test_our_own_weights_fit_another_number_of_classes_too() -> None:
    with few_layers():
        state = build("faster_rcnn_r50_fpn", num_classes=7).state_dict()
        model = build("faster_rcnn_r50_fpn", num_classes=3)
        report = load_weights(model, {**state, "of.another": torch.zeros(1)})
    assert report.layout == "detectors"
    assert set(report.other_shape) == {
        f"box_head.{layer}.{kind}" for layer in ("classes", "deltas") for kind in ("weight", "bias")
    }
    assert report.unexpected == ("of.another",)


@pytest.mark.parametrize(
    ("name", "theirs", "first"),
    [
        ("faster_rcnn_r50_fpn", 90, 1),
        ("mask_rcnn_r50_fpn", 90, 1),
        ("ssd300_vgg16", 90, 1),
        ("retinanet_r50_fpn", 91, 0),
        ("fcos_r50_fpn", 91, 0),
    ],
)
def test_80_classes_are_found_among_cocos_ids(name: str, theirs: int, first: int) -> None:
    """Each class's rows hold its number: label 0 is COCO's id 1, label 79 its id 90."""
    with few_layers():
        model = build(name, num_classes=theirs)
        state = model.state_dict()
        for key, value in state.items():
            if "classes" in key and key.endswith("bias"):
                rows = theirs + (0 if first == 0 else 1)
                number = torch.arange(rows).float() + first
                value.copy_(number.repeat(len(value) // rows))
            if key == "box_head.deltas.bias":
                value.copy_((torch.arange(theirs).float() + first).repeat_interleave(4))
            if key == "mask_head.logits.bias":
                value.copy_(torch.arange(theirs).float() + first)
        ours = build(name, num_classes=80)
        report = load_weights(ours, foreign("torchvision", name, state))
    assert report.complete
    wanted = torch.tensor(COCO_IDS).float()
    own = ours.state_dict()
    for key, value in own.items():
        if "classes" in key and key.endswith("bias"):
            rows = value.view(-1, 81) if first else value.view(-1, 80)
            assert (rows[:, :80] == wanted).all(), key
            assert not first or (rows[:, 80] == 91).all()
    for key, times in (("box_head.deltas.bias", 4), ("mask_head.logits.bias", 1)):
        if key in own:
            assert torch.equal(own[key], wanted.repeat_interleave(times))


def test_cocos_classes_are_those_of_its_files(coco_tiny: Path) -> None:
    content = json.loads((coco_tiny / "annotations" / "instances_train2017.json").read_text())
    known = {one["id"]: one["name"] for one in content["categories"]}
    assert dict(zip(COCO_IDS, COCO_NAMES, strict=True)) == known


def test_names_of_an_earlier_torchvision_are_known() -> None:
    with few_layers():
        model = build("mask_rcnn_r50_fpn", num_classes=3)
        state = foreign("torchvision", "mask_rcnn_r50_fpn", numbered(model))
        older = {torchvision_names.older(key): value for key, value in state.items()}
        assert "rpn.head.conv.weight" in older
        assert "roi_heads.mask_head.mask_fcn4.bias" in older
        assert "backbone.fpn.layer_blocks.0.weight" in older
        assert load_weights(model, older).complete


def test_an_epsilon_of_zero_is_kept_in_the_variances(tmp_path: Path) -> None:
    with few_layers():
        model = build("faster_rcnn_r50_fpn", num_classes=3)
        state = foreign("torchvision", "faster_rcnn_r50_fpn", numbered(model))
        path = tmp_path / "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"
        torch.save(state, path)
        load_weights(model, path)
    norm = model.backbone.stem.norm
    exact = state["backbone.body.bn1.weight"] * state["backbone.body.bn1.running_var"].rsqrt()
    torch.testing.assert_close(norm.scale_and_shift()[0], exact, rtol=1e-3, atol=0)


def test_a_detectron2_pickle_is_read_as_arrays_only(tmp_path: Path) -> None:
    with few_layers():
        model = build("faster_rcnn_r50_fpn", num_classes=3)
        state = numbered(model)
        theirs = {
            key: value.numpy() for key, value in foreign("detectron2", "faster_rcnn_r50_fpn", state).items()
        }
        path = tmp_path / "model_final.pkl"
        path.write_bytes(pickle.dumps({"model": theirs, "__author__": "Detectron2 Model Zoo"}))
        assert load_weights(model, path).complete


def test_a_paddle_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pdparams"
    content = {
        "conv.weight": np.ones((2, 3), np.float32),
        "StructuredToParameterName@@": {"conv.weight": "w_0"},
    }
    path.write_bytes(pickle.dumps(content, protocol=2))
    assert torch.equal(read_checkpoint(path)["conv.weight"], torch.ones(2, 3))


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("code was run",)


def test_code_in_a_pickle_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"weight": np.ones(2), "more": Evil()}))
    with pytest.raises(ValueError, match=r"builtins.print, which could run code"):
        read_checkpoint(path)
    assert capsys.readouterr().out == ""


class HistoryBuffer:
    """Like mmengine's: a class that a checkpoint holds beside its weights."""

    def __init__(self) -> None:
        self.values = [1, 2]


def test_objects_beside_the_weights_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "epoch_12.pth"
    torch.save({"state_dict": {"weight": torch.ones(2)}, "message_hub": {"loss": HistoryBuffer()}}, path)
    assert list(read_checkpoint(path)) == ["weight"]


def test_a_file_without_any_weight_is_an_error() -> None:
    with few_layers(), pytest.raises(ValueError, match="no weight of faster_rcnn_r50_fpn found among a"):
        load_weights(build("faster_rcnn_r50_fpn"), {"a": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"made by detectors\.build"):
        load_weights(nn.Linear(2, 2), {"a": torch.zeros(1)})


def loaded(**changes: Any) -> config.Loaded:
    content = {
        "model": {"name": "faster_rcnn_r50_fpn"},
        "data": {"train": {"annotations": "a", "images": "b"}},
        "optimizer": {"lr": 0.1},
        "schedule": {"name": "1x"},
        "output": "runs",
    }
    return config.Loaded(config.from_dict(content | changes), {("weights",): "c.yaml:3"})


def test_imagenet_weights_that_cannot_be_fetched_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.get_weight", offline)
    with few_layers():
        model = build("faster_rcnn_r50_fpn")
    with pytest.raises(ConfigError, match=r"cannot fetch ResNet50_Weights.*no network.*give a file"):
        runtime.begin_with(model, "imagenet", loaded())


def test_frozen_layers_that_the_file_lacks_are_an_error(tmp_path: Path) -> None:
    with few_layers():
        model = build("faster_rcnn_r50_fpn", frozen_stages=2)
    state = {
        key: value for key, value in model.backbone.state_dict().items() if not key.startswith("stages.1")
    }
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(ConfigError, match=r"has no weights for layers that never learn: stages\.1\.0"):
        runtime.begin_with(model, str(tmp_path / "part.pth"), loaded())
