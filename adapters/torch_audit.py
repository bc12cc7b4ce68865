"""What the equal-work audit sees of a torch codebase: operators below autograd, and tensors of model and optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.torch_facts import flop_counter
from bench.worker.api import Observer
from bench.worker.sink import Sink

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution, aten._convolution)
BATCH_NORMS = {  # operator → place of the argument `training`
    aten.native_batch_norm: 5,
    aten._native_batch_norm_legit: 5,
    aten.cudnn_batch_norm: 5,
    aten.miopen_batch_norm: 5,
}
RANDOM = (aten.native_dropout, aten.bernoulli, aten.bernoulli_)
OTHER_NORMS = {
    aten._native_batch_norm_legit_no_training: "fixed",
    aten.native_group_norm: "group",
    aten.native_layer_norm: "group",
}


def array(value: Tensor) -> np.ndarray:
    """In rows, so that nothing has to copy it again."""
    return value.detach().to("cpu", torch.float32).contiguous().numpy()


class Watch(TorchDispatchMode):
    """Tells a sink of the operators of one phase."""

    def __init__(self, observer: TorchObserver, sink: Sink, phase: str) -> None:
        super().__init__()
        self.observer, self.sink, self.phase = observer, sink, phase

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formulas = self.observer.formulas
        if packet not in formulas and func is not torch.ops.prim.device.default:
            with self:  # what is made of other operators is seen as those
                found = func.decompose(*args, **kwargs)
            if found is not NotImplemented:
                return found
        out = func(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], list | tuple) else args[:1]
        self.sink.operator(self.phase, sum(one.numel() for one in first if isinstance(one, Tensor)))
        if packet in formulas:
            self._product(packet, args, out, formulas[packet](*args, **kwargs, out_val=out))
        elif packet is self.observer.suppression:
            self.sink.suppressed.append(len(args[0]))
        elif packet in (aten._to_copy, aten.clone, aten.copy_):
            self._copy(packet, args, out)
        elif packet in RANDOM:
            self.sink.random_values += (out[0] if isinstance(out, tuple) else out).numel()
        elif packet in BATCH_NORMS:
            training = args[BATCH_NORMS[packet]]
            self.sink.normalisation("batch" if training else "fixed", out[0].numel())
        elif packet in OTHER_NORMS:
            self.sink.normalisation(OTHER_NORMS[packet], out[0].numel())
        return out

    def _copy(self, packet: Any, args: Any, out: Tensor) -> None:
        source = args[1] if packet is aten.copy_ else args[0]
        if out.is_floating_point() and out.itemsize < min(4, source.itemsize):
            self.sink.rounding(str(out.dtype).removeprefix("torch."), out.numel())
        if packet is not aten.copy_:
            self.observer.also_known_as(source, out)

    def _product(self, packet: Any, args: Any, out: Any, flops: int) -> None:
        tensors = [value for value in args if isinstance(value, Tensor)]
        kinds = sorted({str(value.dtype).removeprefix("torch.") for value in tensors})
        self.sink.setting(self.observer.settings())
        self.sink.operation("backward" if self.phase == "backward" else "forward", " × ".join(kinds), flops)
        if packet in CONVOLUTIONS and self.phase != "backward":
            self.observer.first_input(self.sink, *args[:2])
        name, place = self.observer.layer_of(args)
        if name is None or not flops:
            return
        if self.phase != "backward":
            self.sink.layer(name, array(out))
            return
        gradient = args[0]
        if gradient.ndim >= 2 and place > 0:
            self.observer.gradient(self.sink, name, gradient)


class TorchObserver(Observer):
    """Of one adapter (`adapters.torch_common.TorchAdapter`) that is prepared."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.formulas: Mapping[Any, Any] = flop_counter(adapter.flop_formulas).flop_registry
        self.suppression = torch.ops.torchvision.nms  # registered by what the counter imports
        self.randomness: list[str] = []
        self._first: torch.Size | None = None
        self._seen: tuple[Any, ...] = ()
        self._copies: list[Tensor] = []
        self._names: dict[int, str] = {}

    @contextlib.contextmanager
    def reproducible(self) -> Iterator[None]:
        model = self.adapter.model
        drops = [m for m in model.modules() if "drop" in type(m).__name__.lower() and m.training]
        if any(getattr(layer, "p", 1) and getattr(layer, "keep", 0) != 1 for layer in drops):
            self.randomness = ["layers that drop values are switched off"]
        for layer in drops:
            layer.eval()
        with contextlib.ExitStack() as stack:
            stack.enter_context(
                torch.compiler.set_stance("force_eager")
            )  # hooks do not see into compiled code
            stack.enter_context(self.adapter.first_candidates())
            yield

    @contextlib.contextmanager
    def watching(self, phase: str, sink: Sink) -> Iterator[None]:
        self._copies, self._names = [], {}
        for name, parameter in self.adapter.model.named_parameters():
            if parameter.ndim >= 2:
                self._names.setdefault(parameter.data_ptr(), name)
        hooks = [
            layer.register_forward_pre_hook(lambda _, inputs: self._count_random(sink, inputs))
            for layer in self.adapter.model.modules()
            if "drop" in type(layer).__name__.lower()
        ]
        try:
            with Watch(self, sink, phase):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count_random(self, sink: Sink, inputs: Any) -> None:
        sink.random_values += sum(value.numel() for value in inputs if isinstance(value, Tensor))

    def also_known_as(self, old: Tensor, new: Tensor) -> None:
        """A parameter in another type or place; kept, so that nothing else gets its address."""
        name = self._names.get(old.data_ptr()) if isinstance(old, Tensor) else None
        if name is not None and old.numel() == new.numel():
            self._copies.append(new)
            self._names[new.data_ptr()] = name

    def layer_of(self, args: Any) -> tuple[str | None, int]:
        """The parameter that is a weight of this operator, and its place among the arguments."""
        for place, value in enumerate(args[:3]):
            if isinstance(value, Tensor) and value.ndim >= 2:
                name = self._names.get(value.data_ptr())
                if name is not None:
                    return name, place
        return None, 0

    def first_input(self, sink: Sink, images: Tensor, weight: Tensor) -> None:
        """Of the first convolution of the step, and of all that are like it: some codebases take image by image."""
        if self._first is None:
            self._first = weight.shape
        if weight.shape == self._first and images.shape[1] == 3:
            sink.first_input(array(images))

    def gradient(self, sink: Sink, name: str, gradient: Tensor) -> None:
        """Once for each call of a layer, whose gradients of input and weight may be two operators."""
        seen = (name, gradient.data_ptr(), gradient.shape)
        if seen != self._seen:
            self._seen = seen
            sink.gradient(name, array(gradient))

    def tensors(self, kind: str) -> dict[str, np.ndarray]:
        model = self.adapter.model
        if kind == "weights":
            return _state(model)
        if kind == "average":
            averaged = self.adapter.averaged_model()
            return {} if averaged is None else _state(averaged)
        found = {}
        scale = self.adapter.scaler.get_scale() if self.adapter.scaler.is_enabled() else 1.0
        for name, parameter in model.named_parameters():
            state = self.adapter.optimizer.state.get(parameter, {})
            value = (
                parameter.grad if kind == "gradients" else state.get("momentum_buffer", state.get("exp_avg"))
            )
            if value is not None:
                found[name] = array(value)
                if kind == "gradients" and scale != 1:
                    found[name] = found[name] / scale
        return found

    def settings(self) -> dict[str, Any]:
        return {
            "threads": torch.get_num_threads(),
            "matrix products": torch.get_float32_matmul_precision(),
            "convolutions": _precision(torch.backends.mkldnn, "conv"),
            "TF32": bool(torch.backends.cudnn.allow_tf32 and torch.cuda.is_available()),
            "oneDNN": torch.backends.mkldnn.enabled,
            "anomaly detection": torch.is_anomaly_enabled(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
            "denormal numbers": bool(torch.tensor(1e-40) * 1),
        }


def _precision(backend: Any, operation: str) -> str:
    """How a backend may compute products of float32 numbers; `highest` is the default of all versions."""
    chosen = (
        getattr(owner, "fp32_precision", "none")
        for owner in (getattr(backend, operation, None), backend, torch.backends)
    )
    return next((one for one in chosen if one != "none"), "ieee").replace("ieee", "highest")


def _state(model: nn.Module) -> dict[str, np.ndarray]:
    state = model.state_dict()
    return {name: array(value) for name, value in state.items() if value.is_floating_point()}


@contextlib.contextmanager
def permutations_in_order() -> Iterator[None]:
    """Inside, `torch.randperm` is 0, 1, 2, …: the samplers of torchvision, mmdetection and detectron2 call it."""
    shuffled = torch.randperm

    def ordered(count: int, *_: Any, generator: Any = None, **settings: Any) -> Tensor:  # noqa: ARG001
        return torch.arange(count, dtype=settings.get("dtype") or torch.int64, device=settings.get("device"))

    torch.randperm = ordered
    try:
        yield
    finally:
        torch.randperm = shuffled
