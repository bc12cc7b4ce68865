"""3×3 convolutions on a CPU with a quarter of the multiplications: Winograd's minimal filtering F(4×4, 3×3).

Lavin and Gray, Fast Algorithms for Convolutional Neural Networks (CVPR 2016), section 4.3. Of every tile d of 6×6
inputs, overlapping by two, and every kernel g come 4×4 outputs

    A' [(G g G') * (B' d B)] A

where * multiplies 36 pairs of elements; summed over the input channels that makes 36 matrix products, of tiles by
channels with channels by channels. Libraries for GPUs choose this by themselves; oneDNN does not on CPUs.

The gradient of the input is a convolution too, with the kernels turned. That of the weight is the adjoint in g,

    G' [sum over tiles of (B' d B) * (A y A')] G,   y: the gradient of a tile's 4×4 outputs.

The loops are C, in `winograd.c`, which the C compiler of the machine builds in a second when first asked for; without a
compiler all is left to torch. Rounding: 1e-5 of the largest output, where a direct sum has 2e-6; so `detectors.layers`
takes it for gradients and for inference, not for the forward pass of a training.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import mmap
import os
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("detectors")

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
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
    """Whether this is a convolution that is faster so. ``settings``: stride, padding, dilation as pairs, and groups;
    ``what``: "forward", or the gradient of the "input" or "weight"."""
    stride, padding, dilation, groups = settings
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and weight.shape[2:] == (3, 3)
        and tuple(stride) == tuple(padding) == tuple(dilation) == (1, 1)
        and groups == 1
        and x.is_contiguous(memory_format=torch.channels_last)
        and _promises_to_be_faster(x.shape, len(weight), what)
        and available()
    )


def _promises_to_be_faster(shape: Sequence[int], outputs: int, what: str) -> bool:
    """By multiplications of a direct convolution, of the products here, whose sides are padded to vectors and groups of
    vectors, and of transforms in the time of so many."""
    count, channels, height, width = shape
    tiles = _tiles(shape)
    rows, columns = (outputs, channels) if what in ("input", "weight") else (channels, outputs)
    pairs = _up(rows, 16) * _up(columns, 64)
    of_kernel = OF_KERNEL[what][pairs > SMALL_KERNELS]
    ours = (36 * tiles + of_kernel) * pairs + OF_TILE * tiles * (channels + outputs)
    return ours < 9 * count * height * width * channels * outputs


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


# -- the library in C ------------------------------------------------------------------------------------------------


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


def available() -> bool:
    """Whether the library is there, for which it is built if it has to be."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and built() is not None


# What ``torch.compiler.assume_constant_result`` does, but for importing the compiler (160 MiB) into every process.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _library() -> ctypes.CDLL:
    found = built()
    assert found is not None
    return found


@cache
def built() -> ctypes.CDLL | None:
    """Build for this processor, or take what was built before. Without a compiler: None, and a warning."""
    try:
        found = ctypes.CDLL(str(_build()))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:  # no compiler, no home, no room
        said = getattr(error, "stderr", None) or error
        log.warning("convolutions are slower than they could be: %s was not built: %s", SOURCE.name, said)
        return None
    size, pointer, integer = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_int
    found.detectors_convolve_scratch.argtypes = [*[size] * 3, integer]
    found.detectors_convolve_scratch.restype = size
    found.detectors_convolve.argtypes = [*[pointer] * 4, *[size] * 9, integer, size, pointer, integer]
    found.detectors_convolve.restype = None
    found.detectors_weight_gradient_scratch.argtypes = [size] * 3
    found.detectors_weight_gradient_scratch.restype = size
    found.detectors_weight_gradient.argtypes = [*[pointer] * 3, *[size] * 7, pointer, integer]
    found.detectors_weight_gradient.restype = None
    return found


def _build() -> Path:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    processor = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
    key = hashlib.sha256(repr((SOURCE.read_text(), compiler, FLAGS, processor)).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detectors"
    place = home / f"winograd-{key}.so"
    if not place.exists():
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:  # so that nobody loads half of it
            part = Path(folder) / "part.so"
            command = [*compiler, *FLAGS, "-o", str(part), str(SOURCE)]
            subprocess.run(command, check=True, capture_output=True, text=True)
            part.replace(place)
    return place
