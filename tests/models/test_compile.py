"""Into how many graphs `torch.compile` cuts a training step and an inference, and that these compute the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from detectors.htc import HTC
from tests.helpers.models import SIZE, given, small, target, with_padding

pytestmark = pytest.mark.nightly

#: Most places where a graph of an inference ends and Python goes on; a training step has none.
BREAKS = {
    "retinanet_r50_fpn": 0,
    "fcos_r50_fpn": 0,
    "ssd300_vgg16": 0,
    "solov2_light_r50_fpn": 0,
    "faster_rcnn_r50_fpn": 0,
    "fast_rcnn_r50_fpn": 0,
    "mask_rcnn_r50_fpn": 2,
    "ms_rcnn_r50_fpn": 2,
    "mask_rcnn_r50_c4": 2,
    "cascade_rcnn_r50_fpn": 0,
    "cascade_mask_rcnn_r50_fpn": 2,
    "htc_r50_fpn": 2,
    "htc_without_semantic_r50_fpn": 2,
}


def graphs_of(call: Callable[..., Any], *values: Any, **more: Any) -> tuple[Any, int]:
    """What a compiled call returns, and how many graphs it has. The counters of torch leave out some breaks."""
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    torch.manual_seed(0)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True):
        return torch.compile(call, backend=backend)(*values, **more), len(graphs)


@pytest.mark.parametrize("name", BREAKS)
def test_models_compile_with_few_breaks(name: str) -> None:
    model = small(name)
    side = 300 if name.startswith("ssd") else SIZE
    images, sizes = torch.randn(2, 3, side, side), torch.tensor([[side, side]] * 2)
    objects = [target((3, 4, 40, 44), (30, 20, 60, 62)), target((5, 30, 50, 60))]
    targets = [with_padding(one, (side, side)) for one in objects]
    if isinstance(model, HTC):
        targets = [one._replace(semantic=torch.zeros(side, side, dtype=torch.int64)) for one in targets]
    proposals = given(model, 2)
    torch.manual_seed(0)
    expected = model.losses(images, sizes, targets, **proposals)
    losses, training = graphs_of(model.losses, images, sizes, targets, **proposals)
    assert {key: one.item() for key, one in losses.items()} == pytest.approx(
        {key: one.item() for key, one in expected.items()}, rel=1e-4
    )
    model.eval()
    with torch.no_grad():
        raw, inference = graphs_of(model.network, images, sizes, **proposals)
        everything = [(side, side)] * 2
        for ours, eager in zip(
            model.postprocess(raw, everything, everything),
            model.postprocess(model.network(images, sizes, **proposals), everything, everything),
            strict=True,
        ):
            torch.testing.assert_close(ours.scores, eager.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.boxes, eager.boxes, rtol=1e-4, atol=1e-3)
    assert training == 1
    assert inference - 1 <= BREAKS[name]
