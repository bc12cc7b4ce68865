"""What the equal-work audit wants to know of a torch model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401  (registers the deformable convolution)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Put back what a forward pass can change: buffers, training flags, random numbers."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    flags = [(module, module.training) for module in model.modules()]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for module, training in flags:
            module.training = training


def _deform_conv_flops(
    _input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """As a convolution of the same shape; sampling is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


class _FirstConvolution(TorchDispatchMode):
    """Mean and standard deviation of what enters the first convolution, whatever normalised it before."""

    def __init__(self) -> None:
        super().__init__()
        self.mean: float | None = None
        self.std: float | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.mean is None and func is torch.ops.aten.convolution.default:
            values = args[0].float()
            self.mean, self.std = float(values.mean()), float(values.std())
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class ForwardFacts:
    """Of one forward pass in inference mode. ``flops``: of convolutions (deformable ones too) and matrix products; a
    multiply-add counts as two, biases and everything else as none."""

    flops: int
    input_mean: float | None
    input_std: float | None


def forward_facts(model: nn.Module, run: Callable[[], Any]) -> ForwardFacts:
    """Watch ``run()``, which uses the model, below the modules: what is folded, merged or functional is seen too."""
    deformable = {torch.ops.torchvision.deform_conv2d: _deform_conv_flops}
    model.eval()
    with FlopCounterMode(display=False, custom_mapping=deformable) as counter, _FirstConvolution() as first:
        run()
    return ForwardFacts(counter.get_total_flops(), first.mean, first.std)


def by_module(sizes: Iterable[tuple[str, int]], depth: int = 2) -> dict[str, int]:
    """Sums by the first ``depth`` parts of the parameter's name."""
    sums: dict[str, int] = {}
    for name, size in sizes:
        key = ".".join(name.split(".")[:-1][:depth]) or name
        sums[key] = sums.get(key, 0) + size
    return sums


def library(packages: Sequence[str]) -> dict[str, Any]:
    """Versions and settings that decide which kernels run."""
    versions: dict[str, Any] = {"torch": torch.__version__}
    versions.update({package: importlib.metadata.version(package) for package in packages})
    return {
        **versions,
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "mkldnn": torch.backends.mkldnn.is_available(),
        "mkl": torch.backends.mkl.is_available(),
        "openmp": torch.backends.openmp.is_available(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "config": torch.__config__.show(),
    }
