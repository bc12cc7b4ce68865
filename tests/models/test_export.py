"""Detectors as graphs: the same detections, no operator of our own, and ONNX that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detectors import Detections, build, calibrate
from detectors.export import export_onnx, export_program, exportable
from tests.helpers.models import few_layers, narrow_heads

SIZE = (128, 160)
NIGHTLY = pytest.mark.nightly
CASES = [
    ("retinanet_r50_fpn", {}),
    pytest.param("retinanet_r50_fpn", {"conventions": "mmdet"}, marks=NIGHTLY),
    ("fcos_r50_fpn", {"score_threshold": 0.02}),
    pytest.param("fcos_r50_fpn", {"conventions": "mmdet", "score_threshold": 0.02}, marks=NIGHTLY),
    ("faster_rcnn_r50_fpn", {}),
    pytest.param("faster_rcnn_r50_fpn", {"conventions": "mmdet"}, marks=NIGHTLY),
]


def detector(name: str, settings: dict[str, str | float]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    with few_layers(), narrow_heads():
        model = build(name, num_classes=5, **settings)
    image = torch.randn(1, 3, *SIZE)
    calibrate(model, image, torch.tensor([SIZE]))
    return model.eval(), image


def eager(model: nn.Module, image: Tensor) -> Detections:
    with torch.no_grad():
        return model.postprocess(model.network(image, torch.tensor([SIZE])), [SIZE], [SIZE])[0]


def assert_same(found: tuple[Tensor, Tensor, Tensor], expected: Detections, pixels: float = 1e-3) -> None:
    boxes, scores, labels = found
    count = int((scores > 0).sum())
    assert count == len(expected.boxes) > 3
    assert (scores[count:] == -1).all()
    torch.testing.assert_close(scores[:count], expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes[:count], expected.boxes, rtol=0, atol=pixels)
    assert torch.equal(labels[:count], expected.labels)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_graph_detects_as_the_model_does(name: str, settings: dict[str, str | float]) -> None:
    model, image = detector(name, settings)
    program = export_program(model, SIZE)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [one for one in called if "detectors" in one]
    with torch.no_grad():
        assert_same(program.module()(image), eager(model, image), pixels=1e-2)


@pytest.mark.parametrize(("name", "settings"), [pytest.param(*CASES[0], marks=NIGHTLY), CASES[4]])
def test_onnxruntime_detects_as_the_model_does(
    name: str, settings: dict[str, str | float], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, image = detector(name, settings)
    path = tmp_path / "model.onnx"
    export_onnx(model, SIZE, path, ["a", "b", "c", "d", "e"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    boxes, scores, labels = (torch.from_numpy(one) for one in found)
    assert_same((boxes, scores, labels), eager(model, image), pixels=1e-2)
    assert session.get_modelmeta().custom_metadata_map["names"].split() == ["a", "b", "c", "d", "e"]


def test_another_model_is_refused_by_name() -> None:
    with (
        few_layers(),
        pytest.raises(ValueError, match="RCNN cannot be exported yet; RetinaNet, FCOS and Faster"),
    ):
        exportable(build("mask_rcnn_r50_fpn"), SIZE)
