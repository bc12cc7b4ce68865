"""PaddleDetection, driven over the worker's own protocol in its own environment, on small generated images."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from typing import Any

import numpy as np
import pytest

from bench.environments import python_of
from bench.inputs import weights
from bench.inputs.dataset import open_dataset
from bench.judge.observations import work_of
from bench.measure.process import worker_path
from bench.recipe.codebases import BUILTIN, load_codebase
from bench.recipe.workload import Input, Workload
from tests.peers.ppdet import DEADLINE_S, PADDLEDET, Bench, canonical_weights, workload

TORCHVISION = load_codebase(BUILTIN / "torchvision")
# What torchvision defines otherwise; see "Conventions" in adapters/paddledet/README.md.
ROI_ALIGN_OF_TORCHVISION = {"roi_extractor": {"aligned": False, "sampling_ratio": 2}}


def load_models() -> Any:
    """adapters/paddledet/ppdet_models.py, which needs no Paddle."""
    spec = importlib.util.spec_from_file_location("ppdet_models", PADDLEDET.folder / "ppdet_models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PADDLEDET.folder)
        spec.loader.exec_module(module)
    return module


# -- without the environment -------------------------------------------------------------------------------------


def test_what_is_offered_is_what_there_is_a_configuration_for() -> None:
    assert set(PADDLEDET.models) == set(load_models().MODELS)


@pytest.mark.parametrize("model", sorted(PADDLEDET.models))
def test_the_configuration_of_a_model_obeys_the_workload(model: str) -> None:
    workload = Workload(model=model, frozen_stages=3, frozen_bn=False, score_threshold=0.2, max_detections=7)
    config = load_models().build_config(model, 3, workload.model_dump(), {})
    text = json.dumps(config)
    assert config["num_classes"] == 3
    assert '_threshold": 0.2' in text or config["architecture"] == "DETR"  # its adapter cuts them
    assert any(f'_{name}": 7' in text for name in ("n", "k", "queries"))
    if "ResNet" in config:
        assert config["ResNet"]["freeze_at"] == 2
        assert config["ResNet"]["freeze_norm"] is False


def test_settings_of_an_arm_replace_single_values_of_the_configuration() -> None:
    models = load_models()
    workload = Workload(model="faster_rcnn_r50_fpn").model_dump()
    changes = {"RPNHead": {"train_proposal": {"post_nms_top_n": 123}}}
    plain = models.build_config("faster_rcnn_r50_fpn", 80, workload, {})
    changed = models.build_config("faster_rcnn_r50_fpn", 80, workload, changes)
    assert changed["RPNHead"]["train_proposal"] == {
        **plain["RPNHead"]["train_proposal"],
        "post_nms_top_n": 123,
    }
    assert plain["RPNHead"]["train_proposal"]["post_nms_top_n"] == 1000
    with pytest.raises(ValueError, match=r"known: .*faster_rcnn_r50_fpn"):
        models.build_config("faster", 80, workload, {})


def test_transplanted_weights_lose_no_value_on_the_way() -> None:
    detectors = pytest.importorskip("detectors")
    state = {
        k: v.numpy() for k, v in detectors.build("mask_rcnn_r50_fpn", num_classes=2).state_dict().items()
    }
    given = weights.to_codebase("paddledet", "mask_rcnn_r50_fpn", state)
    assert len(given) == len(state)
    fc1 = given["bbox_head.head.fc6.weight"]
    assert fc1.shape == (256 * 7 * 7, 1024)
    assert np.array_equal(fc1[:, 5], state["box_head.fc1.weight"][5].ravel())
    assert np.array_equal(given["bbox_head.bbox_score.weight"], state["box_head.classes.weight"].T)


# -- in the environment ------------------------------------------------------------------------------------------


@pytest.mark.peers
def test_mask_rcnn_trains_with_own_ema_and_describes_itself(bench: Bench) -> None:
    task = workload("mask_rcnn_r50_fpn", ema=True, frozen_stages=2, input=Input(images=2, size=(64, 96)))
    with bench.worker(task) as group:
        facts = group.request("describe", DEADLINE_S)[0]["description"]
        before = bench.weights(group, "before")
        losses = bench.step(group)[0]
        after = bench.weights(group, "after")
        phases = group.request("phase_pass", DEADLINE_S, steps=1)[0]["phases"]
        memory = group.request("memory_pass", DEADLINE_S, steps=1)[0]["memory"]
    terms = {"loss_rpn_cls", "loss_rpn_reg", "loss_bbox_cls", "loss_bbox_reg", "loss_mask"}
    assert set(losses) == {*terms, "loss"}
    assert losses["loss"] == pytest.approx(sum(losses[term] for term in terms), rel=1e-4)
    assert all(np.isfinite(value) and value > 0 for value in losses.values())
    # After one update PaddleDetection's bias-corrected average is the weights themselves.
    moved = {name for name in before if np.abs(before[name] - after[name]).max() > 1e-5}
    assert not any(name.startswith(("backbone.conv1", "backbone.res2", "backbone.res3")) for name in moved)
    assert {name.split(".")[0] for name in moved} == {
        "backbone",
        "neck",
        "rpn_head",
        "bbox_head",
        "mask_head",
    }
    assert not any("norm" in name for name in moved)
    assert set(phases) == {"data", "forward", "backward", "optimizer", "ema"}
    assert memory["host_allocated_bytes"] > 1e8
    values = {name: v.size for name, v in before.items() if not name.endswith(("._mean", "._variance"))}
    assert facts["parameters"] == sum(values.values())
    assert facts["trainable_parameters"] < facts["parameters"]
    assert facts["input_shape"] == [2, 3, 64, 96]
    assert facts["postprocess"]["proposals"] == 1000


@pytest.mark.peers
@pytest.mark.parametrize(
    "model", [pytest.param("faster_rcnn_r50_fpn", marks=pytest.mark.nightly), "mask_rcnn_r50_fpn"]
)
def test_from_the_same_weights_it_finds_what_torchvision_finds(bench: Bench, model: str) -> None:
    """With torchvision's two conventions; its own are measured in the README."""
    task = workload(model, task="infer", score_threshold=0.02, max_detections=30)
    heads = ["BBoxHead", "MaskHead"] if "mask" in model else ["BBoxHead"]
    options = {"rounded_anchors": True, "config": dict.fromkeys(heads, ROI_ALIGN_OF_TORCHVISION)}
    classes = len(open_dataset(task.input, task.task, bench.folder).classes)
    found = {}
    for codebase, settings in ((PADDLEDET, options), (TORCHVISION, {})):
        weights = canonical_weights(bench.folder, model, classes, codebase.name)
        with bench.worker(task, codebase, weights=weights, options=settings) as group:
            found[codebase.name] = bench.predictions(group, codebase.name)
    assert len(found["torchvision"]) > 20
    assert len(found["paddledet"]) == len(found["torchvision"])
    rest = list(found["paddledet"])
    for expected in found["torchvision"]:
        same = [d for d in rest if all(d[k] == expected[k] for k in ("image_id", "category_id"))]
        nearest = min(same, key=lambda d: np.abs(np.subtract(d["bbox"], expected["bbox"])).max())
        assert np.abs(np.subtract(nearest["bbox"], expected["bbox"])).max() <= 0.05
        assert nearest["score"] == pytest.approx(expected["score"], abs=1e-4)
        rest.remove(nearest)


@pytest.mark.peers
def test_solov2_trains_and_predicts_every_image_of_a_batch(bench: Bench) -> None:
    """ppdet's own prediction would leave out all images but the first."""
    every_cell = {"SOLOv2Head": {"score_threshold": 1e-3}}
    task = workload("solov2_light_r50_fpn", score_threshold=1e-4, max_detections=5)
    with bench.worker(task, options={"config": every_cell}) as group:
        losses = bench.step(group)[0]
        found = bench.predictions(group, "solov2")
    assert set(losses) == {"loss_ins", "loss_cate", "loss"}
    assert np.isfinite(list(losses.values())).all()
    images = json.loads(next(bench.folder.glob("subsets/*/*.json")).read_text())["images"]
    sizes = {image["id"]: [image["height"], image["width"]] for image in images}
    assert {detection["image_id"] for detection in found} == set(sizes)
    assert all(d["segmentation"]["size"] == sizes[d["image_id"]] for d in found)
    assert all(d["bbox"][2] > 0 and d["bbox"][3] > 0 for d in found)


@pytest.mark.peers
@pytest.mark.parametrize("model", ["retinanet_r50_fpn", "fcos_r50_fpn", "ssd300_vgg16"])
def test_a_dense_model_trains_on_its_own_loader_and_predicts(bench: Bench, model: str) -> None:
    size = workload(model).input.size
    task = workload(model, input=Input(images=2, size=size, mode="pipeline"), score_threshold=1e-3)
    with bench.worker(task) as group:
        losses = bench.step(group)[0]
        found = bench.predictions(group, model)
    assert losses["loss"] > 0
    assert len({detection["image_id"] for detection in found}) == 2


@pytest.mark.nightly
@pytest.mark.peers
def test_floating_point_operations_are_counted_as_in_torch(bench: Bench) -> None:
    """RetinaNet is the same network in both, layer by layer, backwards too."""
    counted = {}
    for codebase in (PADDLEDET, TORCHVISION):
        with bench.worker(workload("retinanet_r50_fpn"), codebase) as group:
            facts = work_of(group.request("audit", DEADLINE_S)[0]["audit"])
        counted[codebase.name] = [facts["forward_flops"], facts["training_flops"]]
    assert counted["paddledet"] == counted["torchvision"]
    assert 1e9 < 2 * counted["paddledet"][0] < counted["paddledet"][1]


@pytest.mark.nightly
@pytest.mark.peers
def test_time_of_deformable_convolution_is_found_in_both_passes(bench: Bench) -> None:
    """Its gradient takes longer than it does itself, so that one without the other would be less than half."""
    shares = {}
    for task in ("train", "infer"):
        with bench.worker(workload("solov2_light_r50_vd_fpn_dcn_512", task=task)) as group:
            seconds = group.request("operator_pass", DEADLINE_S)[0]["seconds"]
        assert set(seconds) == {"step", "deformable convolution"}
        shares[task] = seconds["deformable convolution"] / seconds["step"]
    assert 0 < shares["infer"] < shares["train"] < 1


COMPARE_INPUTS = """
import json, sys
import numpy as np
from pycocotools import mask as coco_mask
from scipy.ndimage import binary_fill_holes
from bench.worker.__main__ import load_module
from bench.worker.api import Job
from bench.worker.batches import load_batches

module = load_module(sys.argv[1])
job = Job(**json.load(open(sys.argv[2])))
adapter = module.Adapter(job)
adapter.prepare()
batches = load_batches(job.batches, 0, 1)
own = adapter.pipeline()
rows = []
for batch in [*batches, batches[0]]:
    shared, theirs = adapter.load(adapter.convert(batch)), adapter.load(next(own))
    image, other = shared.inputs["image"].numpy(), theirs.inputs["image"].numpy()
    pairs = zip(shared.inputs["gt_bbox"], theirs.inputs["gt_bbox"])
    covered = []
    for masks, outlines in zip(batch.masks, shared.inputs["gt_poly"]):
        for mask, polygons in zip(masks, outlines):
            codes = coco_mask.frPyObjects([list(map(float, p)) for p in polygons], *mask.shape)
            drawn = coco_mask.decode(coco_mask.merge(codes))
            mask = binary_fill_holes(mask)  # polygons have no holes
            covered.append(float((drawn & mask).sum() / (drawn | mask).sum()))
    rows.append({
        "ids": [shared.image_ids, theirs.image_ids],
        "sizes": [shared.original_sizes, theirs.original_sizes],
        "shapes": [image.shape, other.shape],
        "pixels": float(np.abs(image - other).mean() / image.std()),
        "boxes": max(float(np.abs(a.numpy() - b.numpy()).max()) for a, b in pairs),
        "outlines": covered,
    })
json.dump(rows, open(sys.argv[3], "w"))
"""


@pytest.mark.peers
@pytest.mark.parametrize(
    "size", [pytest.param((160, 128), marks=pytest.mark.nightly), {"short": 128, "long": 192}]
)
def test_own_loader_gives_same_images_and_objects_in_same_order(bench: Bench, size: Any) -> None:
    """Pixels differ by the resize (OpenCV's is not antialiased) and boxes by the rounding of the image's size."""
    task = workload("mask_rcnn_r50_fpn", input=Input(images=4, size=size, mode="pipeline"))
    job, result = bench.folder / "job.json", bench.folder / "result.json"
    job.write_text(json.dumps(bench.job(task, PADDLEDET)))
    subprocess.run(
        [python_of(PADDLEDET), "-c", COMPARE_INPUTS, PADDLEDET.adapter_file, job, result],
        env={"PYTHONPATH": str(worker_path(bench.folder / "path")), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=DEADLINE_S,
    )
    rows = json.loads(result.read_text())
    assert [row["ids"] for row in rows] == [[[1, 2]] * 2, [[3, 4]] * 2, [[1, 2]] * 2]
    for row in rows:
        assert row["sizes"][0] == row["sizes"][1]
        assert row["shapes"][0] == row["shapes"][1]
        assert row["pixels"] < 0.1
        assert row["boxes"] < 1.0
        assert min(row["outlines"]) > 0.8  # of objects a few pixels wide
        assert np.mean(row["outlines"]) > 0.98


@pytest.mark.peers
def test_two_ranks_average_their_gradients(bench: Bench) -> None:
    """After a step on different images both ranks hold the same weights, and not those of one rank alone."""
    after = {}
    for ranks in (1, 2):
        task = workload("fcos_r50_fpn", ranks=ranks, batch_size=1, input=Input(images=2, size=(64, 64)))
        with bench.worker(task) as group:
            losses = bench.step(group)
            paths = [{"path": str(bench.folder / f"{ranks}-{rank}.npz")} for rank in range(ranks)]
            group.request("save", DEADLINE_S, by_rank=paths)
        after[ranks] = [np.load(path["path"])["fcos_head.fcos_head_cls.weight"] for path in paths]
    assert losses[0]["loss"] != losses[1]["loss"]
    assert np.array_equal(after[2][0], after[2][1])
    assert np.abs(after[2][0] - after[1][0]).max() > 1e-7
