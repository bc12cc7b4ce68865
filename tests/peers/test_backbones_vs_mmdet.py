"""Backbones against mmdetection 3.3 (mmdet/models/backbones/resnext.py, resnet.py, hrnet.py and necks/hrfpn.py), given
the same weights and images."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detectors.backbones.hrnet import HRNet
from detectors.backbones.resnet import ResNet
from detectors.layers import calibrating
from detectors.names.mmdet import rename
from detectors.necks.hrfpn import HRFPN
from tests.peers.peer import Peer, relative

pytestmark = [pytest.mark.peers, pytest.mark.nightly]

#: mmdetection's config of each.
BACKBONES: dict[str, Any] = {
    "retinanet/retinanet_x101-32x4d_fpn_1x_coco": partial(ResNet, 101, groups=32, width_per_group=4),
    "retinanet/retinanet_r50-caffe_fpn_1x_coco": partial(ResNet, 50, style="caffe"),
    "hrnet/faster-rcnn_hrnetv2p-w18-1x_coco": partial(HRNet, 18),
}

WHAT_MMDET_COMPUTES = """
adapter = module.Adapter(Job(**jobs["job"]))  # chooses mmcv's kernels and registers the models
from mmdet.registry import MODELS

for number, path in enumerate(jobs["configs"]):
    config = module.load_config(path, {})
    module.adapt_config(config.model, adapter.workload, 3)
    parts = {"backbone": MODELS.build(config.model.backbone)}
    if "hrnet" in path:
        parts["neck"] = MODELS.build(config.model.neck)
    weights = np.load(f"{jobs['folder']}/weights{number}.npz")
    model = torch.nn.ModuleDict(parts).eval().double()
    state = {name: torch.from_numpy(weights[name]) for name in weights.files}
    counters = {name for name in model.state_dict() if name.endswith("num_batches_tracked")}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= counters and not unexpected, (missing, unexpected)
    with torch.no_grad():
        features = model.backbone(torch.from_numpy(np.load(jobs["images"])).double())
        levels = [*features, *(model.neck(features) if "neck" in parts else ())]
    for level, feature in enumerate(levels):
        arrays[f"{number}_{level}"] = feature.numpy()
"""


def test_with_one_set_of_weights_features_are_mmdetections(mmdet: Peer) -> None:
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 96)
    np.save(mmdet.folder / "images.npy", images.numpy())
    expected = []
    for number, build_backbone in enumerate(BACKBONES.values()):
        backbone = build_backbone()
        parts = {"backbone": backbone}
        if isinstance(backbone, HRNet):
            parts["neck"] = HRFPN(backbone.out_channels)
        model = nn.ModuleDict(parts).eval()
        with torch.no_grad(), calibrating(model):
            backbone(images)
        model.double()  # a random network of 101 layers multiplies the rounding of float32
        with torch.no_grad():
            features = backbone(images.double())
            expected.append([*features, *(parts["neck"](features) if "neck" in parts else ())])
        state = {rename(name): value.float().numpy() for name, value in model.state_dict().items()}
        np.savez(mmdet.folder / f"weights{number}.npz", **state)
    jobs = {
        "job": mmdet.job("retinanet_r50_fpn"),
        "configs": list(BACKBONES),
        "images": str(mmdet.folder / "images.npy"),
        "folder": str(mmdet.folder),
    }
    _, theirs = mmdet.run(WHAT_MMDET_COMPUTES, jobs)
    for number, levels in enumerate(expected):
        for level, feature in enumerate(levels):
            assert relative(feature.numpy(), theirs[f"{number}_{level}"]) < 1e-5, (number, level)
