"""`bench export-model`: the graph, in a runtime, detects what the codebase itself detects."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from bench.recipe.codebases import find_codebases
from tests.conftest import Cli
from tests.peers.peer import Peer

pytestmark = pytest.mark.peers

SIZE = (96, 128)
OWN = """
adapter, data = make(jobs)
from dataclasses import replace
size = tuple(jobs["workload"]["input"]["size"])
data = [replace(one, image_sizes=[size]) for one in data]  # a graph takes the padding for a part of the image
scorers = [m for name, m in adapter.model.named_modules() if any(word in name for word in spread)]
spreads = {}
with torch.no_grad():  # scores of random weights are alike: spread them
    for layer in scorers:
        layer.bias.zero_()
        layer.register_forward_hook(lambda m, _, out: spreads.setdefault(m, float(out.std())) and None)
    adapter.network(data[0])
    for layer in scorers:
        layer.weight.div_(spreads[layer] / 2)
        layer._forward_hooks.clear()
found = predict(adapter, data[0])[0]
arrays.update(boxes=found.boxes, scores=found.scores, labels=found.labels)
adapter.save_weights(jobs["scratch"] + "/weights.npz")
adapter.export(jobs["scratch"] + "/model.onnx")
"""
#: Parts of the names of layers that score classes.
SPREAD = {"torchvision": ("cls_logits", "cls_score"), "native": ("head.classes",)}
IN_RUNTIME = """
adapter = module.Adapter(Job(**jobs))
adapter.prepare()
from bench.worker.batches import load_batches
from dataclasses import replace
data = adapter.convert(load_batches(jobs["batches"], 0, 1)[0])
data = replace(data, image_sizes=[tuple(jobs["workload"]["input"]["size"])])
found = adapter.detections(adapter.postprocess(adapter.network(data), data), data)[0]
arrays.update(boxes=found.boxes, scores=found.scores, labels=found.labels)
"""


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    ("codebase", "model"),
    [
        pytest.param("torchvision", "retinanet_r50_fpn", marks=pytest.mark.nightly),
        pytest.param("torchvision", "faster_rcnn_r50_fpn", marks=pytest.mark.nightly),
        pytest.param("native", "fcos_r50_fpn", marks=pytest.mark.nightly),
    ],
)
def test_exported_model_detects_the_same(
    onnx: Peer, tmp_path: Path, codebase: str, model: str, runtime: str
) -> None:
    own = Peer(find_codebases()[codebase], Path(sys.executable), tmp_path)
    changes = {"task": "infer", "input": {"size": SIZE}, "score_threshold": 0.05, "max_detections": 20}
    _, expected = own.run(f"spread = {SPREAD[codebase]}\n{OWN}", own.job(model, **changes))
    job = onnx.job("onnx://model", **changes, options={"runtime": runtime})
    _, found = onnx.run(IN_RUNTIME, {**job, "model": {"name": str(tmp_path / "model.onnx")}})
    assert len(expected["scores"]) > 3
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.1)
    assert np.array_equal(found["labels"], expected["labels"])


@pytest.mark.nightly
@pytest.mark.parametrize(("model", "cells"), [("dfine_n", 60), ("rtdetr_r18vd", 252)])
def test_exported_transformer_detects_the_same(
    onnx: Peer, transformers: Peer, model: str, cells: int
) -> None:
    """Every cell is a query: random weights score many cells alike, and which of those are chosen is free."""
    changes = {"task": "infer", "input": {"size": SIZE}, "score_threshold": 0.0, "max_detections": 20}
    options = {"config": {"num_queries": cells}}
    _, expected = transformers.run(f"spread = ()\n{OWN}", transformers.job(model, **changes, options=options))
    job = onnx.job("onnx://model", **changes)
    _, found = onnx.run(IN_RUNTIME, {**job, "model": {"name": str(onnx.folder / "model.onnx")}})
    assert len(expected["scores"]) == 20
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    # Of equal scores the order is free.
    apart = np.abs(np.diff(expected["scores"])) > 1e-4
    assert apart.any()
    same = np.concatenate([[True], apart]) & np.concatenate([apart, [True]])
    np.testing.assert_allclose(found["boxes"][same], expected["boxes"][same], atol=0.1)
    assert np.array_equal(found["labels"][same], expected["labels"][same])


@pytest.mark.nightly
def test_command_writes_a_file_that_tells_its_classes(cli: Cli, tmp_path: Path) -> None:
    import onnx

    path = tmp_path / "model.onnx"
    done = cli("export-model", "torchvision:retinanet_r50_fpn", "-o", str(path), "--size", "64x96")
    assert done.code == 0, done.err
    graph = onnx.load(path)
    told = {one.key: one.value for one in graph.metadata_props}
    assert told["bench.decoder"] == "bench"
    assert len(told["names"].splitlines()) > 1
    shape = [size.dim_value for size in graph.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 3, 64, 96]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["model.onnx"]


def test_command_refuses_what_it_cannot_write(cli: Cli, tmp_path: Path) -> None:
    missing = cli("export-model", "torchvision:retinanet_r50_fpn", "-o", str(tmp_path / "no" / "m.onnx"))
    assert missing.code == 2
    assert "no place for a file" in missing.err
    size = cli(
        "export-model", "torchvision:retinanet_r50_fpn", "-o", str(tmp_path / "m.onnx"), "--size", "large"
    )
    assert size.code == 2
    assert "--size large: expected one or two numbers" in size.err
