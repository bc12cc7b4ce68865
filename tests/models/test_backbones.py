"""Backbones: what checkpoints of torchvision, timm, detectron2 and Caffe2 give them, and what is frozen in them.

That their features are mmdetection's is tested in tests/peers/test_backbones_vs_mmdet.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from bench.inputs.weights import to_codebase
from bench.recipe.models import BACKBONES
from detectors import Target, build
from detectors.backbones.hrnet import HRNet
from detectors.backbones.resnet import ResNet
from detectors.backbones.vgg import VGG16
from detectors.c4 import whole_backbone
from detectors.checkpoint import caffe2_name, detectron2_name, load_backbone, read_checkpoint
from detectors.necks.hrfpn import HRFPN
from tests.helpers.models import narrow_heads


def randomise_statistics(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            value.copy_(torch.rand(value.shape, generator=generator) * 0.5 + 0.75)


def resnet_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    """The outputs of the four stages of torchvision's and timm's."""
    act = model.relu if hasattr(model, "relu") else model.act1
    outputs = [model.maxpool(act(model.bn1(model.conv1(images))))]
    for layer in (model.layer1, model.layer2, model.layer3, model.layer4):
        outputs.append(layer(outputs[-1]))
    return outputs[1:]


def hrnet_features(model: nn.Module, images: Tensor) -> list[Tensor]:
    x = model.act1(model.bn1(model.conv1(images)))
    return list(model.stages(model.act2(model.bn2(model.conv2(x)))))


SOURCES: dict[
    str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], Callable[..., list[Tensor]], str]
] = {
    "torchvision resnet50": (
        lambda: torchvision.models.resnet50(weights=None),
        lambda: ResNet(50),
        resnet_features,
        "torchvision",
    ),
    "timm resnet50": (
        lambda: timm.create_model("resnet50", pretrained=False),
        lambda: ResNet(50),
        resnet_features,
        "torchvision",
    ),
    "timm resnet50d": (
        lambda: timm.create_model("resnet50d", pretrained=False),
        lambda: ResNet(50, vd=True),
        resnet_features,
        "timm vd",
    ),
    "timm hrnet_w18": (
        lambda: timm.create_model("hrnet_w18", pretrained=False),
        lambda: HRNet(18),
        hrnet_features,
        "hrnet",
    ),
}


@pytest.mark.parametrize("source", list(SOURCES))
def test_a_checkpoint_gives_its_networks_features(source: str) -> None:
    make_theirs, make_ours, features, layout = SOURCES[source]
    torch.manual_seed(0)
    theirs, ours = make_theirs().eval(), make_ours().eval()
    randomise_statistics(theirs)
    report = load_backbone(ours, theirs.state_dict())
    assert report.layout == layout
    assert report.complete
    assert set(report.matched) == {n for n in ours.state_dict() if not n.endswith("num_batches_tracked")}
    assert all(
        re.match(r"(fc|classifier|incre_modules|downsamp_modules|final_layer)\b", n)
        for n in report.unexpected
    )
    assert len(report.unexpected) > 0
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(ours(images), features(theirs, images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_vgg_of_torchvision_gives_all_but_what_ssd_adds() -> None:
    layers = torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"])  # vgg16 but its classifier
    report = load_backbone(backbone := VGG16(), layers.state_dict(prefix="features."))
    assert report.missing == ("fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias")
    assert not report.unexpected
    assert len(report.matched) == len(backbone.state_dict()) - 4


def as_caffe2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {theirs: value.clone() for name, value in state.items() if (theirs := caffe2_name(name))}


def test_caffe2_blobs_keep_no_statistics_and_may_want_blue_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, ours = ResNet(50, style="caffe"), ResNet(50, style="caffe")
    randomise_statistics(ours)  # which the checkpoint has to undo
    blobs = as_caffe2(source.state_dict())
    assert "res2_0_branch2a_w" in blobs
    assert "res_conv1_bn_s" in blobs
    np.savez(tmp_path / "R-50.npz", **{name: value.numpy() for name, value in blobs.items()})
    report = load_backbone(ours, tmp_path / "R-50.npz", bgr=True)
    assert report.layout == "caffe2"
    assert report.complete
    assert not report.unexpected
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(ours.eval()(images.flip(1)), source.eval()(images), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_a_detector_of_detectron2_gives_its_backbone(tmp_path: Path) -> None:
    state = ResNet(50).state_dict()
    given = {f"backbone.bottom_up.{detectron2_name(name)}": value for name, value in state.items()}
    given["roi_heads.box_predictor.cls_score.weight"] = torch.zeros(2, 2)
    torch.save({"model": given, "iteration": 1}, tmp_path / "model.pth")
    save_file(given, tmp_path / "model.safetensors")
    for name in ("model.pth", "model.safetensors"):
        ours = ResNet(50)
        report = load_backbone(ours, tmp_path / name)
        assert report.layout == "detectron2"
        assert report.complete
        assert report.unexpected == ("roi_heads.box_predictor.cls_score.weight",)
        assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


def test_a_detector_of_ours_gives_its_backbone_to_another(tmp_path: Path) -> None:
    trained = build("retinanet_r50_fpn", num_classes=3).state_dict()
    save_file(trained, tmp_path / "model.safetensors")
    backbone = build("faster_rcnn_r50_c4", num_classes=2).backbone
    report = load_backbone(backbone, tmp_path / "model.safetensors")
    assert report.layout == "detectors"
    assert report.complete
    assert "backbone.stages.3.0.conv1.conv.weight" in report.unexpected
    state = backbone.state_dict()
    assert state
    assert all(torch.equal(value, trained[f"backbone.{name}"]) for name, value in state.items())


@pytest.mark.parametrize("method", ["faster_rcnn", "mask_rcnn"])
def test_on_c4_the_last_stage_goes_to_the_head(method: str) -> None:
    pretrained = torchvision.models.resnet50(weights=None)
    randomise_statistics(pretrained)
    model = build(f"{method}_r50_c4", num_classes=2)
    report = load_backbone(whole_backbone(model), pretrained.state_dict())
    assert report.complete
    assert report.unexpected == ("fc.bias", "fc.weight")
    features = torch.randn(2, 1024, 14, 14)
    with torch.no_grad():
        torch.testing.assert_close(
            model.box_head.res5.eval()(features), pretrained.eval().layer4(features), rtol=1e-4, atol=1e-4
        )


def test_the_report_names_what_did_not_fit() -> None:
    state = torchvision.models.resnet50(weights=None).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(64, 32, 1, 1)
    del state["layer4.2.bn3.bias"]
    backbone = ResNet(50)
    before = backbone.stages[0][0].conv1.conv.weight.clone()
    report = load_backbone(backbone, state)
    assert report.other_shape == ("stages.0.0.conv1.conv.weight",)
    assert report.missing == ("stages.3.2.conv3.norm.bias",)
    assert not report.complete
    assert torch.equal(backbone.stages[0][0].conv1.conv.weight, before)
    assert str(report) == (
        "torchvision: matched 263 of 265; missing 1 (stages.3.2.conv3.norm.bias); "
        "other shape 1 (stages.0.0.conv1.conv.weight); unexpected 2 (fc.bias, fc.weight)"
    )


def test_foreign_and_unsafe_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no weight of the backbone"):
        load_backbone(ResNet(50), {"transformer.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"expected a \.pth"):
        read_checkpoint(tmp_path / "R-50.h5")


@pytest.mark.parametrize("make", [lambda n: HRNet(18, frozen_stages=n), lambda n: VGG16(frozen_stages=n)])
def test_frozen_stages_get_no_gradient_and_the_others_all(make: Callable[[int], nn.Module]) -> None:
    backbone = make(2)
    images = torch.randn(1, 3, 64, 64)
    sum(output.sum() for output in backbone(images)).backward()  # type: ignore[union-attr]
    frozen = re.compile(r"(stem|stages\.[01])\.")
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == bool(frozen.match(name)), name


def test_hrnet_takes_images_of_any_size_to_five_levels() -> None:
    backbone = HRNet(18).eval()
    neck = HRFPN(backbone.out_channels)
    with torch.no_grad():
        levels: Sequence[Tensor] = neck(backbone(torch.randn(1, 3, 75, 130)))
    assert [tuple(level.shape[1:]) for level in levels] == [
        (256, 19, 33), (256, 9, 16), (256, 4, 8), (256, 2, 4), (256, 1, 2),
    ]  # fmt: skip


@pytest.mark.parametrize("backbone", list(BACKBONES))
def test_every_method_has_names_in_mmdetection(backbone: str) -> None:
    name = f"faster_rcnn_{backbone}"
    with torch.device("meta"):
        model = build(name, num_classes=3)
    state = {key: np.broadcast_to(np.float32(0), value.shape) for key, value in model.state_dict().items()}
    assert len(to_codebase("mmdet", name, state)) == len(state)


@pytest.mark.parametrize(
    "name", ["resnet18", "convnext_atto", "swin_tiny_patch4_window7_224", "mobilenetv3_small_050"]
)
def test_a_backbone_of_timm_trains_and_loads(name: str) -> None:
    with narrow_heads():
        model = build(f"retinanet_timm_{name}_fpn", num_classes=3, frozen_stages=0)
    body = model.backbone
    images = torch.randn(1, 3, 64, 96)
    assert [tuple(one.shape[2:]) for one in body(images)] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    objects = Target(torch.tensor([[5.0, 5, 40, 50]]), torch.tensor([1]))
    losses = model.train().losses(images, torch.tensor([[64, 96]]), [objects])
    sum(losses.values()).backward()
    assert all(one.isfinite() for one in losses.values())
    assert next(body.parameters()).grad is not None
    classifier = timm.create_model(name, pretrained=False)
    report = load_backbone(body, classifier.state_dict())
    assert not report.other_shape
    assert len(report.matched) > 0.9 * (len(report.matched) + len(report.missing))


def test_stages_of_timm_are_frozen_or_refused() -> None:
    with narrow_heads():
        body = build("fcos_timm_resnet18_fpn", frozen_stages=2).train().backbone
        with pytest.raises(ValueError, match="cannot be frozen one by one"):
            build("fcos_timm_mobilenetv3_small_050_fpn", frozen_stages=1)
        with pytest.raises(ValueError, match="no pyramid of 'resnet19'"):
            build("fcos_timm_resnet19_fpn")
    learning = {name for name, one in body.named_parameters() if one.requires_grad}
    assert {name.split(".")[1] for name in learning if "conv" in name} == {"layer3", "layer4"}
