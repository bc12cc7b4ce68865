"""Matrix products and linear layers by the faster of two libraries.

torch multiplies float32 matrices on a CPU with MKL, which runs its code for AVX2 on processors that Intel did not make:
half of what one with AVX-512 can do. Convolutions are oneDNN's, which goes by what the processor has. A product is a
1×1 convolution of an image of as many pixels as there are rows, so there it is made that way
(`python -m benchmarks.products`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from detectors.cpu.switch import ours

#: With fewer rows, arranging the operands for oneDNN costs what it saves; so it does with columns that are much longer.
FEWEST_ROWS = 384
LONGEST_SUM = 16  #: times the number of rows


def _split_by_library() -> bool:
    """Whether torch's products use half of this processor, so that some are made by oneDNN."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkl.is_available():
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


#: A constant, so that a compiled graph need not ask.
SPLIT_BY_LIBRARY = _split_by_library()


def product(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Matrix a [N, K] times b [K, M]: [N, M], in ``out`` or in whichever memory layout comes out."""
    if not worthwhile(a, b):
        return torch.mm(a, b, out=out)
    found = by_convolution(a, b)
    return found if out is None else out.copy_(found)


def by_convolution(a: Tensor, b: Tensor) -> Tensor:
    """As ``product``, by oneDNN."""
    pixels = a.reshape(1, len(a), 1, -1).permute(0, 3, 1, 2)
    found = F.conv2d(pixels, b.T.reshape(b.shape[1], -1, 1, 1))
    return found.permute(0, 2, 3, 1).reshape(len(a), -1)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear``, it and its gradients by ``product``.

    Args:
        x: [N, K].
        weight: [M, K].
        bias: [M], or None.

    Returns:
        [N, M].
    """
    if not worthwhile(x, weight):
        return F.linear(x, weight, bias)
    found: Tensor = _Linear.apply(x, weight, bias)
    return found


def worthwhile(a: Tensor, b: Tensor) -> bool:
    """Whether ``by_convolution`` is faster for a [N, K] and another matrix."""
    if not (SPLIT_BY_LIBRARY and ours(a, b) and a.dtype == b.dtype == torch.float32):
        return False
    enough = len(a) >= max(FEWEST_ROWS, a.shape[1] // LONGEST_SUM)
    if torch.compiler.is_compiling():  # the number of regions is none that a graph may depend on
        from torch.fx.experimental.symbolic_shapes import guard_or_false

        return guard_or_false(enough)
    return enough


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        found = product(x, weight.T)
        return found if bias is None else found + bias  # no view, which a ReLU could not change in place

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        found = product(gradient, weight) if of_x else None
        found_of_weight = None
        if of_weight:  # the larger side as rows
            wide = weight.shape[1] >= len(weight)
            found_of_weight = product(x.T, gradient).T if wide else product(gradient.T, x)
        return found, found_of_weight, gradient.sum(0) if of_bias else None
