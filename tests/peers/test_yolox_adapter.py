"""YOLOX of pixeltable-yolox, and the younger detectors of mmdetection, on small generated images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.inputs.weights import to_codebase
from tests.peers.peer import Peer

pytestmark = pytest.mark.peers

LEARN = """
adapter, data = make(jobs)
facts = adapter.describe(data[0])
images = adapter.images(data[0])
result["parameters"], result["input"] = facts.parameters, [float(images.mean()), float(images.std())]
result["losses"] = [step(adapter, data[0]) for _ in range(2)]
before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
step(adapter, data[0])
moved = {name for name, p in adapter.model.named_parameters() if not torch.equal(p, before[name])}
result["frozen_moved"] = [name for name, p in adapter.model.named_parameters()
                          if not p.requires_grad and name in moved]
average = adapter.averaged_model().state_dict()
weights = adapter.model.state_dict()
result["averaged"] = any(not torch.equal(average[name], weights[name]) for name in moved)
adapter, data = make(jobs, task="infer")
result["found"] = [{"boxes": one.boxes.tolist(), "scores": one.scores.tolist(), "labels": one.labels.tolist(),
                    "masks": None if one.masks is None else list(one.masks.shape)}
                   for one in predict(adapter, data[0])]
"""


def learn(peer: Peer, model: str, **changes: Any) -> dict[str, Any]:
    job = peer.job(model, score_threshold=0.0, max_detections=7, ema=True, optimizer={"lr": 1e-4}, **changes)
    result, _ = peer.run(LEARN, job)
    losses = [one["loss"] for one in result["losses"]]
    assert np.isfinite(losses).all()
    assert losses[0] != losses[1]
    assert result["frozen_moved"] == []
    assert result["averaged"]
    for found in result["found"]:
        assert 0 < len(found["boxes"]) <= 7
        assert found["scores"] == sorted(found["scores"], reverse=True)
        assert set(found["labels"]) <= set(range(len(job["classes"])))
    return result


def test_yolox_learns_and_detects(yolox: Peer) -> None:
    result = learn(yolox, "yolox_nano")
    assert 0.85e6 < result["parameters"] < 0.95e6
    assert set(result["losses"][0]) == {"iou_loss", "conf_loss", "cls_loss", "loss"}
    assert 50 < result["input"][0] < 200  # pixels of 0..255


@pytest.mark.nightly
def test_mmdet_yolox_gets_the_same_pixels(mmdet: Peer, yolox: Peer) -> None:
    ours, theirs = (learn(peer, "yolox_nano") for peer in (yolox, mmdet))
    assert theirs["parameters"] == ours["parameters"]
    assert theirs["input"] == pytest.approx(ours["input"])


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("rtmdet_tiny", 4.8),
        ("rtmdet_ins_tiny", 5.6),
        ("yolox_s", 8.9),
        ("detr_r50", 41.6),
        ("deformable_detr_r50", 40.1),
    ],
)
def test_mmdet_offers_younger_detectors(mmdet: Peer, model: str, millions: float) -> None:
    result = learn(mmdet, model)
    assert result["parameters"] / 1e6 == pytest.approx(millions, rel=0.05)
    for found in result["found"]:
        assert (found["masks"] is not None) == ("ins" in model)


MAKE = """
adapter, data = make(jobs, task="train")
"""
SAVE = """
result["path"] = out + "-weights.npz"
adapter.save_weights(result["path"])
"""
NEAR = """
from mmdet.models.task_modules.assigners import SimOTAAssigner
def near(self, priors, boxes):  # YOLOX's own: the cells within 1.5 strides of a centre
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    found = ((priors[:, None, :2] - centres).abs() < 1.5 * priors[:, None, 2:]).all(-1)
    return found.any(1), found[found.any(1)]
SimOTAAssigner.get_in_gt_and_in_center_info = near
"""
LOSSES = """
result["losses"] = adapter.loss_values(adapter.forward(adapter.load(data[0])))
"""


@pytest.mark.nightly
def test_cells_near_objects_alone_part_the_two_yolox(mmdet: Peer, yolox: Peer) -> None:
    settings: dict[str, Any] = {"input": {"size": (128, 128)}, "batch_size": 2}
    theirs, _ = yolox.run(MAKE + SAVE + LOSSES, yolox.job("yolox_nano", **settings))
    path = mmdet.folder / "of_yolox.npz"
    with np.load(theirs["path"]) as state:
        np.savez(path, **to_codebase("mmdet", "yolox_nano", dict(state)))
    job = mmdet.job("yolox_nano", **settings, weights=str(path))
    own, near = (mmdet.run(MAKE + code + LOSSES, job)[0]["losses"] for code in ("", NEAR))
    for name, same in (("loss_bbox", "iou_loss"), ("loss_obj", "conf_loss"), ("loss_cls", "cls_loss")):
        assert near[name] == pytest.approx(theirs["losses"][same], rel=1e-4)
    assert own["loss_cls"] != pytest.approx(theirs["losses"]["cls_loss"], rel=0.01)
