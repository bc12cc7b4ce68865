"""What the equal-work audit sees of PaddleDetection: Paddle's operators as they are called, and tensors of model and
optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle
import threadpoolctl
from paddle import _C_ops

from bench.worker.api import Observer
from bench.worker.sink import Sink

Tensor = paddle.Tensor


def _convolution(x: Tensor, weight: Tensor, out: Tensor) -> int:  # noqa: ARG001
    return 2 * out.size * int(np.prod(weight.shape[1:]))


def _transposed(x: Tensor, weight: Tensor, out: Tensor) -> int:  # noqa: ARG001
    return 2 * x.size * int(np.prod(weight.shape[1:]))


def _product(x: Tensor, weight: Tensor, out: Tensor) -> int:
    """Of matrices whose last sides are N × K and K × M, either of them possibly turned."""
    pairs = int(np.prod(weight.shape[:-2])) if weight.ndim > 2 else 1
    return 2 * round((x.size * weight.size * out.size / max(1, pairs)) ** 0.5)


#: Operator of `paddle._C_ops` → place of its weight, and its multiplications and additions. A convolution counts as the
#: sum it is defined by, also a deformable one: the rule of ``adapters/torch_facts.py``.
PRODUCTS: dict[str, tuple[int, Callable[..., int]]] = {
    "conv2d": (1, _convolution),
    "depthwise_conv2d": (1, _convolution),
    "conv2d_transpose": (1, _transposed),
    "deformable_conv": (2, _convolution),
    "linear": (1, _product),
    "linear_v2": (1, _product),
    "matmul": (1, _product),
    "bmm": (1, _product),
}
#: Operator → places of the arguments by which it takes its own statistics, and which values mean that it does not.
BATCH_NORMS = {"batch_norm": (5, 9), "sync_batch_norm_": (5, 9)}
OTHER_NORMS = ("group_norm", "layer_norm", "instance_norm")


def array(value: Tensor) -> np.ndarray:
    return value.detach().astype("float32").numpy()


@contextlib.contextmanager
def best_proposals_first(head: Any) -> Iterator[None]:
    """Inside, the RPN's proposals are in the order of their scores, as other codebases have them, also where they are
    so few that ppdet leaves them level by level. So the first candidates are the same ones everywhere."""
    if head is None:
        yield
        return
    seen: list[Tensor] = []
    plain, makers = head._gen_proposal, (head.train_proposal, head.test_proposal)

    def listening(make: Any) -> Any:
        def made(*args: Any, **settings: Any) -> Any:
            found = make(*args, **settings)
            seen.append(found[1].flatten())
            return found

        return made

    def generate(scores: list[Tensor], *args: Any) -> Any:
        seen.clear()
        proposals, counts = plain(scores, *args)
        levels = len(scores)
        for image, boxes in enumerate(proposals):
            found = paddle.concat(seen[image * levels : (image + 1) * levels])
            if len(found) == len(boxes):  # else they were sorted when the best ones were taken
                proposals[image] = paddle.gather(boxes, paddle.argsort(found, descending=True))
        return proposals, counts

    head._gen_proposal = generate
    head.train_proposal, head.test_proposal = map(listening, makers)
    try:
        yield
    finally:
        del head._gen_proposal
        head.train_proposal, head.test_proposal = makers


def _rows(values: np.ndarray) -> np.ndarray:
    """What a product of a sequence gives, [B, N, C], as rows [B * N, C]; else as it is."""
    return values.reshape(-1, values.shape[-1]) if values.ndim == 3 else values


class PaddleObserver(Observer):
    """Of one adapter (`adapters/paddledet/adapter.py`) that is prepared."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.randomness: list[str] = []
        self._first: list[int] | None = None
        self._names: dict[str, str] = {}
        self._biases: dict[str, Any] = {}

    def _dropping(self) -> list[Any]:
        return [layer for layer in self.adapter.model.sublayers() if "drop" in type(layer).__name__.lower()]

    @contextlib.contextmanager
    def reproducible(self) -> Iterator[None]:
        def ordered(count: Any, dtype: str = "int64", name: Any = None) -> Tensor:  # noqa: ARG001
            return paddle.arange(int(count), dtype=dtype)

        for layer in self._dropping():
            if layer.training and getattr(layer, "keep_prob", 0) != 1 and getattr(layer, "p", 1):
                self.randomness = ["layers that drop values are switched off"]
            layer.eval()
            layer.train = lambda: None  # the adapter calls `train` of the whole model in every step
        shuffled, paddle.randperm = paddle.randperm, ordered
        try:
            with best_proposals_first(getattr(self.adapter.model, "rpn_head", None)):
                yield
        finally:
            paddle.randperm = shuffled
            for layer in self._dropping():
                del layer.train

    @contextlib.contextmanager
    def watching(self, phase: str, sink: Sink) -> Iterator[None]:
        if phase == "data":
            yield
            return
        parameters = dict(self.adapter.model.named_parameters())
        self._names = {p.name: name for name, p in parameters.items() if p.ndim >= 2}
        self._biases = {name: parameters.get(name.replace("weight", "bias")) for name in self._names.values()}
        for layer in self._dropping():
            layer.training = False
        drawing = [
            one for one in self._dropping() if getattr(one, "p", 1) and getattr(one, "keep_prob", 0) != 1
        ]
        hooks = [layer.register_forward_pre_hook(_counting(sink)) for layer in drawing]
        names = (*PRODUCTS, *BATCH_NORMS, *OTHER_NORMS, "cast")
        own = {name: getattr(_C_ops, name) for name in names if hasattr(_C_ops, name)}
        for name, operator in own.items():
            setattr(_C_ops, name, self._watched(name, operator, sink))
        try:
            yield
        finally:
            for name, operator in own.items():
                setattr(_C_ops, name, operator)
            for hook in hooks:
                hook.remove()

    def _watched(self, name: str, operator: Callable[..., Any], sink: Sink) -> Callable[..., Any]:
        def watched(*args: Any, **settings: Any) -> Any:
            out = operator(*args, **settings)
            if name in PRODUCTS:
                place, count = PRODUCTS[name]
                given = (*args, *settings.values())  # some callers name all of them, in order
                self._product(sink, given[0], given[place], out, count)
            elif name in BATCH_NORMS:
                fixed = any(args[place] for place in BATCH_NORMS[name])
                sink.normalisation("fixed" if fixed else "batch", out[0].size)
            elif name == "cast":
                kind = str(out.dtype).rpartition(".")[2]
                if kind in ("bfloat16", "float16"):
                    sink.rounding(kind, out.size)
            else:
                result = out if isinstance(out, Tensor) else out[0]
                sink.normalisation("group", result.size)
            return out

        return watched

    def _product(self, sink: Sink, x: Tensor, weight: Tensor, out: Tensor, count: Callable[..., int]) -> None:
        flops = count(x, weight, out)
        kinds = sorted({str(value.dtype).rpartition(".")[2] for value in (x, weight, out)})
        sink.operation("forward", " × ".join(kinds), flops)
        if x.ndim == 4 and x.shape[1] == 3:
            self._first = self._first or weight.shape
            if weight.shape == self._first:
                sink.first_input(array(x))
        name = self._names.get(weight.name)
        if name is not None and flops:
            bias = self._biases[name]  # Paddle adds that of a convolution afterwards
            added = 0.0 if bias is None or out.ndim != 4 else array(bias)[:, None, None]
            sink.layer(name, _rows(array(out) + added))
        gradients = (not x.stop_gradient) + (not weight.stop_gradient)
        if gradients and not out.stop_gradient:

            def backward(gradient: Tensor) -> None:
                types = sorted({*kinds, str(gradient.dtype).rpartition(".")[2]})
                sink.operation("backward", " × ".join(types), flops * gradients)
                if name is not None:
                    sink.gradient(name, _rows(array(gradient)))

            out.register_hook(backward)

    def tensors(self, kind: str) -> dict[str, np.ndarray]:
        adapter = self.adapter
        parameters = dict(adapter.model.named_parameters())
        if kind == "weights":  # some layers are registered twice; gradients have one of the two names
            known, state = {p.name for p in parameters.values()}, adapter.model.state_dict()
            return {
                name: array(value)
                for name, value in state.items()
                if name in parameters or value.name not in known
            }
        if kind == "average":
            averaged = {} if adapter.ema is None else adapter.ema.state_dict
            return {name: array(value) for name, value in averaged.items()}
        if kind == "gradients":
            return {name: array(p.grad) for name, p in parameters.items() if p.grad is not None}
        momentum = adapter.optimizer.state_dict()
        values = {name: momentum.get(f"{p.name}_velocity_0") for name, p in parameters.items()}
        return {name: array(value) for name, value in values.items() if value is not None}

    def settings(self) -> dict[str, Any]:
        pools = [
            pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "openmp"
        ]
        threads = max(pools) if pools else None
        return {"threads": threads, "matrix products": "highest", "convolutions": "highest", "TF32": False}


def _counting(sink: Sink) -> Callable[..., None]:
    def count(_: Any, inputs: Any) -> None:
        sink.random_values += sum(int(value.size) for value in inputs if isinstance(value, Tensor))

    return count
