"""YOLOX of pixeltable-yolox, and the younger detectors of mmdetection, on small generated images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

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
