"""Convolution and normalisation, with the frozen normalisation of the R-CNN settings folded into the convolution."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from detectors.cpu import conv2d, linear


class Kept:
    """Tensors made of others, kept until one of these is another tensor or has been written to.

    A write through ``.data`` is not seen: torch does not count it.
    """

    def __init__(self) -> None:
        self.sources: tuple[Tensor, ...] = ()
        self.versions: list[int] = []
        self.made: tuple[Tensor, ...] = ()

    def get(self, sources: tuple[Tensor, ...], make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What ``make`` makes of the sources, without gradient."""
        if (
            torch.compiler.is_compiling()
            or torch._C._are_functorch_transforms_active()
            or any(one.is_inference() or (one.requires_grad and torch.is_grad_enabled()) for one in sources)
        ):
            return make()
        same = len(self.sources) == len(sources) and all(map(operator.is_, self.sources, sources))
        if same and self.versions == [one._version for one in sources]:
            return self.made
        with torch.inference_mode(False), torch.no_grad():  # what inference mode makes no training could use
            made = make()
        if all(type(one) is type(sources[0]) for one in made):  # not a fake one, made of real sources
            self.sources, self.made = sources, made
            self.versions = [one._version for one in sources]
        return made

    def clear(self) -> None:
        """Give the memory back."""
        self.sources, self.versions, self.made = (), [], ()

    def __deepcopy__(self, _: dict[int, object]) -> Kept:
        return Kept()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return Kept, ()


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose statistics and affine parameters are constants: y = x * scale + shift.

    The names of the four buffers are those of ``nn.BatchNorm2d``. ``eps`` as torchvision.ops.FrozenBatchNorm2d.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._kept = Kept()

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale [C] and shift [C], computed anew when a buffer has changed."""
        values = (self.weight, self.bias, self.running_mean, self.running_var)
        return self._kept.get(values, self._scale_and_shift)

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1))

    @torch.no_grad()
    def set_statistics(self, x: Tensor) -> None:
        """Take mean and (unbiased) variance per channel from x [B, C, H, W]."""
        variance, mean = torch.var_mean(x, dim=(0, 2, 3))
        self.running_mean.copy_(mean)
        self.running_var.copy_(variance)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` by ``conv2d``."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        settings = (self.stride, self.padding, self.dilation, self.groups)
        return conv2d(x, self.weight, self.bias, *settings)


class Linear(nn.Linear):
    """``nn.Linear`` by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, K] to [N, M]."""
        return linear(x, self.weight, self.bias)


class ConvNorm(nn.Module):
    """Convolution without bias, then normalisation.

    With frozen normalisation the scale goes into the weight and the shift becomes the bias, at run time, so that the
    parameters stay what a checkpoint holds. This saves two passes over the activation forward and one backward, and
    the gradient of the weight is the same. ``norm`` makes the normalisation of so many channels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm: Callable[[int], nn.Module],
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel_size - 1) // 2
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False
        )
        self.norm = norm(out_channels)
        self.calibrating = False
        self._scaled = Kept()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, C', H', W']."""
        conv, norm = self.conv, self.norm
        if not self.foldable():
            x = conv(x)
            if self.calibrating and isinstance(norm, FrozenBatchNorm2d):
                norm.set_statistics(x)
            return norm(x)
        scale, shift = norm.scale_and_shift()
        settings = (conv.stride, conv.padding, conv.dilation, conv.groups)
        if x.is_cuda and not (torch.is_grad_enabled() and conv.weight.requires_grad):
            return conv2d(x, self.scaled_weight(scale), shift, *settings)
        return conv2d(x, conv.weight, shift, *settings, scale=scale)

    def foldable(self) -> bool:
        """Whether both layers may be computed as one, though neither is called then."""
        return (
            isinstance(self.norm, FrozenBatchNorm2d)
            and isinstance(self.conv, Conv2d)
            and not self.calibrating
            and not hooked(self.conv, self.norm)
        )

    def scaled_weight(self, scale: Tensor) -> Tensor:
        """The weight times scale [C'], kept while neither changes: on a GPU each product is a launch of a kernel."""
        weight = self.conv.weight
        return self._scaled.get((weight, scale), lambda: (weight * scale.view(-1, 1, 1, 1),))[0]

    def train(self, mode: bool = True) -> ConvNorm:
        """As ``nn.Module.train``; the weights that inference kept are given back."""
        self._scaled.clear()
        return super().train(mode)


def hooked(*modules: nn.Module) -> bool:
    """Whether a hook waits for one of the modules to be called, so that its layer has to be called as a whole."""
    return any(
        module._forward_pre_hooks
        or module._forward_hooks
        or module._backward_pre_hooks
        or module._backward_hooks
        for module in modules
    )


@contextmanager
def calibrating(module: nn.Module) -> Iterator[None]:
    """While open, a forward pass sets the statistics of normalisation from what it sees.

    Those of frozen normalisation become those of what reaches it, and running statistics those of the batch.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, ConvNorm)]
    norms = [
        (norm, norm.momentum, norm.training) for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)
    ]
    try:
        for layer in layers:
            layer.calibrating = True
        for norm, _, _ in norms:
            norm.momentum, norm.training = 1.0, True
        yield
    finally:
        for layer in layers:
            layer.calibrating = False
        for norm, momentum, training in norms:
            norm.momentum, norm.training = momentum, training
