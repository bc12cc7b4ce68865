"""What the equal-work audit wants to know of a torch model."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from adapters.common import by_module
from bench.worker.api import Description

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode

#: Operator → its FLOPs from the shapes of inputs and output, as torch.utils.flop_counter asks for it.
Formulas = Mapping[Any, Callable[..., int]]


def _deform_conv_flops(
    _input: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any
) -> int:
    """As a convolution of the same shape; sampling is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _deform_conv_backward_flops(
    _gradient: Sequence[int],
    image: Sequence[int],
    weight: Sequence[int],
    offset: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """The gradients of columns and of weight: each as many as the forward pass."""
    return 4 * image[0] * math.prod(offset[2:]) * math.prod(weight)


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Both products of attention over [B, heads, N, width]."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


def _attention_backward_flops(_gradient: Sequence[int], *shapes: Any, **__: Any) -> int:
    """The gradients of both factors of both products; what a kernel computes again is not counted."""
    return 2 * _attention_flops(*shapes[:3])


def flop_counter(formulas: Formulas | None = None) -> FlopCounterMode:
    """Torch's counter, told of operators that it does not know: ``formulas``, deformable convolution, attention.

    It counts convolutions (deformable ones too) and matrix products; a multiply-add counts as two, biases and
    everything else as none. A convolution counts as the sum it is defined by, also where a library computes it with
    fewer multiplications (cuDNN's, or `detectors.cpu`).

    Imported where they are used: they bring triton and the compiler along, 160 MiB, which are not the codebase's.
    """
    import torchvision  # noqa: F401  (registers the deformable convolution)
    from torch.utils.flop_counter import FlopCounterMode

    unknown = {  # torch counts the kernels of attention on CUDA only
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
        torch.ops.torchvision.deform_conv2d: _deform_conv_flops,
        torch.ops.torchvision._deform_conv2d_backward: _deform_conv_backward_flops,
    }
    return FlopCounterMode(display=False, custom_mapping={**unknown, **(formulas or {})})


def operator_seconds(
    step: Callable[[], None], operators: Mapping[str, Sequence[str]], device: torch.device
) -> dict[str, float]:
    """Seconds, in one ``step``, of each of ``operators`` (name in reports → names in the profiler), with all that they
    call."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
    events = profile.events()
    seconds = {}
    for title, names in operators.items():
        spent_us = 0.0
        for event in events:
            parent = event.cpu_parent
            while parent is not None and parent.name not in names:
                parent = parent.cpu_parent
            if event.name in names and parent is None:
                spent_us += event.device_time_total if device.type == "cuda" else event.cpu_time_total
        seconds[title] = spent_us / 1e6
    return seconds


@torch.no_grad()
def peak_flops_per_s(
    device: torch.device, dtype: torch.dtype, synchronize: Callable[[], None], repetitions: int = 4
) -> dict[str, float]:
    """The best of some repetitions of a square matrix product, and of a 3×3 convolution of 256 channels in the faster
    of both memory layouts: what this machine gives to a network that does nothing else."""
    a, b = (torch.rand(1536, 1536, device=device, dtype=dtype) for _ in range(2))
    image = torch.rand(2, 256, 48, 48, device=device, dtype=dtype)
    weight = torch.rand(256, 256, 3, 3, device=device, dtype=dtype)

    def best_s(run: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(
            repetitions + 1
        ):  # the first one, which may compile kernels, is as long as the others or longer
            synchronize()
            begin_ns = time.perf_counter_ns()
            run()
            synchronize()
            seconds.append((time.perf_counter_ns() - begin_ns) / 1e9)
        return min(seconds)

    layouts = (torch.contiguous_format, torch.channels_last)
    convolution_s = min(
        best_s(partial(F.conv2d, image.to(memory_format=layout), weight.to(memory_format=layout), padding=1))
        for layout in layouts
    )
    return {
        "matrix product": 2 * a.numel() * b.shape[1] / best_s(lambda: a @ b),
        "convolution": 2 * image.numel() * weight[0].numel() / convolution_s,
    }


def library(packages: Sequence[str]) -> dict[str, Any]:
    """Versions, of packages that are there, and settings that decide which kernels run."""
    versions: dict[str, Any] = {"torch": torch.__version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
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


def describe(adapter: Any, data: Any) -> Description:
    images = adapter.images(data)
    parameters = [(name, p.numel(), p.requires_grad) for name, p in adapter.model.named_parameters()]
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return Description(
        parameters=sum(size for _, size, _ in parameters),
        trainable_parameters=sum(size for _, size, trainable in parameters if trainable),
        parameters_by_module=by_module((name, size) for name, size, _ in parameters),
        trainable_by_module=by_module((name, size) for name, size, trainable in parameters if trainable),
        input_shape=list(images.shape),
        input_dtype=str(images.dtype).removeprefix("torch."),
        input_layout="NHWC" if channels_last else "NCHW",
        objects=adapter.objects(data),
        precision=adapter.workload["precision"],
        optimizer=adapter.describe_optimizer() if adapter.job.training else None,
        postprocess=adapter.postprocess_settings(),
        threads=torch.get_num_threads(),
        library=library(adapter.packages),
        extra={
            # Affine values that a frozen normalisation holds as buffers; another codebase counts them as
            # parameters without gradient.
            "frozen_affine_values": sum(
                b.numel() for n, b in adapter.model.named_buffers() if n.endswith((".weight", ".bias"))
            ),
            "ema": adapter.ema is not None,
            "compiled": bool(adapter.job.options.get("compile", False)),
        },
    )


def describe_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """``state_values``: numbers kept per step for SGD's momentum, which exist from the first step on."""
    groups = optimizer.param_groups
    return {
        "name": type(optimizer).__name__,
        "lr": groups[0]["lr"],
        "momentum": groups[0].get("momentum", 0),
        "weight_decay": groups[0]["weight_decay"],
        "groups": len(groups),
        "tensors": sum(len(group["params"]) for group in groups),
        "state_values": sum(p.numel() for group in groups if group.get("momentum") for p in group["params"]),
    }
