"""Arms on a pretended GPU: from loading a batch to the average of weights, nothing is left on the host."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from adapters.torch_common import TorchAdapter
from bench.recipe import codebases
from bench.worker import probe
from tests.helpers import pretend_cuda as pretended
from tests.helpers.torch_arms import TORCHVISION, load_adapter, make_batch, make_job

NATIVE = codebases.load_codebase(codebases.BUILTIN / "native")
CODEBASES = {"native": NATIVE, "torchvision": TORCHVISION}
MORE = [
    ("native", "faster_rcnn_r50_fpn", "train", "float32"),
    ("native", "mask_rcnn_r50_fpn", "train", "bfloat16"),
    ("native", "fcos_r50_fpn", "train", "bfloat16"),
    ("native", "solov2_light_r50_vd_fpn_dcn_512", "train", "float32"),
    ("native", "mask_rcnn_r50_fpn", "infer", "bfloat16"),
    ("torchvision", "faster_rcnn_r50_fpn", "train", "bfloat16"),
    ("torchvision", "retinanet_r50_fpn", "train", "float32"),
    ("torchvision", "mask_rcnn_r50_fpn", "train", "float32"),
]
CASES = [
    ("native", "retinanet_r50_fpn", "train", "bfloat16"),
    *(pytest.param(*case, marks=pytest.mark.nightly) for case in MORE),
]


@contextmanager
def gpu() -> Iterator[pretended.PretendCuda]:
    """What asks for a device or its driver is answered as if there was one."""
    plain_to = nn.Module.to

    def to(module: nn.Module, *given: Any, memory_format: Any = None, **more: Any) -> nn.Module:
        if given != (pretended.CUDA,):
            return plain_to(module, *given, memory_format=memory_format, **more)
        return pretended.to_pretended(plain_to(module, memory_format=memory_format))

    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> torch.Tensor:
        if isinstance(data, torch.Tensor):
            return data.to(device=device or data.device, dtype=dtype or data.dtype)
        return pretended.tensor(data, device=device, dtype=dtype)

    def backward(adapter: TorchAdapter, losses: Any) -> None:
        pretended.backward(adapter.scaler.scale(sum(losses.values())))

    with ExitStack() as stack:
        for name, value in {
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.is_bf16_supported": lambda *_: True,
            "torch.cuda.set_device": lambda _: None,
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.as_tensor": as_tensor,
            "torch.nn.Module.to": to,
            "adapters.torch_common.TorchAdapter.backward": backward,
        }.items():
            stack.enter_context(patch(name, value))
        yield stack.enter_context(pretended.pretend_cuda())


@pytest.mark.parametrize(("codebase", "model", "task", "precision"), CASES)
def test_arms_compute_on_one_device(codebase: str, model: str, task: str, precision: str) -> None:
    settings = {"task": task, "device": "cuda", "precision": precision, "ema": task == "train"}
    job = make_job(model, CODEBASES[codebase], options={"tf32": False}, **settings)
    with gpu() as device, patch("torch.inference_mode", lambda *_: torch.no_grad()):
        made, batch = load_adapter(CODEBASES[codebase]), make_batch(96, 128)
        adapter = made(job)
        with patch.dict(made.build_model.__globals__, load_batches=lambda *_: [batch]):
            adapter.prepare()
        data = adapter.convert(batch)
        value, waits = None, {}
        for name, call in probe.phases_of(adapter, iter([data])):
            device.waits.clear()
            value = call(value)
            waits[name] = device.waits.total()
        if task == "infer":
            assert len(adapter.detections(*value)) == 2
            return
        assert all(map(math.isfinite, adapter.loss_values(value).values()))
        assert not sum(waits[name] for name in ("data", "optimizer", "ema"))
        if codebase == "native":
            assert not waits["backward"]
            assert waits["forward"] == {"faster_rcnn_r50_fpn": 1, "mask_rcnn_r50_fpn": 2}.get(model, 0)
