"""The adapter of ONNX files: real weights on real images, every family of outputs, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.inputs.batches import prepare_batches
from bench.inputs.dataset import open_evaluation
from bench.judge.accuracy import evaluate_file
from bench.recipe.workload import Input, Workload
from tests.conftest import SHARED
from tests.peers.peer import Peer

pytestmark = pytest.mark.peers

YOLOX = SHARED / "data" / "models" / "yolox_nano_coco.onnx"
COCO = SHARED / "data" / "coco_small"
#: Box AP of the file on the 45 images, from ../shared/data/models/README.md.
PUBLISHED = 0.328
PREDICT = """
from bench.worker.probe import predict as write_results
from bench.worker.batches import load_batches
for name, options in jobs["arms"].items():
    adapter = module.Adapter(Job(**{**jobs["job"], "options": options}))
    adapter.prepare()
    batches = load_batches(jobs["job"]["batches"], 0, 1)
    result[name] = write_results(adapter, batches, jobs["job"]["scratch"] + f"/{name}.json")
    if not result.get("description"):
        facts = adapter.describe(adapter.convert(batches[0]))
        result["description"] = {"parameters": facts.parameters, "flops": facts.forward_flops}
"""


@pytest.fixture
def yolox_file() -> Path:
    if not YOLOX.is_file() or not COCO.is_dir():
        pytest.skip(f"no real weights at {YOLOX}")
    return YOLOX


def real_job(onnx: Peer, file: Path) -> dict[str, Any]:
    """A job whose batches are all 45 images, those without objects too, one each."""
    input = Input(dataset=str(COCO), split="val2017", images=4, size=(416, 416))
    workload = Workload(model="onnx://yolox", task="eval", input=input, batch_size=1, score_threshold=0.01,
                        max_detections=300)  # fmt: skip
    dataset = open_evaluation(workload, onnx.folder / "cache")
    job = onnx.job("onnx://yolox", task="infer")
    return {
        **job,
        "workload": workload.model_dump(mode="json"),
        "model": {"name": str(file)},
        "classes": list(dataset.classes),
        "category_ids": list(dataset.category_ids),
        "batches": str(prepare_batches(dataset, workload, onnx.folder / "cache")),
    }


def ap_of(folder: Path, name: str) -> float:
    truth = COCO / "annotations" / "instances_val2017.json"
    return evaluate_file(truth, folder / f"{name}.json", masks=False)["bbox"].metrics["AP"]


def test_yolox_nano_reaches_its_published_ap(onnx: Peer, yolox_file: Path) -> None:
    arms = {
        f"{runtime}-{kind}": {"runtime": runtime, "int8": kind == "int8"}
        for runtime in ("onnxruntime", "openvino")
        for kind in ("float32", "int8")
    }
    job = real_job(onnx, yolox_file)
    result, _ = onnx.run(PREDICT, {"job": job, "arms": arms})
    ap = {name: ap_of(onnx.folder, name) for name in arms}
    assert result["description"]["parameters"] == pytest.approx(0.91e6, rel=0.02)
    assert result["description"]["flops"] == pytest.approx(1.08e9, rel=0.1)
    for runtime in ("onnxruntime", "openvino"):
        assert result[f"{runtime}-float32"]["images"] == 45
        assert ap[f"{runtime}-float32"] == pytest.approx(PUBLISHED, abs=0.01)
        assert 0.15 < ap[f"{runtime}-int8"] < ap[f"{runtime}-float32"] + 0.01
    print(json.dumps(ap))
