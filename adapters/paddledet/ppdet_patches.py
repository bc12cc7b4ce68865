"""What paddledet 2.6.0, written for Paddle 2.4, needs to run on Paddle 3: a scalar used to have shape [1].

Importing this module applies it; it comes before the first import of paddle and of ppdet. Each function mends one
difference; README.md tells how each one shows.
No arithmetic changes: what these calls did under Paddle 2.4 they do again, and what worked already goes through as is.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


def prefer_avx2_on_amd() -> None:
    """Before paddle is loaded: on AMD its MKL picks kernels 2-3 times slower than the AVX2 ones it has. On Intel the
    setting would keep it from AVX-512, so it cannot stand in adapter.yaml. A recipe's own value wins."""
    try:
        is_amd = "AuthenticAMD" in Path("/proc/cpuinfo").read_text()
    except OSError:
        is_amd = False
    if is_amd:
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")


prefer_avx2_on_amd()

import paddle  # noqa: E402


def _with_axis(tensor: Any) -> Any:
    """A scalar as the tensor of shape [1] that it was under Paddle 2.4."""
    return tensor.reshape([1]) if isinstance(tensor, paddle.Tensor) and tensor.ndim == 0 else tensor


def concat_takes_scalars() -> None:
    """``paddle.concat([paddle.shape(x)[0], ...])``, as in ppdet/modeling/proposal_generator/rpn_head.py:234."""
    concat = paddle.concat

    def patched(x: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(x, (list, tuple)):
            x = [_with_axis(tensor) for tensor in x]
        return concat(x, *args, **kwargs)

    paddle.concat = patched


def order_compares_mixed_types() -> None:
    """``int64 tensor < float32 tensor`` and the like, as in ppdet/modeling/losses/ssd_loss.py:127 and
    ppdet/modeling/heads/solov2_head.py:511. The integers become floats of the other's kind."""
    for name in ("__lt__", "__le__", "__gt__", "__ge__"):
        setattr(paddle.Tensor, name, _promoting(getattr(paddle.Tensor, name)))


def _promoting(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def patched(self: Any, other: Any) -> Any:
        if isinstance(other, paddle.Tensor) and self.dtype != other.dtype:
            kinds = (kind for kind in (paddle.float32, paddle.float64) if kind in (self.dtype, other.dtype))
            kind = next(kinds, None)
            if kind == self.dtype:
                other = other.astype(kind)
            elif kind is not None:
                self = self.astype(kind)
        return compare(self, other)

    return patched


class _PaddleWithAxes:
    """``paddle`` whose ``cast`` never gives a scalar, for one module of ppdet to see under that name."""

    def __getattr__(self, name: str) -> Any:
        return getattr(paddle, name)

    @staticmethod
    def cast(x: Any, dtype: Any) -> Any:
        return _with_axis(paddle.cast(x, dtype))


def cast_keeps_an_axis(module: ModuleType) -> None:
    """``paddle.cast(im_shape[0], "int32")[0]``, as in ppdet/modeling/heads/solov2_head.py:461."""
    module.paddle = _PaddleWithAxes()  # type: ignore[attr-defined]


def float32_becomes_float64() -> None:
    """For ``precision: float64``: ppdet writes the type out, as in ppdet/modeling/heads/solov2_head.py:134."""
    paddle.set_default_dtype("float64")
    makers = ("arange", "cast", "full", "linspace", "ones", "to_tensor", "zeros")
    owners = ((paddle, makers), (paddle.Tensor, ("astype", "cast")), (paddle.nn.functional, ("one_hot",)))
    for owner, name in ((owner, name) for owner, names in owners for name in names):
        setattr(owner, name, _widened(getattr(owner, name)))


def _widened(function: Callable[..., Any]) -> Callable[..., Any]:
    cast = paddle.cast

    def wide(value: Any) -> Any:
        same_type = isinstance(value, (str, type(paddle.float32))) and value in ("float32", paddle.float32)
        return "float64" if same_type else value

    def patched(*args: Any, **kwargs: Any) -> Any:
        found = function(*map(wide, args), **{name: wide(value) for name, value in kwargs.items()})
        return cast(found, "float64") if found.dtype == paddle.float32 else found

    return patched


class _Absent(ModuleType):
    """A package that only a part of ppdet uses which no arm runs: names of it can be imported."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


LANES = {
    "imgaug": ("augmenters", "augmentables", "augmentables.lines", "augmentables.segmaps"),
    "shapely": ("geometry", "ops"),
}


def lanes_need_no_packages() -> None:
    """ppdet 2.7 imports these for data sets of lanes; imgaug needs a numpy of 2020."""
    for package, parts in LANES.items():
        if importlib.util.find_spec(package) is None:
            for name in (package, *(f"{package}.{part}" for part in parts)):
                sys.modules[name] = _Absent(name)


concat_takes_scalars()
order_compares_mixed_types()
lanes_need_no_packages()

from ppdet.modeling.heads import solov2_head  # noqa: E402

cast_keeps_an_axis(solov2_head)
