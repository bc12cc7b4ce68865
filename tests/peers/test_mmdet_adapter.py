"""The mmdet adapter on small generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.peers.peer import Peer, native_mask_rcnn

pytestmark = pytest.mark.peers

#: One of each family; the others nightly.
FIRST = {"mask_rcnn_r50_fpn"}
SIZES = {"ssd300_vgg16": (300, 300)}
LOSSES = {
    "faster_rcnn_r50_fpn": {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox"},
    "mask_rcnn_r50_fpn": {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"},
    "cascade_mask_rcnn_r50_fpn": {
        "loss_rpn_cls",
        "loss_rpn_bbox",
        *(f"s{stage}.loss_{kind}" for stage in range(3) for kind in ("cls", "bbox", "mask")),
    },
    "retinanet_r50_fpn": {"loss_cls", "loss_bbox"},
    "fcos_r50_fpn": {"loss_cls", "loss_bbox", "loss_centerness"},
    "ssd300_vgg16": {"loss_cls", "loss_bbox"},
    "solov2_light_r50_dcn_fpn": {"loss_cls", "loss_mask"},
}


@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=() if m in FIRST else pytest.mark.nightly) for m in LOSSES]
)
def test_canonical_model_learns_and_detects_and_says_what_it_is(mmdet: Peer, model: str) -> None:
    code = """
job = jobs
adapter, data = make(job)
description = adapter.describe(data[0])
result["losses"] = [step(adapter, data[0]) for _ in range(2)]
before = {name: p.detach().clone() for name, p in adapter.model.named_parameters()}
step(adapter, data[0])
moved = [name for name, p in adapter.model.named_parameters() if not torch.equal(p, before[name])]
result["moved_stages"] = sorted({name.split(".")[1] for name in moved if name.startswith("backbone.")})
result["description"] = {key: getattr(description, key) for key in
                         ("parameters", "trainable_parameters", "kernels", "postprocess")}
adapter, data = make(job, task="infer")
result["found"] = []
for batch in data:
    for found in predict(adapter, batch):
        result["found"].append({"boxes": found.boxes.tolist(), "labels": found.labels.tolist(),
                                "masks": None if found.masks is None else list(found.masks.shape)})
"""
    size = SIZES.get(model, (64, 64))
    job = mmdet.job(
        model, input={"size": size}, score_threshold=0.001, max_detections=7, optimizer={"lr": 1e-4}
    )
    result, _ = mmdet.run(code, job)
    description = result["description"]
    assert set(result["losses"][0]) == {*LOSSES[model], "loss"}
    assert np.isfinite([list(losses.values()) for losses in result["losses"]]).all()
    assert result["losses"][1]["loss"] < result["losses"][0]["loss"]
    assert description["trainable_parameters"] < description["parameters"]  # the first stage is frozen
    assert "layer1" not in result["moved_stages"]
    assert result["moved_stages"]
    assert description["postprocess"]["score_threshold"] == 0.001
    assert description["postprocess"]["max_detections"] == 7
    assert description["kernels"] in ("mmcv compiled", "torchvision stand-ins")
    assert len(result["found"]) == 2
    for found in result["found"]:
        assert len(found["boxes"]) <= 7
        assert all(0 <= label < len(job["classes"]) for label in found["labels"])
        if "mask" in model or "solo" in model:
            assert found["masks"][0] == len(found["boxes"])


def test_with_one_set_of_weights_it_computes_what_detectors_computes(mmdet: Peer) -> None:
    """Features and proposal outputs are equal as it is. Its RoIAlign samples otherwise (adaptive, aligned) and its
    anchors are not rounded (mmdet/models/task_modules/prior_generators/anchor_generator.py): with these two set to
    torchvision's, detections are equal too, so nothing else differs. (On images that are no multiple of 64 the
    coarsest anchors lie apart as well: torchvision's stride is the image's size over the grid's, here it is 64.)"""
    roi_layer = "bbox_roi_extractor.roi_layer"
    mask_layer = "mask_roi_extractor.roi_layer"
    torchvision_like = {
        f"model.roi_head.{layer}.{key}": value
        for layer in (roi_layer, mask_layer)
        for key, value in (("sampling_ratio", 2), ("aligned", False))
    }
    ours = native_mask_rcnn(mmdet, "mmdet", {"cfg_options": torchvision_like})

    code = """
adapter, (data,) = make(jobs)
with torch.no_grad():
    features = adapter.model.extract_feat(data.images)
    scores, deltas = adapter.model.rpn_head(features)
for level, values in enumerate(zip(features, scores, deltas)):
    for name, value in zip(("feature", "scores", "deltas"), values):
        arrays[f"{name}{level}"] = value.numpy()
priors = adapter.model.rpn_head.prior_generator
arrays["anchors"] = np.concatenate(priors.grid_priors([f.shape[-2:] for f in features], device="cpu"))
priors.base_anchors = [anchors.round() for anchors in priors.base_anchors]
for found in predict(adapter, data):
    for name in ("boxes", "scores", "labels", "masks"):
        arrays[f"{name}_of_{found.image_id}"] = getattr(found, name)
"""
    _, theirs = mmdet.run(code, ours.job)
    ours.assert_proposals_agree(theirs)
    for image_id, mine in zip(ours.batch.image_ids, ours.found, strict=True):
        assert len(mine.boxes) > 10
        names = ("boxes", "scores", "labels", "masks")
        other = {name: theirs[f"{name}_of_{image_id}"] for name in names}
        boxes, scores = mine.boxes.numpy(), mine.scores.numpy()
        away = np.abs(boxes[:, None] - other["boxes"]).max(axis=2)
        away[mine.labels.numpy()[:, None] != other["labels"]] = np.inf
        partner = away.argmin(axis=1)
        # At the limit of 100 detections equal scores decide which of them is the last.
        certain = scores > max(scores.min(), other["scores"].min()) + 1e-4
        assert certain.mean() > 0.9
        assert away.min(axis=1)[certain].max() <= 0.05
        assert np.abs(scores - other["scores"][partner])[certain].max() <= 1e-4
        # Pasted otherwise: into the box as it is, while torchvision rounds the box to pixels first.
        pasted, own = other["masks"][partner][certain], mine.masks.numpy()[certain]
        assert (own & pasted).sum() > 0.95 * (own | pasted).sum() > 0


def test_ema_is_mmengines_and_is_what_predicts_and_is_saved(mmdet: Peer) -> None:
    code = """
adapter, data = make(jobs)
name = "bbox_head.retina_cls.weight"
for count in (1, 2):
    step(adapter, data[0])
    arrays[f"weight{count}"] = dict(adapter.model.named_parameters())[name].detach().numpy().copy()
result["type"] = type(adapter.ema).__module__
adapter.save_weights(out + ".weights.npz")
arrays["saved"] = np.load(out + ".weights.npz")[name]
arrays["averaged"] = adapter.ema.module.state_dict()[name].numpy()
"""
    job = mmdet.job("retinanet_r50_fpn", ema=True, ema_decay=0.9, optimizer={"lr": 0.01})
    result, arrays = mmdet.run(code, job)
    assert result["type"].startswith("mmengine")
    assert np.abs(arrays["weight2"] - arrays["weight1"]).max() > 1e-6
    expected = 0.9 * arrays["weight1"] + 0.1 * arrays["weight2"]  # its first update copies
    np.testing.assert_allclose(arrays["averaged"], expected, rtol=0, atol=1e-7)
    assert np.array_equal(arrays["saved"], arrays["averaged"])


def test_frozen_stages_and_normalisation_are_what_the_workload_says(mmdet: Peer) -> None:
    code = """
for job in jobs:
    adapter, data = make(job)
    trainable = {name for name, p in adapter.model.named_parameters() if p.requires_grad}
    mean = adapter.model.backbone.layer3[0].bn1.running_mean.clone()
    step(adapter, data[0])
    result[str(job["workload"]["frozen_stages"])] = {
        "stages": sorted({n.split(".")[1] for n in trainable if n.startswith("backbone.") and "conv" in n}),
        "bn": any(".bn" in name for name in trainable),
        "statistics_move": not torch.equal(mean, adapter.model.backbone.layer3[0].bn1.running_mean),
    }
"""
    frozen = mmdet.job("retinanet_r50_fpn", frozen_stages=2, frozen_bn=True)
    free = mmdet.job("retinanet_r50_fpn", frozen_stages=0, frozen_bn=False)
    result, _ = mmdet.run(code, [frozen, free])
    layers = ["layer1", "layer2", "layer3", "layer4"]
    assert result["2"] == {"stages": layers[2:], "bn": False, "statistics_move": False}
    assert result["0"] == {"stages": ["conv1", *layers], "bn": True, "statistics_move": True}


@pytest.mark.nightly
@pytest.mark.parametrize("size", [[256, 192], {"short": 192, "long": 288}])
def test_own_loader_gives_same_images_in_same_order(mmdet: Peer, coco_tiny: Path, size: Any) -> None:
    """Pixels differ by the resampling (OpenCV's bilinear against Pillow's antialiased one), and mmdetection keeps
    objects whose resized mask has no pixel, which the shared batches leave out."""
    code = """
adapter, shared = make(jobs)
own = adapter.pipeline()
for one in shared + shared[:1]:
    other = adapter.load(next(own))
    result.setdefault("same_ids", []).append(one.image_ids == other.image_ids)
    result.setdefault("shapes", []).append([list(one.images.shape), list(other.images.shape)])
    result.setdefault("pixels", []).append(float((one.images - other.images).abs().mean() / one.images.std()))
    for a, b in zip(one.samples, other.samples):
        keys = ["ori_shape", "img_shape", "batch_input_shape"]
        if isinstance(adapter.workload["input"]["size"], dict):
            keys.append("pad_shape")  # of a fixed size it is only set where BatchFixedSizePad had to pad
        result.setdefault("metas", []).append([[list(s.metainfo[key]) for key in keys] for s in (a, b)])
        result.setdefault("scale", []).append(np.abs(np.subtract(a.scale_factor, b.scale_factor)).max())
        away = (a.gt_instances.bboxes[:, None] - b.gt_instances.bboxes).abs().amax(dim=2)
        away[a.gt_instances.labels[:, None] != b.gt_instances.labels] = 1e6  # px
        result.setdefault("away", []).append(float(away.amin(dim=1).max()))
        result.setdefault("objects", []).append([len(s.gt_instances) for s in (a, b)])
        result.setdefault("masks", []).append([int(s.gt_instances.masks.masks.sum()) for s in (a, b)])
with torch.no_grad():
    result["loss"] = float(sum(adapter.compute_losses(adapter.load(next(own))).values()))
"""
    input = {"dataset": str(coco_tiny), "split": "val2017", "images": 3, "size": size, "mode": "pipeline"}
    job = mmdet.job("mask_rcnn_r50_fpn", input=input, batch_size=2)
    result, _ = mmdet.run(code, job)
    assert all(result["same_ids"])
    for what in ("shapes", "metas"):
        for shared, own in result[what]:
            assert shared == own
    assert max(result["scale"]) < 1e-3
    assert max(result["away"]) < 0.05
    for shared, own in result["objects"]:
        assert shared <= own <= shared + 3
    assert max(result["pixels"]) < 0.25
    for shared, own in result["masks"]:
        assert 0.9 < own / shared < 1.1
    assert np.isfinite(result["loss"])


@pytest.mark.nightly  # torchvision's adapter, detectron2's and Paddle's show it every day
def test_two_ranks_average_their_gradients(mmdet: Peer) -> None:
    code = """
adapter, data = make(jobs)
result["losses"] = step(adapter, data[0])
result["ids"] = data[0].image_ids
arrays["weight"] = adapter.model.bbox_head.retina_cls.weight.detach().numpy()
adapter.close()
"""
    changes = {"ranks": 2, "optimizer": {"lr": 0.01}}
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29613", "WORLD_SIZE": "2"}
    processes = [
        mmdet.start(code, f"rank{rank}", mmdet.job("retinanet_r50_fpn", **changes, rank=rank, world_size=2),
                    RANK=str(rank), LOCAL_RANK=str(rank), **variables)
        for rank in (0, 1)
    ]  # fmt: skip
    ranks = [mmdet.finish(process, f"rank{rank}") for rank, process in enumerate(processes)]
    assert ranks[0][0]["ids"] != ranks[1][0]["ids"]
    assert ranks[0][0]["losses"] != ranks[1][0]["losses"]
    assert np.array_equal(ranks[0][1]["weight"], ranks[1][1]["weight"])


VARIANTS = {  # of the reference list
    "GN": "gn/mask-rcnn_r50_fpn_gn-all_2x_coco",
    "weight standardisation": "gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco",
    "DCNv2": "dcnv2/faster-rcnn_r50-mdconv-c3-c5_fpn_1x_coco",
    "CARAFE": "carafe/faster-rcnn_r50_fpn-carafe_1x_coco",
    "InstaBoost": "instaboost/mask-rcnn_r50_fpn_instaboost-4x_coco",
    "Libra": "libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco",
    "guided anchoring": "guided_anchoring/ga-retinanet_r50_fpn_1x_coco",
    "FoveaBox": "foveabox/fovea_r50_fpn_4xb4-1x_coco",
    "RepPoints": "reppoints/reppoints-moment_r50_fpn_1x_coco",
    "FreeAnchor": "free_anchor/freeanchor_r50_fpn_1x_coco",
    "Grid R-CNN": "grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco",
    "GHM": "ghm/retinanet_r50_fpn_ghm-1x_coco",
    "GCNet": "gcnet/mask-rcnn_r50-gcb-r16-c3-c5_fpn_1x_coco",
    "HRNet": "hrnet/faster-rcnn_hrnetv2p-w18-1x_coco",
    "Mask Scoring": "ms_rcnn/ms-rcnn_r50_fpn_1x_coco",
    "NAS-FPN": "nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco",
    "ATSS": "atss/atss_r50_fpn_1x_coco",
    "HTC": "htc/htc-without-semantic_r50_fpn_1x_coco",
}


@pytest.mark.nightly
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_of_the_reference_list_learns_and_detects(mmdet: Peer, variant: str) -> None:
    code = """
adapter, data = make(jobs)
result["losses"] = [step(adapter, data[0]) for _ in range(2)]
adapter, data = make(jobs, task="infer")
result["found"] = len(predict(adapter, data[0])[0].boxes)
"""
    changes: dict[str, Any] = {
        # Random weights: without its batch's statistics every exchange between branches doubles the variance.
        "HRNet": {"frozen_stages": 0, "frozen_bn": False, "batch_size": 2},
        "NAS-FPN": {"batch_size": 2},  # it normalises 1×1 maps
        "guided anchoring": {
            "options": {"kernels": "stand-ins"}
        },  # mmcv's own masked convolution is for CUDA only
    }.get(variant, {})
    size = (128, 128) if variant == "NAS-FPN" else (64, 64)
    job = mmdet.job(
        f"mmdet://{VARIANTS[variant]}",
        input={"size": size},
        score_threshold=0.0001,
        max_detections=9,
        optimizer={"lr": 1e-4},
        **changes,
    )
    result, _ = mmdet.run(code, job)
    assert np.isfinite([list(losses.values()) for losses in result["losses"]]).all()
    assert result["losses"][0] != result["losses"][1]
    assert result["found"] <= 9
    assert result["found"] > 0 or variant == "HRNet"  # its statistics are not trained


@pytest.mark.nightly
def test_every_model_that_the_adapter_offers_can_be_built(mmdet: Peer) -> None:
    code = """
module.mmcv_kernels.install()
from mmdet.utils import register_all_modules
register_all_modules()
from mmdet.registry import MODELS
for name, offer in jobs["offers"].items():
    config = module.load_config(offer["name"], offer["options"].get("cfg_options", {}))
    module.adapt_config(config.model, jobs["workload"], 5)
    with torch.device("meta"):
        model = MODELS.build(config.model)
    result[name] = {
        "trainable_bn": sorted(n for n, m in model.backbone.named_modules() if "BatchNorm" in type(m).__name__
                               and any(p.requires_grad for p in m.parameters()))[:3],
        "checkpoints": "Pretrained" in str(config.model),
        "classes": sorted({m.num_classes for n, m in model.named_modules()
                           if getattr(m, "num_classes", 0) > 0 and "rpn" not in n}),
    }
"""
    offers = {name: offer.model_dump() for name, offer in mmdet.codebase.models.items()}
    workload = mmdet.job("retinanet_r50_fpn")["workload"]
    result, _ = mmdet.run(code, {"offers": offers, "workload": workload})
    assert set(result) == set(offers)
    for name, built in result.items():
        assert built["trainable_bn"] == [], name
        assert not built["checkpoints"], name
        if not name.startswith("rpn"):
            assert built["classes"] == [5], name


def test_config_runs_by_path_and_wrong_one_lists_known(mmdet: Peer) -> None:
    code = """
good, wrong, folder = jobs
adapter, data = make(good)
result["losses"] = step(adapter, data[0])
for name, job in (("wrong", wrong), ("folder", folder)):
    try:
        make(job)
    except ValueError as error:
        result[name] = str(error)
"""
    names = ("atss/atss_r50_fpn_1x_coco", "atss/atss_r51_fpn_1x_coco", "attss/atss_r50")
    result, _ = mmdet.run(code, [mmdet.job(f"mmdet://{name}") for name in names])
    assert set(result["losses"]) == {"loss_cls", "loss_bbox", "loss_centerness", "loss"}
    assert "no file atss/atss_r51_fpn_1x_coco" in result["wrong"]
    assert "did you mean atss/atss_r50_fpn_1x_coco" in result["wrong"]
    assert "did you mean atss/atss_r50" in result["folder"]
