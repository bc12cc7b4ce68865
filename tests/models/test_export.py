"""Detectors as graphs: the same detections, no operator of our own, and ONNX that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detectors import Detections, build, calibrate
from detectors.config import ConfigError, Resize
from detectors.export import export_onnx, export_program, exportable, size_of
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
    pytest.param("mask_rcnn_r50_fpn", {}, marks=NIGHTLY),
    pytest.param("cascade_mask_rcnn_r50_fpn", {}, marks=NIGHTLY),
    pytest.param("ssd300_vgg16", {"score_threshold": 0.1}, marks=NIGHTLY),
    pytest.param("ssd300_vgg16", {"conventions": "mmdet", "score_threshold": 0.1}, marks=NIGHTLY),
]
ONNX = [pytest.param(*CASES[0], marks=NIGHTLY), CASES[4], pytest.param(*CASES[2], marks=NIGHTLY), *CASES[6:9]]


def detector(name: str, settings: dict[str, str | float]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    with few_layers(), narrow_heads():
        model = build(name, num_classes=5, **settings)
    size = (300, 300) if name.startswith("ssd") else SIZE
    image = torch.randn(1, 3, *size)
    calibrate(model, image, torch.tensor([size]))
    return model.eval(), image


def eager(model: nn.Module, image: Tensor) -> Detections:
    """Masks as probabilities within the boxes."""
    size = tuple(image.shape[2:])
    with torch.no_grad():
        raw = model.network(image, torch.tensor([size]))
        found = model.postprocess(raw, [size], [size])[0]
    return found._replace(masks=None if found.masks is None else raw[0].masks)


def assert_same(found: Sequence[Tensor], expected: Detections, pixels: float) -> None:
    boxes, scores, labels, *masks = found
    count = int((scores > 0).sum())
    assert count == len(expected.boxes) > 3
    assert (scores[count:] == -1).all()
    torch.testing.assert_close(scores[:count], expected.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(boxes[:count], expected.boxes, rtol=0, atol=pixels)
    assert torch.equal(labels[:count], expected.labels)
    assert len(masks) == (expected.masks is not None)
    if masks:
        torch.testing.assert_close(masks[0][:count], expected.masks, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_graph_detects_as_the_model_does(name: str, settings: dict[str, str | float]) -> None:
    model, image = detector(name, settings)
    program = export_program(model, tuple(image.shape[2:]))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert not [one for one in called if "detectors" in one]
    with torch.no_grad():
        assert_same(program.module()(image), eager(model, image), pixels=1e-2)


@pytest.mark.parametrize(("name", "settings"), ONNX)
def test_onnxruntime_detects_as_the_model_does(
    name: str, settings: dict[str, str | float], tmp_path: Path
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, image = detector(name, settings)
    path = tmp_path / "model.onnx"
    export_onnx(model, tuple(image.shape[2:]), path, ["a", "b", "c", "d", "e"])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert_same([torch.from_numpy(one) for one in found], eager(model, image), pixels=1e-2)
    assert session.get_modelmeta().custom_metadata_map["names"].split() == ["a", "b", "c", "d", "e"]


def test_another_model_is_refused_by_name() -> None:
    with (
        few_layers(),
        pytest.raises(ValueError, match="SOLOv2 cannot be exported yet; RetinaNet, FCOS, SSD, and"),
    ):
        exportable(build("solov2_light_r50_fpn"), SIZE)


def test_the_size_of_a_graph_is_that_of_the_evaluation() -> None:
    assert size_of(Resize()) == (800, 1344)
    square = Resize(size=(300, 300))
    assert size_of(square) == size_of(square, [300, 300]) == (300, 300)
    with pytest.raises(ConfigError, match="multiples of 32, got 300 300"):
        size_of(Resize(), [300, 300])
