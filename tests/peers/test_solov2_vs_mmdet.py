"""SOLOv2 against mmdetection 3.3 (mmdet/models/dense_heads/solov2_head.py), given the same weights and images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import detectors
from bench.inputs.weights import to_codebase
from bench.worker.batches import load_batches
from detectors.solov2_targets import assign, quarter_masks
from tests.helpers.models import random_target
from tests.peers.peer import Peer, assert_gradients, assert_solov2_agrees

pytestmark = [
    pytest.mark.peers,
    pytest.mark.nightly,
]  # the vd-dcn case against PaddleDetection runs every day

SIZE = (128, 128)

WHAT_MMDET_COMPUTES = """
from dataclasses import replace

adapter, (data,) = make(jobs["train"])
from mmengine.structures import InstanceData  # not before the adapter has chosen mmcv's kernels
from mmdet.structures.mask import BitmapMasks

model = adapter.model
result["parameters"] = sum(parameter.numel() for parameter in model.parameters())
kernels, classes, features = model.mask_head(model.extract_feat(data.images))
arrays["features"] = features.detach().numpy()
for level, (kernel, logits) in enumerate(zip(kernels, classes)):
    arrays[f"kernels{level}"], arrays[f"classes{level}"] = kernel.detach().numpy(), logits.detach().numpy()
losses = adapter.compute_losses(data)
result["losses"] = {name: float(value.detach()) for name, value in losses.items()}
keep_gradients(model, losses)
model.double()
exact = adapter.compute_losses(replace(data, images=data.images.double()))
keep_gradients(model, exact, "exact gradient of ")

adapter, (data,) = make(jobs["infer"])
adapter.model.double()
for found in predict(adapter, replace(data, images=data.images.double())):
    for name in ("boxes", "scores", "labels", "masks"):
        arrays[f"{name}_of_{found.image_id}"] = getattr(found, name)

scenes = np.load(jobs["scenes"])
head = adapter.model.mask_head
for scene in range(jobs["count"]):
    masks = scenes[f"masks{scene}"]
    truth = InstanceData(bboxes=torch.from_numpy(scenes[f"boxes{scene}"]),
                         labels=torch.from_numpy(scenes[f"labels{scene}"]))
    truth.masks = BitmapMasks(masks, *masks.shape[1:])
    size = tuple(side // 4 for side in masks.shape[1:])
    goals, labels, _, cells = head._get_targets_single(truth, featmap_sizes=size)
    for level in range(5):
        arrays[f"goals{scene}_{level}"] = goals[level].numpy()
        arrays[f"labels{scene}_{level}"] = labels[level].flatten().numpy()
        arrays[f"cells{scene}_{level}"] = np.array(cells[level], dtype=np.int64)
"""


def given_weights(mmdet: Peer, name: str, scenes: list[detectors.Target]) -> tuple[Any, Any, Any]:
    """Our model with calibrated weights and a batch of its images; and the jobs for mmdetection, with both."""
    job = mmdet.job(name, input={"size": SIZE}, batch_size=2, score_threshold=0.01)
    batch = load_batches(job["batches"], 0, 1)[0]
    torch.manual_seed(3)
    model = detectors.build(name, num_classes=len(job["classes"]), score_threshold=0.01)
    detectors.calibrate(model, torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes))
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    np.savez(mmdet.folder / "weights.npz", **to_codebase("mmdet", name, state))
    job["weights"] = str(mmdet.folder / "weights.npz")
    arrays = {
        f"{field}{number}": getattr(scene, field).numpy()
        for number, scene in enumerate(scenes)
        for field in ("boxes", "labels", "masks")
    }
    np.savez(mmdet.folder / "scenes.npz", **arrays)
    jobs = {
        "train": job,
        "infer": {**job, "workload": {**job["workload"], "task": "infer"}},
        "scenes": str(mmdet.folder / "scenes.npz"),
        "count": len(scenes),
    }
    return model, batch, jobs


@pytest.mark.parametrize("name", ["solov2_light_r50_fpn", "solov2_r50_fpn", "solov2_light_r50_dcn_fpn"])
def test_with_one_set_of_weights_solov2_is_mmdetections(mmdet: Peer, name: str) -> None:
    """Gradients are compared in float64 too, closely, and detections there. In float32 rounding decides on which side
    of a ReLU's corner a value lies, which changes the gradients of all layers before it, or of a mask's threshold."""
    scenes = [random_target(seed, (96, 160)) for seed in range(8)]
    scenes.append(random_target(0, (64, 64), objects=0))
    model, batch, jobs = given_weights(mmdet, name, scenes)
    result, theirs = mmdet.run(WHAT_MMDET_COMPUTES, jobs)
    images, sizes, targets = assert_solov2_agrees(model, batch, theirs)
    losses = model.losses(images, sizes, targets)
    assert set(losses) == set(result["losses"])
    for term, value in losses.items():
        assert value.item() == pytest.approx(result["losses"][term], rel=1e-3)
        assert value.item() > 0
    sum(losses.values()).backward()
    assert_gradients(model, "mmdet", name, theirs, "gradient of ", 2e-2)
    model.double().zero_grad()
    sum(model.losses(images.double(), sizes, targets).values()).backward()
    assert_gradients(model, "mmdet", name, theirs, "exact gradient of ", 1e-5)

    model.eval()
    with torch.no_grad():
        raw = model.network(images.double(), sizes)
    found = model.postprocess(raw, batch.image_sizes.tolist(), batch.original_sizes.tolist())
    for image_id, mine in zip(batch.image_ids, found, strict=True):
        assert len(mine.scores) > 10
        np.testing.assert_allclose(mine.scores.numpy(), theirs[f"scores_of_{image_id}"], rtol=1e-4)
        assert np.array_equal(mine.labels.numpy(), theirs[f"labels_of_{image_id}"])
        assert (mine.masks.numpy() != theirs[f"masks_of_{image_id}"]).mean() < 1e-4
        away = np.abs(mine.boxes.numpy() - theirs[f"boxes_of_{image_id}"])
        assert (away <= 1).mean() > 0.99

    for number, scene in enumerate(scenes):
        (assigned,) = assign([scene], model.levels, model.num_classes, tuple(scene.masks.shape[1:]))
        goals = quarter_masks(scene.masks, (scene.masks.shape[1] // 4, scene.masks.shape[2] // 4)).numpy()
        first = 0
        for index, level in enumerate(model.levels):
            last = first + level.cells**2
            labels = assigned.labels[first:last].numpy()
            assert np.array_equal(labels, theirs[f"labels{number}_{index}"])
            here = (assigned.cell >= first) & (assigned.cell < last)
            assert np.array_equal(assigned.cell[here].numpy() - first, theirs[f"cells{number}_{index}"])
            assert np.array_equal(goals[assigned.object[here].numpy()], theirs[f"goals{number}_{index}"])
            first = last
