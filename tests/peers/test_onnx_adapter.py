"""The adapter of ONNX files: real weights on real images, every family of outputs, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.inputs.batches import prepare_batches
from bench.inputs.dataset import open_evaluation
from bench.judge.accuracy import evaluate_file
from bench.recipe.workload import Input, Workload
from tests.conftest import SHARED, Cli
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


def measured(onnx: Peer, file: Path, *, int8: bool) -> tuple[dict[str, float], dict[str, Any]]:
    """Box AP by runtime, and the description of the work."""
    arms = {name: {"runtime": name, "int8": int8} for name in ("onnxruntime", "openvino")}
    result, _ = onnx.run(PREDICT, {"job": real_job(onnx, file), "arms": arms})
    assert all(result[name]["images"] == 45 for name in arms)
    return {name: ap_of(onnx.folder, name) for name in arms}, result["description"]


def test_yolox_nano_reaches_its_published_ap(onnx: Peer, yolox_file: Path) -> None:
    ap, description = measured(onnx, yolox_file, int8=False)
    assert ap == pytest.approx(dict.fromkeys(ap, PUBLISHED), abs=0.01)
    assert description["parameters"] == pytest.approx(0.91e6, rel=0.02)
    assert description["flops"] == pytest.approx(1.08e9, rel=0.1)


@pytest.mark.nightly
@pytest.mark.usefixtures("yolox_file", "onnx")
def test_example_recipe_shows_real_ap(cli: Cli) -> None:
    less = ["launches=1", "rounds=1", "steps=1", "quiet=off"]
    settings = [word for one in less for word in ("--set", f"measure.{one}")]
    done = cli("run", "recipes/runtimes.yaml", "--results", cli.results, *settings)
    assert done.code == 0, done.err
    for name in ("onnxruntime", "openvino"):
        (evaluation,) = cli.arm(name)["evaluations"]
        assert evaluation["bbox"]["metrics"]["AP"] == pytest.approx(PUBLISHED, abs=0.01)
        (evaluation,) = cli.arm(f"{name}-int8")["evaluations"]
        assert 0.15 < evaluation["bbox"]["metrics"]["AP"] < PUBLISHED


@pytest.mark.nightly
def test_int8_of_yolox_nano_costs_ap_and_still_detects(onnx: Peer, yolox_file: Path) -> None:
    """Both quantisers with their defaults: 0.20 (ONNX Runtime) and 0.26 (NNCF) when this was written."""
    ap, _ = measured(onnx, yolox_file, int8=True)
    for value in ap.values():
        assert 0.15 < value < PUBLISHED


FAMILIES = """
import onnx
from onnx import TensorProto, helper, numpy_helper

def graph(outputs, shape=(1, 3, 64, 64), props=None):
    # a graph that gives these arrays whatever it is fed with
    image = helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))
    nodes = [helper.make_node("ReduceSum", ["images"], ["sum"], keepdims=0),
             helper.make_node("Mul", ["sum", "zero"], ["nothing"])]
    values, constants = [], [numpy_helper.from_array(np.float32(0), "zero")]
    for name, value in outputs.items():
        value = np.asarray(value)
        constants.append(numpy_helper.from_array(value, f"{name}_value"))
        cast = helper.np_dtype_to_tensor_dtype(value.dtype)
        nodes += [helper.make_node("Cast", ["nothing"], [f"{name}_zero"], to=cast),
                  helper.make_node("Add", [f"{name}_value", f"{name}_zero"], [name])]
        values.append(helper.make_tensor_value_info(name, cast, list(value.shape)))
    model = helper.make_model(helper.make_graph(nodes, "g", [image], values, constants),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if props:
        helper.set_model_props(model, props)
    path = jobs["scratch"] + "/graph.onnx"
    onnx.save(model, path)
    return path

def detect(outputs, options=None, **more):
    path = graph(outputs, **more)
    adapter = module.Adapter(Job(**{**jobs, "model": {"name": path}, "options": options or {}}))
    adapter.prepare()
    batch = load_batches(jobs["batches"], 0, 1)[0]
    data = adapter.convert(batch)
    found = adapter.detections(adapter.postprocess(adapter.network(data), data), data)[0]
    scale = data.original_sizes[0][0] / data.image_sizes[0][0]
    return [[[round(float(x) / scale) for x in box], round(float(score), 2), int(label)]
            for box, score, label in zip(found.boxes, found.scores, found.labels)]

def refusal(outputs, options=None, **more):
    try:
        detect(outputs, options, **more)
    except ValueError as error:
        return str(error)

classes = len(jobs["classes"])
cells = 64 + 16 + 4
yolox = np.zeros((1, cells, 5 + classes), np.float32)
yolox[0, 9] = [0.5, 0.5, np.log(2), np.log(1), 0.9] + [0.0] * classes  # cell (1, 1) of 8 pixels
yolox[0, 9, 5 + 2] = 1.0
yolox[0, 10] = yolox[0, 9] * [0, 1, 1, 1, 0.5, *[1] * classes]  # nearly the same box with half the score
yolox[0, 10, 0] = -0.5
result["yolox"] = detect({"output": yolox})
result["kept"] = len(detect({"output": yolox}, {"nms": 1.0}))
nanodet = np.zeros((1, cells, classes + 32), np.float32)
nanodet[0, 64 + 5, 1] = 0.8  # cell (1, 1) of 16 pixels, distances of 1 cell to each side
nanodet[0, 64 + 5, classes:].reshape(4, 8)[:, 1] = 50
result["nanodet"] = detect({"output": nanodet})
logits = np.full((1, 2, classes + 1), -20, np.float32)
logits[0, 0, 3], logits[0, 1, classes] = 20, 20
boxes = np.array([[[0.25, 0.25, 0.25, 0.5], [0.5, 0.5, 0.1, 0.1]]], np.float32)
result["detr"] = detect({"logits": logits, "pred_boxes": boxes})
focal = np.full((1, 2, classes), -20, np.float32)
focal[0, 1, 0] = 2
result["rtdetr"] = detect({"logits": focal, "pred_boxes": boxes})
flat = {"boxes": np.array([[8, 8, 24, 16], [0, 0, 8, 8]], np.float32), "scores": np.array([0.7, -1], np.float32),
        "labels": np.array([1, 1])}
result["torchvision"] = detect(flat)
names = "\\n".join(["unknown", jobs["classes"][4]])
result["bench"] = detect(flat, props={"bench.decoder": "bench", "bench.input": "imagenet", "names": names})
result["size"] = refusal({"output": yolox}, shape=(1, 3, 32, 32))
result["batch"] = refusal({"output": yolox}, shape=(2, 3, 64, 64))
result["family"] = refusal({"output": np.zeros((1, 7), np.float32)})
result["runtime"] = refusal({"output": yolox}, {"runtime": "tensorrt"})
result["dynamic"] = refusal({"output": yolox}, {"shapes": "dynamic"})
result["free"] = detect({"output": yolox}, shape=("batch", 3, "height", "width"))
result["free_dynamic"] = detect({"output": yolox}, {"shapes": "dynamic"}, shape=("batch", 3, "height", "width"))
"""


def test_outputs_of_every_family_become_detections(onnx: Peer) -> None:
    job = onnx.job("onnx://graph", task="infer", score_threshold=0.3)
    result, _ = onnx.run(FAMILIES, job)
    expected = [[[4, 8, 20, 16], 0.9, 2]]
    for name in ("yolox", "free", "free_dynamic"):
        assert result[name] == expected, name
    assert result["kept"] == 2
    assert result["nanodet"] == [[[0, 0, 32, 32], 0.8, 1]]
    assert result["detr"] == [[[8, 0, 24, 32], 1.0, 3]]
    assert result["rtdetr"] == [[[29, 29, 35, 35], 0.88, 0]]
    assert result["torchvision"] == [[[8, 8, 24, 16], 0.7, 0]]
    assert result["bench"] == [[[8, 8, 24, 16], 0.7, 4]]
    assert "set input.size" in result["size"]
    assert "set batch_size: 2" in result["batch"]
    assert "set options.decoder to one of yolox" in result["family"]
    assert "options.runtime must be one of onnxruntime, openvino" in result["runtime"]
    assert "fixed shape" in result["dynamic"]
