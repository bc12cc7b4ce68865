"""The detectron2 adapter on small generated images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.peers.peer import Peer, native_mask_rcnn

pytestmark = pytest.mark.peers

LOSSES = {
    "faster_rcnn_r50_fpn": {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"},
    "mask_rcnn_r50_fpn": {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg", "loss_mask"},
    "retinanet_r50_fpn": {"loss_cls", "loss_box_reg"},
    "fcos_r50_fpn": {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"},
}
#: Names under which the audit compares the settings of every codebase.
LIMITS = {"score_threshold", "nms_iou_threshold", "max_detections"}
SETTINGS = {
    "one stage": LIMITS | {"candidates"},
    "two stages": LIMITS | {"proposal_candidates", "proposals", "proposal_nms_iou_threshold"},
}


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if "mask" in m else pytest.mark.nightly) for m in LOSSES]
)
def test_canonical_model_learns_and_detects_and_says_what_it_is(detectron2: Peer, model: str) -> None:
    code = """
adapter, data = make(jobs)
description = adapter.describe(data[0])
before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
result["losses"] = []
for _ in range(3):
    torch.manual_seed(5)  # the same samples in the heads of two-stage models
    adapter.model.loss_normalizer = 100  # a running mean in one-stage models, which moves their losses by itself
    result["losses"].append(step(adapter, data[0]))
moved = [name for name, p in adapter.model.named_parameters() if not torch.equal(p, before[name])]
result["moved"] = sorted({name.split(".")[2] for name in moved if "bottom_up" in name})
result["description"] = {key: getattr(description, key) for key in
                         ("parameters", "trainable_parameters", "objects",
                          "kernels", "postprocess", "input_shape", "extra")}
adapter, data = make(jobs, task="infer")
result["found"] = []
for batch in data:
    for found in predict(adapter, batch):
        result["found"].append({"boxes": found.boxes.tolist(), "labels": found.labels.tolist(),
                                "masks": None if found.masks is None else list(found.masks.shape)})
"""
    job = detectron2.job(model, score_threshold=0.001, max_detections=7, optimizer={"lr": 1e-3})
    result, _ = detectron2.run(code, job)
    description = result["description"]
    assert set(result["losses"][0]) == {*LOSSES[model], "loss"}
    assert np.isfinite([list(losses.values()) for losses in result["losses"]]).all()
    assert result["losses"][2]["loss"] < result["losses"][0]["loss"]
    assert result["moved"] == ["res3", "res4", "res5"]  # the first stage is frozen
    assert description["trainable_parameters"] < description["parameters"]
    assert description["input_shape"] == [1, 3, 64, 64]
    assert description["objects"] > 0
    assert set(description["postprocess"]) == SETTINGS["two stages" if "rcnn" in model else "one stage"]
    assert description["postprocess"]["score_threshold"] == 0.001
    assert description["postprocess"]["max_detections"] == 7
    assert description["kernels"] in ("compiled", "torchvision operators; detectron2._C not loaded")
    assert [*description["extra"]["config"].values()] == [False]  # the stride in the 3x3
    assert len(result["found"]) == 2
    for found in result["found"]:
        assert 0 < len(found["boxes"]) <= 7
        assert all(0 <= label < len(job["classes"]) for label in found["labels"])
        if "mask" in model:
            assert found["masks"] == [len(found["boxes"]), *found["masks"][1:]]


TORCHVISION_LIKE = {
    f"MODEL.{head}.{key}": value
    for head in ("ROI_BOX_HEAD", "ROI_MASK_HEAD")
    for key, value in (("POOLER_TYPE", "ROIAlign"), ("POOLER_SAMPLING_RATIO", 2))
}


def test_with_one_set_of_weights_it_computes_what_detectors_computes(detectron2: Peer) -> None:
    """Features and proposal outputs are equal as it is. Its RoIAlign samples otherwise (adaptive, shifted by half a
    pixel) and its anchors are not rounded (detectron2/modeling/anchor_generator.py): with these two set to
    torchvision's, detections are equal too, so nothing else differs."""
    ours = native_mask_rcnn(detectron2, "detectron2", {"config": TORCHVISION_LIKE})

    code = """
adapter, (data,) = make(jobs)
with torch.no_grad():
    features = list(adapter.model.backbone(data.images.tensor).values())
    scores, deltas = adapter.model.proposal_generator.rpn_head(features)
for level, values in enumerate(zip(features, scores, deltas)):
    for name, value in zip(("feature", "scores", "deltas"), values):
        arrays[f"{name}{level}"] = value.numpy()
generator = adapter.model.proposal_generator.anchor_generator
arrays["anchors"] = np.concatenate([boxes.tensor for boxes in generator(features)])
for cell in generator.cell_anchors:
    cell.copy_(cell.round())
for found in predict(adapter, data):
    for name in ("boxes", "scores", "labels", "masks"):
        arrays[f"{name}_of_{found.image_id}"] = np.asarray(getattr(found, name), dtype=np.float32)
"""
    _, theirs = detectron2.run(code, ours.job)
    ours.assert_proposals_agree(theirs)
    for image_id, mine in zip(ours.batch.image_ids, ours.found, strict=True):
        assert len(mine.boxes) > 10
        boxes, scores, labels, masks = (
            theirs[f"{name}_of_{image_id}"] for name in ("boxes", "scores", "labels", "masks")
        )
        # torchvision and `detectors` drop boxes thinner than 0.01 px of the input, detectron2 keeps them: one here.
        kept = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0.05
        boxes, scores, labels, masks = boxes[kept], scores[kept], labels[kept], masks[kept]
        count = len(boxes)
        assert len(mine.boxes) - 1 <= count
        # Scores that differ by rounding alone may have changed places.
        away = np.abs(mine.boxes.numpy()[:count, None] - boxes).max(axis=2)
        away[mine.labels.numpy()[:count, None] != labels] = np.inf
        nearest = away.argmin(axis=1)
        assert sorted(nearest) == list(range(count))
        assert away.min(axis=1).max() <= 0.05
        assert np.abs(mine.scores.numpy()[:count] - scores[nearest]).max() <= 1e-4
        # Pasted otherwise: into the box as it is, while torchvision rounds the box to pixels first.
        mask, other = mine.masks.numpy()[:count], masks[nearest].astype(bool)
        assert (mask & other).sum() > 0.95 * (mask | other).sum() > 0


def test_the_average_of_weights_is_what_predicts_and_is_saved(detectron2: Peer) -> None:
    code = """
adapter, data = make(jobs)
name = "head.cls_score.weight"
for count in (1, 2):
    step(adapter, data[0])
    arrays[f"weight{count}"] = dict(adapter.model.named_parameters())[name].detach().numpy().copy()
adapter.save_weights(out + ".weights.npz")
arrays["saved"] = np.load(out + ".weights.npz")[name]
with adapter.inference():
    arrays["predicting"] = adapter.model.state_dict()[name].numpy().copy()
predict(adapter, data[0])
result["trains_on"] = step(adapter, data[0])
"""
    job = detectron2.job("retinanet_r50_fpn", ema=True, ema_decay=0.9, optimizer={"lr": 0.01})
    result, arrays = detectron2.run(code, job)
    assert np.abs(arrays["weight2"] - arrays["weight1"]).max() > 1e-6
    decay = 2 / 11  # of the second update, by the warm-up; the first copies
    expected = decay * arrays["weight1"] + (1 - decay) * arrays["weight2"]
    np.testing.assert_allclose(arrays["saved"], expected, rtol=0, atol=1e-7)
    assert np.array_equal(arrays["saved"], arrays["predicting"])
    assert np.isfinite(result["trains_on"]["loss"])


def test_frozen_stages_and_normalisation_are_what_the_workload_says(detectron2: Peer) -> None:
    code = """
result["found"] = []
for job in jobs:
    adapter, data = make(job)
    trainable = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
    block = adapter.model.backbone.bottom_up.res4[0]
    mean = block.conv1.norm.running_mean.clone()
    step(adapter, data[0])
    result["found"].append({
        "stages": sorted({name.split(".")[2] for name in trainable if "bottom_up" in name}),
        "bn": any("bottom_up" in name and ".norm." in name for name in trainable),
        "statistics_move": not torch.equal(mean, block.conv1.norm.running_mean),
        "strides": [list(getattr(block, conv).stride) for conv in ("conv1", "conv2")],
    })
"""
    settings = [{"frozen_stages": 2, "frozen_bn": True}, {"frozen_stages": 0, "frozen_bn": False}]
    # The old and the new form of configurations.
    jobs = [
        detectron2.job(f"{name}_r50_fpn", **setting) for name in ("retinanet", "fcos") for setting in settings
    ]
    result, _ = detectron2.run(code, jobs)
    strides = [[1, 1], [2, 2]]
    frozen = {"stages": ["res4", "res5"], "bn": False, "statistics_move": False, "strides": strides}
    stages = ["res2", "res3", "res4", "res5", "stem"]
    free = {"stages": stages, "bn": True, "statistics_move": True, "strides": strides}
    assert result["found"] == [frozen, free, frozen, free]


@pytest.mark.nightly
def test_own_loader_gives_same_images_in_same_order(detectron2: Peer, coco_tiny: Path) -> None:
    """Pixels differ a little by the resampling, masks by where they are rasterised (detectron2 scales polygons), and
    detectron2 keeps objects whose resized mask has no pixel, which the shared batches leave out."""
    code = """
for job in jobs:
    adapter, shared = make(job)
    own = adapter.pipeline()
    for one in shared + shared[:1]:
        other = adapter.load(next(own))
        result.setdefault("same_ids", []).append(one.image_ids == other.image_ids)
        for what, of in (
            ("shape", lambda batch: list(batch.images.tensor.shape)),
            ("image_sizes", lambda batch: [list(size) for size in batch.images.image_sizes]),
            ("file_sizes", lambda batch: [[record["height"], record["width"]] for record in batch]),
        ):
            result.setdefault("same", []).append([what, of(one), of(other)])
        difference = (one.images.tensor - other.images.tensor).abs().mean() / one.images.tensor.std()
        result.setdefault("pixels", []).append(float(difference))
        for a, b in zip(one, other):
            a, b = a["instances"], b["instances"]
            away = (a.gt_boxes.tensor[:, None] - b.gt_boxes.tensor).abs().amax(dim=2)
            away[a.gt_classes[:, None] != b.gt_classes] = 1e6  # px
            result.setdefault("away", []).append(float(away.amin(dim=1).max()))
            result.setdefault("objects", []).append([len(a), len(b)])
            result.setdefault("areas", []).append([float(a.gt_masks.tensor.sum()), float(b.gt_masks.area().sum())])
    with torch.no_grad():
        result.setdefault("losses", []).append(float(sum(adapter.compute_losses(adapter.load(next(own))).values())))
    adapter.close()
"""
    input = {"dataset": str(coco_tiny), "split": "val2017", "images": 3, "mode": "pipeline", "workers": 2}
    jobs = [
        detectron2.job("mask_rcnn_r50_fpn", input={**input, "size": size}, batch_size=2)
        for size in ([256, 192], {"short": 192, "long": 288})
    ]
    result, _ = detectron2.run(code, jobs)
    assert all(result["same_ids"])
    for what, shared, own in result["same"]:
        assert shared == own, what
    assert max(result["away"]) < 0.05
    for shared, own in result["objects"]:
        assert shared <= own <= shared + 3
    assert max(result["pixels"]) < 0.1
    for shared, own in result["areas"]:
        assert 0.9 < own / shared < 1.1
    assert np.isfinite(result["losses"]).all()


def test_two_ranks_average_their_gradients(detectron2: Peer) -> None:
    code = """
adapter, data = make(jobs)
result["losses"] = step(adapter, data[0])
result["ids"] = data[0].image_ids
arrays["weight"] = adapter.model.head.cls_score.weight.detach().numpy()
adapter.close()
"""
    changes = {"ranks": 2, "optimizer": {"lr": 0.01}}
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29617", "WORLD_SIZE": "2"}
    processes = [
        detectron2.start(
            code,
            f"rank{rank}",
            detectron2.job("retinanet_r50_fpn", **changes, rank=rank, world_size=2),
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **variables,
        )
        for rank in (0, 1)
    ]
    ranks = [detectron2.finish(process, f"rank{rank}") for rank, process in enumerate(processes)]
    assert ranks[0][0]["ids"] != ranks[1][0]["ids"]
    assert ranks[0][0]["losses"] != ranks[1][0]["losses"]
    assert np.array_equal(ranks[0][1]["weight"], ranks[1][1]["weight"])


def test_another_build_is_used_and_wrong_folder_is_answered(
    detectron2: Peer,
) -> None:
    """`options.source` stands for a user's own build: here a folder that links to the installed one."""
    installed = detectron2.python.parents[1] / "lib" / "python3.11" / "site-packages" / "detectron2"
    own = detectron2.folder / "own"
    own.mkdir()
    (own / "detectron2").symlink_to(installed)
    code = """
for name, job in zip(("good", "wrong", "config", "panoptic"), jobs):
    try:
        adapter, data = make(job)
        import detectron2
        result[name] = [detectron2.__file__, adapter.describe(data[0]).extra["source"]]
    except ValueError as error:
        result[name] = str(error)
"""
    jobs = [
        detectron2.job("retinanet_r50_fpn", options={"source": str(own)}),
        detectron2.job("retinanet_r50_fpn", options={"source": str(detectron2.folder)}),
        detectron2.job("detectron2://COCO-Detection/faster_rcnn_R_51_FPN_1x.yaml"),
        detectron2.job("detectron2://COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml"),
    ]
    result, _ = detectron2.run(code, jobs)
    assert "no detectron2/__init__.py" in result["wrong"]
    assert "faster_rcnn_R_51_FPN_1x" in result["config"]
    assert "is a PanopticFPN" in result["panoptic"]
    assert result["good"] == [str(own / "detectron2" / "__init__.py"), str(own)]


def test_reduced_precision_trains(detectron2: Peer) -> None:
    code = """
adapter, data = make(jobs)
result["losses"] = step(adapter, data[0])
"""
    result, _ = detectron2.run(code, detectron2.job("mask_rcnn_r50_fpn", precision="bfloat16"))
    assert np.isfinite([*result["losses"].values()]).all()
