"""The R-CNN family in mmdetection's conventions against mmdetection 3.3, given the same weights, images and samples.

One process of mmdetection's environment computes all models. Compared with, below mmdet/models:
dense_heads/rpn_head.py (all), roi_heads/standard_roi_head.py (Fast, Faster, Mask R-CNN), roi_heads/cascade_roi_head.py
(Cascade), roi_heads/htc_roi_head.py with mask_heads/htc_mask_head.py and mask_heads/fused_semantic_head.py (HTC),
roi_heads/shared_heads/res_layer.py (C4), and the configs that ``MODELS`` names. RoIAlign, losses, matching, proposals
and pasting are as those configs have them. What is set in both is how many proposals there are, few, and that all
anchors and proposals are sampled, so that no sample is drawn at random.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import detectors
from bench.inputs.weights import to_codebase
from bench.worker.batches import load_batches
from detectors.cascade import CascadeRCNN
from detectors.htc import FusedPyramid
from detectors.rcnn import ProposalDetector
from detectors.sampling import BalancedSampler
from tests.peers.peer import Peer, relative

pytestmark = pytest.mark.peers

SIZE = (96, 128)  # 96 is no multiple of the coarsest stride
SCORE_THRESHOLD = 0.2
MAX_DETECTIONS = 20
ALL = 10**6


@dataclass(frozen=True)
class Case:
    """ours: the model's name in `detectors`; theirs: in bench; weights: whose names the transplant knows."""

    ours: str
    theirs: str
    weights: str
    proposals: int = 40


#: For `make test`; Mask R-CNN has a region proposal network and a box head, too.
MODELS = {"mask": Case("mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "mask_rcnn_r50_fpn")}
SLOW_MODELS = {
    "cascade_mask": Case(
        "cascade_mask_rcnn_r50_fpn", "cascade_mask_rcnn_r50_fpn", "cascade_mask_rcnn_r50_fpn"
    ),
    "rpn": Case("rpn_r50_fpn", "rpn_r50_fpn", "rpn_r50_fpn"),
    "fast": Case("fast_rcnn_r50_fpn", "mmdet://fast_rcnn/fast-rcnn_r50_fpn_1x_coco", "faster_rcnn_r50_fpn"),
    "faster": Case("faster_rcnn_r50_fpn", "faster_rcnn_r50_fpn", "faster_rcnn_r50_fpn"),
    "htc": Case("htc_r50_fpn", "mmdet://htc/htc_r50_fpn_1x_coco", "htc_r50_fpn"),
    "mask_c4": Case("mask_rcnn_r50_c4", "mask_rcnn_r50_c4", "mask_rcnn_r50_c4", proposals=6),
}
OTHER_MODELS = {
    "cascade": Case("cascade_rcnn_r50_fpn", "cascade_rcnn_r50_fpn", "cascade_rcnn_r50_fpn"),
    "htc_without_semantic": Case("htc_without_semantic_r50_fpn", "htc_r50_fpn", "htc_r50_fpn"),
    "rpn_c4": Case("rpn_r50_c4", "rpn_r50_c4", "rpn_r50_c4"),
    "faster_c4": Case("faster_rcnn_r50_c4", "faster_rcnn_r50_c4", "faster_rcnn_r50_c4", proposals=6),
}

#: Regions for the raw outputs of the heads: all levels, long ones, one at the border, one beyond it.
REGIONS = [
    [4.0, 5, 28, 33],
    [10.5, 20.25, 90.75, 30],
    [60, 2, 75, 94],
    [0, 0, 128, 96],
    [100.2, 70.1, 128, 96],
    [30, 30, 31, 31.5],
    [-4, -6, 60, 40],
]
#: Their term → ours, by its end.
TERMS = {
    "loss_rpn_cls": "loss_objectness",
    "loss_rpn_bbox": "loss_rpn_box_reg",
    "loss_cls": "loss_classifier",
    "loss_bbox": "loss_box_reg",
}

WHAT_MMDET_COMPUTES = """
from dataclasses import replace

from mmengine.structures import InstanceData, PixelData

grid_sample = torch.nn.functional.grid_sample  # masks are pasted in float32, whatever the boxes are in
torch.nn.functional.grid_sample = lambda masks, grid, **how: grid_sample(masks, grid.to(masks.dtype), **how)

shared = np.load(jobs["shared"])
rois = torch.from_numpy(shared["rois"])
labels = torch.from_numpy(shared["labels"])
index = torch.arange(len(rois))

def outputs_of_heads(model, features, key):
    head = model.roi_head
    extra, stages = {}, [()]
    if hasattr(head, "num_stages"):
        stages = [(stage,) for stage in range(head.num_stages)]
    if getattr(head, "semantic_head", None) is not None:
        logits, semantic = head.semantic_head(features)
        arrays[f"{key} semantic"] = logits.numpy()
        extra = {"semantic_feat": semantic}
    for number, stage in enumerate(stages):
        found = head._bbox_forward(*stage, features, rois, **extra)
        arrays[f"{key} classes {number}"] = found["cls_score"].numpy()
        arrays[f"{key} deltas {number}"] = found["bbox_pred"].numpy()
        if head.with_mask:
            masks = head._mask_forward(*stage, features, rois, **extra)["mask_preds"]
            arrays[f"{key} masks {number}"] = masks[index, labels].numpy()

for key, job in jobs["models"].items():
    adapter, (data,) = make(job)
    model = adapter.model
    def give(dtype=torch.float32):
        for number, sample in enumerate(data.samples):
            if key == "fast":
                boxes = torch.from_numpy(shared[f"proposals{number}"]).to(dtype)
                sample.proposals = InstanceData(bboxes=boxes, scores=torch.ones(len(boxes)))
            sample.gt_sem_seg = PixelData(sem_seg=torch.from_numpy(shared["semantic"])[number][None])
    give()
    losses = adapter.compute_losses(data)
    result[key] = {name: float(value.detach()) for name, value in losses.items()}
    keep_gradients(model, losses, f"{key} gradient of ", at_most=4096)
    model.eval()
    with torch.no_grad():
        features = model.extract_feat(data.images)
        rpn = model.bbox_head if key.startswith("rpn") else getattr(model, "rpn_head", None)
        if rpn is not None:
            for level, (scores, deltas) in enumerate(zip(*rpn(features))):
                arrays[f"{key} objectness {level}"] = scores.permute(0, 2, 3, 1).flatten(1).numpy()
                arrays[f"{key} offsets {level}"] = deltas.permute(0, 2, 3, 1).reshape(len(deltas), -1, 4).numpy()
        if hasattr(model, "roi_head"):
            outputs_of_heads(model, features, key)
    model.double().train()
    data = replace(data, images=data.images.double())
    give(torch.float64)
    keep_gradients(model, adapter.compute_losses(data), f"{key} exact gradient of ", at_most=4096)
    model.eval()
    give(torch.float64)
    with torch.no_grad():
        for number, found in enumerate(module.predict_raw(model, data)()):
            for name, own in (("boxes", "bboxes"), ("scores", "scores"), ("labels", "labels"), ("masks", "masks")):
                if own in found:
                    arrays[f"{key} {name} of {number}"] = found[own].numpy()
    del adapter, model, losses
"""


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(MODELS, id="main"),
        pytest.param(SLOW_MODELS, id="slow", marks=pytest.mark.nightly),
        pytest.param(OTHER_MODELS, id="others", marks=pytest.mark.nightly),
    ],
)
def test_in_its_conventions_the_r_cnns_are_mmdetections(mmdet: Peer, cases: dict[str, Case]) -> None:
    models, jobs, batch = {}, {}, None
    for key, case in cases.items():
        job = job_of(mmdet, case)
        batch = load_batches(job["batches"], 0, 1)[0]
        models[key] = model_of(case, len(job["classes"]), batch)
        state = {name: value.numpy() for name, value in models[key].state_dict().items()}
        job["weights"] = str(mmdet.folder / f"{key}.npz")
        np.savez(job["weights"], **to_codebase("mmdet", case.weights, state))
        jobs[key] = job
    shared = what_both_are_given(len(jobs[key]["classes"]), len(batch.images))
    np.savez(mmdet.folder / "shared.npz", **shared)
    process = mmdet.start(
        WHAT_MMDET_COMPUTES, "rcnn", {"models": jobs, "shared": str(mmdet.folder / "shared.npz")}
    )
    ours = {key: what_we_compute(key, cases[key], model, batch, shared) for key, model in models.items()}
    losses, arrays = mmdet.finish(process, "rcnn")
    shutil.rmtree(mmdet.folder)  # several hundred megabytes of weights
    for key in cases:
        theirs = {
            name.removeprefix(f"{key} "): value
            for name, value in arrays.items()
            if name.startswith(f"{key} ")
        }
        compare(key, ours[key], theirs, losses[key])


# -- both sides --------------------------------------------------------------------------------------------


def job_of(mmdet: Peer, case: Case) -> dict[str, Any]:
    everything = {"num": ALL, "pos_fraction": 0.5}
    few = {"nms_pre": 4 * case.proposals, "max_per_img": case.proposals}
    changes = {f"model.train_cfg.rpn.sampler.{name}": value for name, value in everything.items()}
    changes |= {f"model.test_cfg.rpn.{name}": value for name, value in few.items()}
    if "rpn_r50" not in case.ours:
        changes |= {f"model.train_cfg.rpn_proposal.{name}": value for name, value in few.items()}
        stages = range(3) if "cascade" in case.ours or "htc" in case.ours else [None]
        for stage in stages:
            place = "model.train_cfg.rcnn" + ("" if stage is None else f".{stage}")
            changes |= {f"{place}.sampler.{name}": value for name, value in everything.items()}
    if "fast_rcnn" in case.ours:
        changes = {name: value for name, value in changes.items() if ".rpn" not in name}
    return mmdet.job(
        case.theirs,
        input={"size": SIZE},
        batch_size=2,
        score_threshold=SCORE_THRESHOLD,
        max_detections=MAX_DETECTIONS,
        options={"cfg_options": {**offered(mmdet, case.theirs), **changes}},
    )


def offered(mmdet: Peer, name: str) -> dict[str, Any]:
    """The changes of a config that the adapter offers a model with, which an arm's own would replace."""
    offer = mmdet.codebase.models.get(name)
    return offer.options.get("cfg_options", {}) if offer else {}


def model_of(case: Case, num_classes: int, batch: Any) -> nn.Module:
    """Ours, calibrated, with heads that move boxes, few proposals and nothing left to chance."""
    torch.manual_seed(3)
    model = detectors.build(
        case.ours,
        num_classes=num_classes,
        score_threshold=SCORE_THRESHOLD,
        max_detections=MAX_DETECTIONS,
        conventions="mmdet",
    )
    if model.rpn is not None:
        few = (4 * case.proposals,) * 2, (case.proposals,) * 2
        model.rpn.pre_nms, model.rpn.post_nms = few
        model.rpn.sampler = BalancedSampler(ALL, 0.5)
        if isinstance(model, ProposalDetector):
            model.rpn.post_nms = (MAX_DETECTIONS,) * 2
    detectors.calibrate(model, torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes))
    for head in box_heads(model):
        head.sampler = BalancedSampler(ALL, 0.5)
        with torch.no_grad():
            head.deltas.weight.mul_(10)
    return model


def box_heads(model: nn.Module) -> list[nn.Module]:
    if isinstance(model, ProposalDetector):
        return []
    return list(model.box_heads) if isinstance(model, CascadeRCNN) else [model.box_head]


def what_both_are_given(num_classes: int, images: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    regions = np.array(REGIONS, np.float32)
    image = np.arange(len(regions)) % images
    corners = generator.uniform(0, 70, (images, 40, 2))
    extents = generator.uniform(4, 60, (images, 40, 2))
    proposals = np.concatenate([corners, np.minimum(corners + extents, [SIZE[1], SIZE[0]])], axis=2)
    semantic = generator.integers(0, 183, (images, SIZE[0] // 8, SIZE[1] // 8))
    semantic[:, 0] = 255
    return {
        "rois": np.concatenate([image[:, None], regions], axis=1).astype(np.float32),
        "labels": generator.integers(0, num_classes, len(regions)),
        "semantic": semantic.repeat(8, axis=1).repeat(8, axis=2),
        **{f"proposals{number}": boxes.astype(np.float32) for number, boxes in enumerate(proposals)},
    }


# -- ours --------------------------------------------------------------------------------------------------


def what_we_compute(
    key: str, case: Case, model: nn.Module, batch: Any, shared: dict[str, np.ndarray]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Losses, and by the names that WHAT_MMDET_COMPUTES gives them: gradients, raw outputs and detections."""
    images, sizes = torch.from_numpy(batch.images), torch.from_numpy(batch.image_sizes)
    truth = zip(batch.boxes, batch.labels, batch.masks, shared["semantic"], strict=True)
    targets = [detectors.Target(*(torch.from_numpy(np.array(value)) for value in one)) for one in truth]

    def given(dtype: torch.dtype) -> dict[str, list[torch.Tensor]]:
        if key != "fast":
            return {}
        return {
            "proposals": [
                torch.from_numpy(shared[f"proposals{number}"]).to(dtype) for number in range(len(images))
            ]
        }

    def gradients(prefix: str, losses: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        model.zero_grad()
        sum(losses.values()).backward()
        found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
        return {
            f"{prefix}{name}": value.flatten()[:: max(1, value.size // 4096)].copy()
            for name, value in to_codebase("mmdet", case.weights, found).items()
        }

    losses = model.losses(images, sizes, targets, **given(torch.float32))
    arrays = gradients("gradient of ", losses)
    model.eval()
    with torch.no_grad():
        pyramid = model.features(images)
        if model.rpn is not None:
            for level, (objectness, deltas) in enumerate(model.rpn.dense(pyramid)):
                arrays[f"objectness {level}"] = objectness.numpy()
                arrays[f"offsets {level}"] = deltas.numpy()
        arrays |= {name: value.numpy() for name, value in outputs_of_heads(model, pyramid, shared).items()}
    model.double().train()
    exact = model.losses(images.double(), sizes, targets, **given(torch.float64))
    arrays |= gradients("exact gradient of ", exact)
    model.eval()
    with torch.no_grad():
        raw = model.network(images.double(), sizes, **given(torch.float64))
        found = model.postprocess(raw, batch.image_sizes.tolist(), batch.original_sizes.tolist())
    for number, detections in enumerate(found):
        for name, value in detections._asdict().items():
            if value is not None:
                arrays[f"{name} of {number}"] = value.numpy()
    return {name: value.item() for name, value in losses.items()}, arrays


def outputs_of_heads(
    model: nn.Module, pyramid: Any, shared: dict[str, np.ndarray]
) -> dict[str, torch.Tensor]:
    rois, labels = torch.from_numpy(shared["rois"]), torch.from_numpy(shared["labels"])
    image, boxes = rois[:, 0].long(), rois[:, 1:]
    found = {}
    if isinstance(pyramid, FusedPyramid) and pyramid.semantic_logits is not None:
        found["semantic"] = pyramid.semantic_logits
    for stage, head in enumerate(box_heads(model)):
        cascade = isinstance(model, CascadeRCNN)
        pooled = model.pool(pyramid, head, boxes, image) if cascade else head.pool(pyramid, boxes, image)
        logits, deltas = head.predict(pooled)
        found |= {f"classes {stage}": logits, f"deltas {stage}": deltas.flatten(1)}
        mask_heads = model.mask_heads if cascade else [model.mask_head] if model.mask_head else []
        if not mask_heads:
            continue
        mask_head = mask_heads[stage]
        if not hasattr(head, "res5"):
            pooled = (
                model.pool(pyramid, mask_head, boxes, image)
                if cascade
                else mask_head.pool(pyramid, boxes, image)
            )
        hidden = model.convolve(pooled, stage) if cascade else mask_head.convolve(pooled)
        found[f"masks {stage}"] = mask_head.logits_of(hidden, labels)
    return found


# -- comparison --------------------------------------------------------------------------------------------


def compare(
    key: str,
    ours: tuple[dict[str, float], dict[str, np.ndarray]],
    theirs: dict[str, np.ndarray],
    their_losses: dict[str, float],
) -> None:
    losses, arrays = ours
    renamed = {}
    for name, value in their_losses.items():
        stage, dot, term = name.rpartition(".")
        renamed[f"{stage}{dot}{TERMS.get(term, term)}"] = value
    assert set(losses) == set(renamed), key
    for term, value in losses.items():
        assert value == pytest.approx(renamed[term], rel=1e-3), f"{key}: {term}"
    assert set(arrays) == set(theirs), key
    for name, value in arrays.items():
        reference = theirs[name]
        if "gradient of" in name:
            # In float32 rounding decides on which side of a ReLU's corner a value lies: gradients before it differ.
            limit = 2e-4 if name.startswith("exact") else 2e-2
            error = np.linalg.norm(value - reference) / max(np.linalg.norm(reference), 1e-12)
            assert error < limit, f"{key}, {name}: {error:.1e}"
        elif " of " not in name:
            assert relative(value, reference) < 1e-4, f"{key}: {name}"
    for number in range(2):
        mine, other = ({part: found.get(f"{part} of {number}") for part in
                        ("boxes", "scores", "labels", "masks")} for found in (arrays, theirs))  # fmt: skip
        assert len(mine["scores"]) > 3, key
        assert mine["boxes"].shape == other["boxes"].shape, key
        np.testing.assert_allclose(mine["scores"], other["scores"], rtol=0, atol=1e-4, err_msg=key)
        np.testing.assert_allclose(mine["boxes"], other["boxes"], rtol=0, atol=0.05, err_msg=key)
        assert np.array_equal(mine["labels"], other["labels"]), key
        if mine["masks"] is not None:
            assert other["masks"].any(), key
            assert (mine["masks"] != other["masks"]).mean() < 1e-4, key
