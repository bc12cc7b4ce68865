"""How often a training step makes the host wait for a CUDA device, counted on the CPU by the operations that would."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from detectors.htc import HTC
from detectors.ssd import SSD
from tests.helpers.models import SIZE, small, target
from tests.helpers.pretend_cuda import WAITING

#: Per training step of two images: detectors/README.md explains them.
BOUNDS = {
    "faster_rcnn_r50_fpn": 5,
    "mask_rcnn_r50_fpn": 7,
    "cascade_rcnn_r50_fpn": 10,
    "cascade_mask_rcnn_r50_fpn": 19,
    "htc_without_semantic_r50_fpn": 22,
    "htc_r50_fpn": 28,
    "mask_rcnn_r50_c4": 8,
    "rpn_r50_fpn": 0,
    "retinanet_r50_fpn": 0,
    "fcos_r50_fpn": 0,
    "ssd300_vgg16": 0,
    "solov2_light_r50_fpn": 2,
}


class HostWaits(TorchDispatchMode):
    """Counts, by name, what is called while it is entered."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        for name in ("tolist", "cpu", "numpy"):  # on the CPU these call no operation that could be seen
            monkeypatch.setattr(torch.Tensor, name, self._counted(name))

    def _counted(self, name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.counts[name] += 1
            return original(tensor, *args, **kwargs)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().partition(".")[0]
        if name in WAITING:
            self.counts[name] += 1
        elif name in ("aten::index", "aten::index_put", "aten::index_put_"):
            masks = [
                index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)
            ]
            self.counts["index by mask"] += len(masks)
        elif name == "aten::repeat_interleave" and (kwargs or {}).get("output_size") is None:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def waits_of(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """In one training step of two images."""
    side = model.head.layout.image_size if isinstance(model, SSD) else SIZE
    images, sizes = torch.randn(2, 3, side, side), torch.tensor([[side, side]] * 2)
    targets = [target((5, 5, 40, 50), (20, 10, 60, 40)), target((10, 10, 50, 60))]
    if isinstance(model, HTC):
        targets = [one._replace(semantic=torch.zeros(SIZE, SIZE, dtype=torch.int64)) for one in targets]
    with HostWaits(monkeypatch) as waits:
        sum(model.losses(images, sizes, targets).values()).backward()
    return waits.counts


@pytest.mark.parametrize("name", list(BOUNDS))
def test_a_step_waits_as_often_as_documented(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = waits_of(small(name), monkeypatch)
    assert counts.total() <= BOUNDS[name], dict(counts)


def test_what_would_wait_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.tensor([1.0, 0.0, 2.0])
    with HostWaits(monkeypatch) as waits:
        values.max().item()
        values.nonzero()
        values[values > 0]
        values.tolist()
        bool(values.any())
        values[torch.tensor([0, 1])]
    assert waits.counts == {
        "aten::_local_scalar_dense": 2,
        "aten::nonzero": 1,
        "index by mask": 1,
        "tolist": 1,
    }
