"""Tensors that are on a CUDA device as far as torch can tell, with their values on the CPU.

What depends on the device's name runs as it would there: CUDA's autocast with its own list of operators, the choice of
kernels, the moves between host and device. Unlike ``FakeTensorMode`` it has values, so that models run whose shapes
depend on what they predict.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

CUDA = torch.device("cuda", 0)
HALF = (torch.float16, torch.bfloat16)
#: No launch of a kernel: views, and what only asks for properties.
FREE = {
    "aten::detach",
    "aten::alias",
    "aten::lift_fresh",
    "aten::_reshape_alias",
    "aten::empty",
    "aten::empty_strided",
}
SLOW = {"aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm"}
#: The host has to know what these found before it can go on.
WAITING = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "torchvision::nms",
}


class Pretended(Tensor):
    """A tensor that says it is on CUDA; ``value`` is on the CPU."""

    value: Tensor

    @staticmethod
    def __new__(cls, value: Tensor) -> Pretended:
        made = Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=CUDA,
        )
        made.value = value.detach()
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return PretendCuda.current.run(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Pretended({self.value})"

    def tolist(self) -> Any:
        return self.cpu().tolist()


class PretendCuda(TorchDispatchMode):
    """While entered, tensors can be made on and moved to "cuda". Counts ``launches`` and ``waits`` by operator."""

    current: PretendCuda

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> PretendCuda:
        PretendCuda.current = self
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given: list[Tensor] = []

        def plain(one: Any) -> Any:
            if isinstance(one, Pretended):
                given.append(one)
                return one.value
            return torch.device("cpu") if isinstance(one, torch.device) else one

        asked = kwargs.get("device")
        device = None if asked is None else torch.device(asked).type
        args, kwargs = tree_map(plain, (args, kwargs))
        found = computed(func, args, kwargs)
        if not given and device != "cuda":
            return found
        to_host = bool(given) and device == "cpu"
        self.count(func, args, kwargs, to_host=to_host)
        if to_host:
            return found
        in_place = {id(one.value): one for one in given}  # what was written to keeps its identity

        def pretended(one: Any) -> Any:
            if not isinstance(one, Tensor) or isinstance(one, Pretended):
                return one
            known = in_place.get(id(one))
            return Pretended(one) if known is None else known

        return tree_map(pretended, found)

    def count(self, func: Any, args: Any, kwargs: dict[str, Any], *, to_host: bool) -> None:
        name = func.name().partition(".")[0]
        if not func.is_view and name not in FREE:
            self.launches[name] += 1
        if to_host:
            self.waits["copy to the host"] += 1
        elif name in WAITING:
            self.waits[name] += 1
        elif name in ("aten::index", "aten::index_put", "aten::index_put_"):
            masks = [one for one in args[1] if one is not None and one.dtype in (torch.bool, torch.uint8)]
            self.waits["index by mask"] += len(masks)
        elif name == "aten::repeat_interleave" and kwargs.get("output_size") is None:
            self.waits[name] += 1


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """On the CPU; in float32 what has a kernel for half precision on a GPU only, or a slow one on a CPU."""
    if func.name().partition(".")[0] not in SLOW:
        try:
            return func(*args, **kwargs)
        except RuntimeError as error:
            if "not implemented for" not in str(error):
                raise
    kinds = set()

    def raised(one: Any) -> Any:
        if isinstance(one, Tensor) and one.dtype in HALF:
            kinds.add(one.dtype)
            return one.float()
        return one

    found = func(*tree_map(raised, args), **tree_map(raised, kwargs))
    kind = next(iter(kinds), torch.float32)

    def lowered(one: Any) -> Any:
        return one.to(kind) if isinstance(one, Tensor) and one.dtype == torch.float32 else one

    return tree_map(lowered, found)


@contextmanager
def pretend_cuda() -> Iterator[PretendCuda]:
    torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode: without a device its guard would ask the driver
    with (
        patch("torch.cuda._lazy_init", lambda: None),
        patch("torch.tensor", tensor),
        PretendCuda() as mode,
    ):
        yield mode


def tensor(data: Any, *, device: Any = None, make: Any = torch.tensor, **settings: Any) -> Tensor:
    """``torch.tensor``, which calls no operator; on a device it waits for the copy."""
    made = make(data, **settings)
    if device is None or torch.device(device).type == "cpu":
        return made
    PretendCuda.current.waits["torch.tensor"] += 1
    return Pretended(made)


def backward(loss: Tensor) -> None:
    """``loss.backward()``, for torch's engine asks a driver for the streams of a device."""
    gradients = {loss.grad_fn: {0: torch.ones_like(loss)}}
    with torch.no_grad():
        for node in in_order(loss.grad_fn):
            given = gradients.pop(node, {})
            if hasattr(node, "variable"):  # a leaf
                node.variable.grad = given.get(0)
                continue
            call = node if callable(node) else node.apply  # in C++, or a Function of ours
            found = call(*(given.get(place) for place in range(len(node._input_metadata))))
            found = found if isinstance(found, tuple) else (found,)
            for (target, place), gradient in zip(node.next_functions, found, strict=callable(node)):
                if target is None or gradient is None:
                    continue
                wanted = gradients.setdefault(target, {})
                metadata = target._input_metadata[place]
                gradient = gradient.to(metadata.dtype).sum_to_size(metadata.shape)
                wanted[place] = gradient if place not in wanted else wanted[place] + gradient


def in_order(last: Any) -> list[Any]:
    """The nodes of a graph, each before those that it hands gradients to."""
    users: Counter[Any] = Counter()
    waiting, seen = [last], {last}
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is not None:
                users[node] += 1
                if node not in seen:
                    seen.add(node)
                    waiting.append(node)
    order, ready = [], [last]
    while ready:
        order.append(ready.pop())
        for node, _ in order[-1].next_functions:
            if node is not None:
                users[node] -= 1
                if not users[node]:
                    ready.append(node)
    return order


@contextmanager
def cuda_autocast(dtype: torch.dtype) -> Iterator[None]:
    """CUDA's autocast, which torch refuses to switch on where there is no such device."""
    with (
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda: True),
        torch.autocast("cuda", dtype),
    ):
        yield


def to_pretended(model: nn.Module) -> nn.Module:
    """The model with all its parameters and buffers on the pretended device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(Pretended(parameter.detach()), requires_grad=parameter.requires_grad)
                module._parameters[name] = moved
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Pretended(buffer)
    return model
