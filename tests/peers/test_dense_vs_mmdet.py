"""RetinaNet, FCOS and SSD in mmdetection's conventions against mmdetection 3.3, given the same weights and images.

Compared with mmdet/models/dense_heads/retina_head.py, fcos_head.py and ssd_head.py, with the anchors, assigners, losses
and necks that mmdet/.mim/configs/retinanet/retinanet_r50_fpn_1x_coco.py, fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py,
ssd/ssd300_coco.py and ssd/ssd512_coco.py choose.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import detectors
from bench.inputs.weights import to_codebase
from bench.worker.batches import load_batches
from detectors.structures import GroundTruth
from tests.peers.peer import Peer, relative

pytestmark = pytest.mark.peers

WHAT_MMDET_COMPUTES = """
from dataclasses import replace

adapter, (data, *_) = make(jobs["train"])
dtype = getattr(torch, jobs["dtype"])
model = adapter.model.to(dtype)
data = replace(data, images=data.images.to(dtype))
outputs = model.bbox_head(model.extract_feat(data.images))
for name, levels in zip(("logits", "deltas", "quality"), outputs):
    for level, value in enumerate(levels):
        arrays[f"{name}{level}"] = value.detach().numpy()
losses = adapter.compute_losses(data)
result["losses"] = {name: float(value.detach()) for name, value in losses.items()}
keep_gradients(model, losses)

adapter, (data, *_) = make(jobs["infer"])
adapter.model.double()
for found in predict(adapter, replace(data, images=data.images.double())):
    for name in ("boxes", "scores", "labels"):
        arrays[f"{name}_of_{found.image_id}"] = getattr(found, name)
"""

#: Our loss terms and mmdetection's.
LOSSES = {
    "classification": "loss_cls",
    "bbox_regression": "loss_bbox",
    "bbox_ctrness": "loss_centerness",
}


class Case(NamedTuple):
    """``dtype``: of the networks in training. We fold normalisation into convolutions, and in float32 a ReLU that is
    rounded to the other side is seen in the gradients; SSD has none, and in one memory format the two round alike.
    Detections are those of float64: rounding can carry a score over a threshold, or two boxes over that of NMS.
    """

    model: str
    size: tuple[int, int]
    images: int
    dtype: str


CASES = (
    Case("retinanet_r50_fpn", (64, 96), 2, "float64"),
    Case("fcos_r50_fpn", (64, 96), 2, "float64"),
    Case("ssd300_vgg16", (300, 300), 1, "float32"),
    Case("ssd512_vgg16", (512, 512), 1, "float32"),
)


def spread(model: torch.nn.Module, name: str) -> None:
    """Make what random weights say differ from anchor to anchor, so that it does not matter how it is rounded."""
    with torch.no_grad():
        if name.startswith("ssd"):
            return
        model.head.classes.weight.mul_(3)
        if name.startswith("fcos"):
            model.head.deltas.weight.mul_(20)
            model.head.deltas.bias.fill_(3)
            model.head.centreness.weight.mul_(10)
            model.head.scales.copy_(torch.linspace(0.8, 1.2, 5))


def array(value: torch.Tensor) -> np.ndarray:
    return value.detach().numpy()


def by_anchor(value: np.ndarray, last: int) -> np.ndarray:
    """mmdetection's map [B, A * last, H, W] to [B, H * W * A, last]."""
    return value.transpose(0, 2, 3, 1).reshape(len(value), -1, last)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.model, marks=pytest.mark.nightly if "ssd" in case.model else ())
        for case in CASES
    ],
)
def test_with_one_set_of_weights_a_dense_detector_is_mmdetections(mmdet: Peer, case: Case) -> None:
    name = case.model
    job = mmdet.job(name, input={"size": case.size, "images": case.images}, batch_size=case.images)
    batch = load_batches(job["batches"], 0, 1)[0]
    images, sizes = torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes)
    torch.manual_seed(3)
    model = detectors.build(
        name, num_classes=len(job["classes"]), score_threshold=0.05, max_detections=100, conventions="mmdet"
    )
    detectors.calibrate(model, images, sizes)
    spread(model, name)
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    np.savez(mmdet.folder / "weights.npz", **to_codebase("mmdet", name, state))
    job["weights"] = str(mmdet.folder / "weights.npz")
    infer = {**job, "workload": {**job["workload"], "task": "infer"}}
    jobs = {"train": job, "infer": infer, "dtype": case.dtype}
    result, theirs = mmdet.run(WHAT_MMDET_COMPUTES, jobs)

    dtype = getattr(torch, case.dtype)
    raw = model.to(dtype).output(images.to(dtype))
    for level, logits in enumerate(raw.logits):
        assert relative(array(logits), by_anchor(theirs[f"logits{level}"], logits.shape[-1])) < 1e-4
        assert relative(array(raw.deltas[level]), by_anchor(theirs[f"deltas{level}"], 4)) < 1e-4
        if raw.quality is not None:
            assert relative(array(raw.quality[level]), by_anchor(theirs[f"quality{level}"], 1)[..., 0]) < 1e-4

    truth = zip(batch.boxes, batch.labels, strict=True)
    targets = [detectors.Target(*(torch.from_numpy(np.array(value)) for value in one)) for one in truth]
    losses = model.head.losses(raw, GroundTruth.from_targets(targets, images.device))
    assert {LOSSES[term] for term in losses} == set(result["losses"])
    for term, value in losses.items():
        assert value.item() > 0
        assert value.item() == pytest.approx(result["losses"][LOSSES[term]], rel=1e-3)
    sum(losses.values()).backward()
    gradients = {key: p.grad.numpy() for key, p in model.named_parameters() if p.grad is not None}
    assert_equal_gradients(to_codebase("mmdet", name, gradients), theirs)

    with torch.no_grad():
        raw = model.double().eval().output(images.double())
        found = model.postprocess(raw, batch.image_sizes.tolist(), batch.original_sizes.tolist())
    for image_id, mine in zip(batch.image_ids, found, strict=True):
        assert len(mine.scores) > 10
        np.testing.assert_allclose(mine.scores.numpy(), theirs[f"scores_of_{image_id}"], rtol=1e-4)
        assert np.array_equal(mine.labels.numpy(), theirs[f"labels_of_{image_id}"])
        np.testing.assert_allclose(mine.boxes.numpy(), theirs[f"boxes_of_{image_id}"], atol=0.05)


def assert_equal_gradients(gradients: dict[str, Any], theirs: dict[str, np.ndarray]) -> None:
    prefix = "gradient of "
    references = {key.removeprefix(prefix): theirs[key] for key in theirs if key.startswith(prefix)}
    assert set(gradients) == set(references)
    for key, reference in references.items():
        error = np.linalg.norm(gradients[key] - reference)
        assert error <= 1e-3 * np.linalg.norm(reference), f"{key}: {error:.1e}"
