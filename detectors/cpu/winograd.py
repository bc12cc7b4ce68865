"""3×3 convolutions on a CPU with a quarter of the multiplications: Winograd's minimal filtering F(4×4, 3×3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), section 4.3. Of every tile d of 6×6
inputs, overlapping by two, and every kernel g come 4×4 outputs

    A' [(G g G') * (B' d B)] A

where * multiplies 36 pairs of elements; summed over the input channels that makes 36 matrix products, of tiles by
channels with channels by channels. Libraries for GPUs choose this by themselves; oneDNN does not on CPUs.

The gradient of the input is a convolution too, with the kernels turned. That of the weight is the adjoint in g,

    G' [sum over tiles of (B' d B) * (A y A')] G,   y: the gradient of a tile's 4×4 outputs.

The loops are C, in `winograd.c`, which `library` builds. Rounding: 1e-5 of the largest output, where a direct sum has
2e-6; so `convolution` takes it for gradients and for inference, not for the forward pass of a training. An output whose
3×3 inputs are all 0 is the bias exactly, as of a direct sum: what follows may divide by its length.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from detectors.cpu import library

#: Most tiles of a thread between kernels and outputs, where with 256 channels they take 2.7 MB.
TILES_AT_ONCE = 36
#: Most tiles, of all threads together, between images and the gradient of a weight.
TILES_OF_GRADIENT = 100
#: Most bytes of kernels, or of sums for their gradient; with more, some output channels come after others.
KERNELS_AT_ONCE = 16 * 2**20
#: What transforms take, in the time of as many multiplications of matrix products: of a tile and channel; of a pair of
#: channels' kernel, by what is wanted and by whether all kernels of the convolution are small (16 MB) or large. From
#: ``python -m benchmarks.winograd``.
OF_TILE = 1200
OF_KERNEL = {"forward": (1800, 3800), "input": (800, 3000), "weight": (200, 900)}
SMALL_KERNELS = 16 * 2**20 // (36 * 4)


def worthwhile(x: Tensor, weight: Tensor, settings: Sequence[Any], what: str = "forward") -> bool:
    """Whether this is a convolution that is faster so.

    ``settings``: stride, padding, dilation as pairs, and groups; ``what``: "forward", or the gradient of the "input"
    or "weight".
    """
    stride, padding, dilation, groups = settings
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and tuple(stride) == tuple(padding) == tuple(dilation) == (1, 1)
        and groups == 1
        and x.is_contiguous(memory_format=torch.channels_last)
        and _promises_to_be_faster(x.shape, len(weight), what)
        and library.available()
    )


def _promises_to_be_faster(shape: Sequence[int], outputs: int, what: str) -> bool:
    """Whether the filtering takes less than a direct convolution.

    Compared are multiplications: of the direct convolution; and of the products here, whose sides are padded to vectors
    and groups of vectors, with transforms in the time of so many.
    """
    count, channels, height, width = shape
    tiles = _tiles(shape)
    rows, columns = (outputs, channels) if what in ("input", "weight") else (channels, outputs)
    pairs = _up(rows, 16) * _up(columns, 64)
    of_kernel = OF_KERNEL[what][pairs > SMALL_KERNELS]
    ours = (36 * tiles + of_kernel) * pairs + OF_TILE * tiles * (channels + outputs)
    faster = ours < 9 * count * height * width * channels * outputs
    if not torch.compiler.is_compiling():
        return faster
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return guard_or_false(faster)  # a graph does not know how many regions there are


def _tiles(shape: Sequence[int]) -> int:
    """Of 4×4 outputs in images [B, C, H, W]."""
    return shape[0] * (_up(shape[2], 4) // 4) * (_up(shape[3], 4) // 4)


def _up(value: int, to: int) -> int:
    return -(-value // to) * to


# -- three operators -------------------------------------------------------------------------------------------------

_operators = torch.library.Library("detectors", "FRAGMENT")
_operators.define("winograd(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_operators.define("winograd_of_input(Tensor gradient, Tensor weight) -> Tensor")
_operators.define("winograd_of_weight(Tensor x, Tensor gradient) -> Tensor")


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of images [B, C, H, W] with weight [C', C, 3, 3], padded by one: [B, C', H, W] in channels-last memory."""
    found: Tensor = torch.ops.detectors.winograd(x, weight, bias)
    return found


def gradient_of_input(gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient [B, C', H, W] of the outputs to that of the images [B, C, H, W]."""
    found: Tensor = torch.ops.detectors.winograd_of_input(gradient, weight)
    return found


def gradient_of_weight(x: Tensor, gradient: Tensor) -> Tensor:
    """Images [B, C, H, W] and gradient [B, C', H, W] of the outputs to that of the weight [C', C, 3, 3]."""
    found: Tensor = torch.ops.detectors.winograd_of_weight(x, gradient)
    return found


@torch.library.impl(_operators, "winograd", "CPU")
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return _convolved(x, weight, bias, turned=False)


@torch.library.impl(_operators, "winograd_of_input", "CPU")
def _(gradient: Tensor, weight: Tensor) -> Tensor:
    return _convolved(gradient, weight.transpose(0, 1), None, turned=True)


@torch.library.impl(_operators, "winograd_of_weight", "CPU")
def _(x: Tensor, gradient: Tensor) -> Tensor:
    _check_gradient(x, gradient)
    if x.numel() == 0 or gradient.numel() == 0:
        return _like_images(x, (gradient.shape[1], x.shape[1], 3, 3)).zero_()
    x, gradient = _channels_last(x), _channels_last(gradient)
    (count, channels, height, width), outputs = x.shape, gradient.shape[1]
    some, at_once = _part(outputs, channels), min(TILES_OF_GRADIENT, _tiles(x.shape))
    found = _like_images(x, (outputs, channels, 3, 3))
    scratch = _scratch(_library().detectors_weight_gradient_scratch(channels, some, at_once))
    for one, of_weight in zip(gradient.split(some, dim=1), found.split(some), strict=True):
        _library().detectors_weight_gradient(
            *map(_pointer, (x, one, of_weight)),
            *(count, height, width, channels, len(of_weight), outputs, at_once),
            _pointer(scratch),
            torch.get_num_threads(),
        )
    return found


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, *, turned: bool) -> Tensor:
    """``turned``: kernels by 180 degrees."""
    _check(x, weight, bias)
    if x.numel() == 0 or not len(weight):
        return _like_images(x, (len(x), len(weight), *x.shape[2:])).zero_()
    x = _channels_last(x)
    if weight.stride(2) != 3 * weight.stride(3):
        weight = weight.contiguous()
    (count, channels, height, width), outputs, threads = x.shape, len(weight), torch.get_num_threads()
    some, at_once = _part(outputs, channels), min(TILES_AT_ONCE, -(-_tiles(x.shape) // threads))
    found = _like_images(x, (count, outputs, height, width))
    scratch = _scratch(_library().detectors_convolve_scratch(channels, some, at_once, threads))
    shifts = repeat(None) if bias is None else bias.contiguous().split(some)
    for kernels, out, shift in zip(weight.split(some), found.split(some, dim=1), shifts, strict=False):
        _library().detectors_convolve(
            *map(_pointer, (x, kernels, shift, out)),
            *(count, height, width, channels, len(kernels), outputs),
            *(weight.stride(0), weight.stride(1), weight.stride(3)),
            *(turned, at_once),
            _pointer(scratch),
            threads,
        )
    return found


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """What the C code takes for granted: with anything else it would read or write beyond its arrays."""
    _check_images(x)
    torch._check(
        weight.ndim == 4 and weight.shape[2:] == (3, 3),
        lambda: f"expected [C', C, 3, 3], got {list(weight.shape)}",
    )
    torch._check(
        x.shape[1] == weight.shape[1],
        lambda: f"images of {x.shape[1]} channels and a weight for {weight.shape[1]}",
    )
    torch._check(
        bias is None or bias.shape == (len(weight),),
        lambda: f"a bias of {list(bias.shape) if bias is not None else None} for {len(weight)} outputs",
    )
    _check_float32(x, weight, bias)


def _check_gradient(x: Tensor, gradient: Tensor) -> None:
    """As ``_check``, of images and the gradient of what they were convolved to."""
    _check_images(x)
    torch._check(
        gradient.ndim == 4 and (len(gradient), *gradient.shape[2:]) == (len(x), *x.shape[2:]),
        lambda: f"a gradient of {list(gradient.shape)} for images of {list(x.shape)}",
    )
    _check_float32(x, gradient)


def _check_images(x: Tensor) -> None:
    torch._check(x.ndim == 4, lambda: f"expected images [B, C, H, W], got {list(x.shape)}")


def _check_float32(*tensors: Tensor | None) -> None:
    kinds = {one.dtype for one in tensors if one is not None}
    torch._check(kinds == {torch.float32}, lambda: f"expected float32 only, got {kinds}")


def _part(outputs: int, channels: int) -> int:
    """How many output channels of a convolution to handle at once."""
    most = max(1, KERNELS_AT_ONCE // (4 * 36 * _up(channels, 16) * 64))
    parts = -(-_up(outputs, 64) // (64 * most))
    return _up(-(-outputs // parts), 64)


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def _like_images(x: Tensor, shape: Sequence[int]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@torch.library.register_fake("detectors::winograd", lib=_operators)
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: ARG001
    return _like_images(x, (len(x), len(weight), *x.shape[2:]))


@torch.library.register_fake("detectors::winograd_of_input", lib=_operators)
def _(gradient: Tensor, weight: Tensor) -> Tensor:
    return _like_images(gradient, (len(gradient), weight.shape[1], *gradient.shape[2:]))


@torch.library.register_fake("detectors::winograd_of_weight", lib=_operators)
def _(x: Tensor, gradient: Tensor) -> Tensor:
    return _like_images(x, (gradient.shape[1], x.shape[1], 3, 3))


def _flops(images: Any, weight: Any, *_: Any, **__: Any) -> int:
    count, _channels, height, width = images
    return int(2 * 9 * weight[0] * weight[1] * count * height * width)


def _flops_of_weight(images: Any, gradient: Any, *_: Any, **__: Any) -> int:
    count, channels, height, width = images
    return int(2 * 9 * channels * gradient[1] * count * height * width)


#: For ``FlopCounterMode(custom_mapping=FLOPS)`` of torch.utils.flop_counter: those of the convolution that it is, so
#: that work is counted alike whoever does it. Not registered there, which would bring triton (76 MiB) along.
FLOPS = {
    torch.ops.detectors.winograd: _flops,
    torch.ops.detectors.winograd_of_input: _flops,
    torch.ops.detectors.winograd_of_weight: _flops_of_weight,
}


# -- memory that is kept ---------------------------------------------------------------------------------------------


class _Memory(threading.local):
    """Kept from call to call: memory that the system gives anew, page by page, would take as long as the work."""

    scratch = torch.empty(0)


_memory = _Memory()


def _scratch(floats: int) -> Tensor:
    if len(_memory.scratch) < floats:
        # Not from the heap, where it would leave a hole whenever it grows.
        pages = mmap.mmap(-1, 4 * floats, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        _memory.scratch = torch.frombuffer(pages, dtype=torch.float32)
    return _memory.scratch


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _library() -> ctypes.CDLL:
    found = library.built()
    torch._check(found is not None, lambda: "the library in C was not built; the log says why")
    assert found is not None
    return found
