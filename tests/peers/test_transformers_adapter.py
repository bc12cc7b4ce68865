"""The transformers adapter on small generated images."""

from __future__ import annotations

import numpy as np
import pytest

from tests.peers.peer import Peer

pytestmark = pytest.mark.peers

#: Millions of parameters as published for 80 classes, and the workload that fits the model.
MODELS = {
    "dfine_n": (4, {}),
    "dfine_s": (10, {}),
    "dfine_m": (19, {}),
    "rtdetr_r18vd": (20, {}),
    "rtdetr_r50vd": (42, {}),
    "rtdetrv2_r18vd": (20, {}),
    "detr_r50": (41, {}),
    "deformable_detr_r50": (40, {}),
    "rfdetr_base": (32, {"input": {"size": (112, 112)}, "frozen_stages": 0}),
    "mask2former_swin_t": (47, {"frozen_stages": 0}),
    "transformers://deimv2": (None, {"frozen_stages": 0}),  # model types in their default configuration
    "transformers://conditional_detr": (None, {}),
}
FEW = {"num_queries": 20}  # there are no 300 cells in images of 64×64
LEARN = """
adapter, data = make(jobs)
description = adapter.describe(data[0])
result["parameters"] = description.parameters
result["losses"] = [step(adapter, data[0])["loss"] for _ in range(2)]
before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
step(adapter, data[0])
moved = {name for name, p in adapter.model.named_parameters() if not torch.equal(p, before[name])}
frozen = {name for name, p in adapter.model.named_parameters() if not p.requires_grad}
result["moved"], result["frozen_moved"] = len(moved), sorted(moved & frozen)
adapter, data = make(jobs, task="infer")
result["found"] = []
for batch in data:
    for one in predict(adapter, batch):
        result["found"].append({"boxes": one.boxes.tolist(), "scores": one.scores.tolist(),
                                "labels": one.labels.tolist(), "size": batch.original_sizes[0],
                                "masks": None if one.masks is None else list(one.masks.shape)})
"""


@pytest.mark.parametrize(
    "model", [pytest.param(name, marks=() if name == "dfine_n" else pytest.mark.nightly) for name in MODELS]
)
def test_model_learns_and_detects(transformers: Peer, model: str) -> None:
    published, changes = MODELS[model]
    optimizer = {"lr": 1e-4}
    job = transformers.job(
        model,
        input={"size": (64, 64), **changes.get("input", {})},
        score_threshold=0.001,
        max_detections=7,
        optimizer=optimizer,
        frozen_stages=changes.get("frozen_stages", 1),
        options={"config": FEW}
        if model.startswith(("dfine", "rtdetr", "rfdetr", "transformers://deim"))
        else {},
    )
    result, _ = transformers.run(LEARN, job)
    if published is not None:
        assert published * 0.9 < result["parameters"] / 1e6 < published * 1.1
    assert np.isfinite(result["losses"]).all()
    assert result["losses"][0] != result["losses"][1]
    assert result["moved"] > 100
    assert result["frozen_moved"] == []
    for found in result["found"]:
        height, width = found["size"]
        assert 0 < len(found["boxes"]) <= 7
        assert found["scores"] == sorted(found["scores"], reverse=True)
        assert set(found["labels"]) <= set(range(len(job["classes"])))
        assert np.asarray(found["boxes"]).max(axis=0).tolist() <= [width, height, width, height]
        assert (found["masks"] is not None) == model.startswith("mask2former")


def test_local_checkpoint_keeps_weights_and_names(transformers: Peer) -> None:
    """A folder that transformers saved is read offline; its classes are found by name, others are left out."""
    code = """
from transformers import AutoModelForObjectDetection
config, _ = module.configuration("dfine_n", {})
names = ["nothing", *reversed(jobs["classes"])]
config.id2label = dict(enumerate(names))
config.label2id = {name: number for number, name in enumerate(names)}
torch.manual_seed(5)
saved = AutoModelForObjectDetection.from_config(config)
folder = jobs["scratch"] + "/checkpoint"
saved.save_pretrained(folder)
jobs["model"]["name"] = folder
adapter, data = make(jobs, task="infer")
loaded = adapter.model.state_dict()
result["equal"] = all(torch.equal(value, loaded[name]) for name, value in saved.state_dict().items())
result["labels"] = adapter.label_of
result["pixels"] = [float(data[0].images.min()), float(data[0].images.max())]
module.RTDetrImageProcessor(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3).save_pretrained(folder)
own, own_data = make(jobs, task="infer")
height, width = own_data[0].image_sizes[0]
place = (..., slice(height), slice(width))
off = own_data[0].images[place] - (data[0].images[place] - 0.5) / 0.25
result["own_statistics"] = float(off.abs().max())
result["found"] = [one.labels.tolist() for one in predict(adapter, data[0])]
adapter, data = make(jobs)
result["classes"] = adapter.model.config.num_labels
result["loss"] = step(adapter, data[0])["loss"]
try:
    make({**jobs, "options": {}})
except ValueError as error:
    result["small"] = str(error)
jobs["model"]["name"] = folder + "-of-nobody"
try:
    make(jobs, task="infer")
except ValueError as error:
    result["error"] = str(error)
jobs["model"]["name"], jobs["classes"] = folder, ["a", "b"]
try:
    make(jobs, task="infer")
except ValueError as error:
    result["classes_error"] = str(error)
"""
    options = {"config": FEW}
    job = transformers.job("transformers://checkpoint", score_threshold=0.0, frozen_stages=0, options=options)
    result, _ = transformers.run(code, job)
    count = len(job["classes"])
    assert result["equal"]
    assert -1e-3 < result["pixels"][0] < result["pixels"][1] < 1 + 1e-3  # as RT-DETR's processor has them
    assert result["own_statistics"] < 1e-5
    assert result["labels"] == [-1, *reversed(range(count))]
    assert result["found"][0]
    assert set(result["found"][0]) <= set(range(count))
    assert result["classes"] == count
    assert np.isfinite(result["loss"])
    assert "images of 64x64 have 20" in result["small"]
    assert "no folder with a config.json" in result["error"]
    assert "of which the data set has none" in result["classes_error"]
