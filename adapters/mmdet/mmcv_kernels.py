"""mmcv's compiled operators, or torchvision's kernels in their place.

mmcv-lite has all of mmcv's modules but not the one they load, `mmcv._ext`. The module made here serves the
operators for which torchvision has the same one; it differs from mmcv's in nothing but whose kernel runs (compared
with compiled mmcv 2.1.0: nms and roi_align exactly equal, deformable convolutions to 3e-8). CARAFE and masked
convolutions, which mmcv has for CUDA only, are written in torch. The signatures are those by which mmcv 2.1.0 calls:
outputs are given, and filled in place. Any other operator raises NotImplementedError that names it, when it is called
and not before, since mmcv.ops names all of them on import.
"""

# ruff: noqa: ARG001  (the signatures are mmcv's; its work space is not needed)

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

COMPILED = "mmcv compiled"
STAND_INS = "torchvision stand-ins"


def install(wanted: str = "auto") -> str:
    """Choose the kernels before anything imports mmcv.ops; returns whose run, COMPILED or STAND_INS.

    ``wanted``: ``compiled``, ``stand-ins``, or ``auto``, which takes the compiled ones where they are installed.
    """
    if wanted not in ("auto", "compiled", "stand-ins"):
        raise ValueError(f"kernels: '{wanted}' is none of auto, compiled, stand-ins")
    if isinstance(sys.modules.get("mmcv._ext"), StandIns) and wanted != "compiled":
        return STAND_INS  # chosen before in this process
    compiled = importlib.util.find_spec("mmcv._ext") is not None
    if wanted == "compiled" and not compiled:
        raise RuntimeError(
            "kernels: compiled, but this environment has none; bench env create mmdet --group compiled-ops"
        )
    if compiled and wanted != "stand-ins":
        return COMPILED
    if "mmcv.ops" in sys.modules:
        raise RuntimeError("mmcv.ops has been imported already, with its own kernels")
    module = StandIns("mmcv._ext")
    module.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", loader=None)  # mmengine looks for it
    sys.modules["mmcv._ext"] = module
    return STAND_INS


class StandIns(ModuleType):
    """What `mmcv.utils.ext_loader` takes for the compiled extension."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return OPERATORS.get(name) or _missing(name)


def _missing(name: str) -> Any:
    def operator(*_: Any, **__: Any) -> Any:
        raise NotImplementedError(
            f"mmcv's operator {name} has no stand-in in torchvision; "
            "compile mmcv's own: bench env create mmdet --group compiled-ops"
        )

    return operator


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    if offset != 0:
        raise NotImplementedError("mmcv's operator nms with offset 1 has no stand-in in torchvision")
    return torch.ops.torchvision.nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    _require_average(pool_mode)
    output.copy_(
        torch.ops.torchvision.roi_align(
            input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    *,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    _require_average(pool_mode)
    size = (aligned_height, aligned_width, *grad_input.shape)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output, rois, spatial_scale, *size, sampling_ratio, aligned
        )
    )


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "mmcv's operator roi_align with pool_mode max has no stand-in in torchvision"
        )


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    bias = bias if with_bias else input.new_zeros(len(weight))
    output.copy_(
        torch.ops.torchvision.deform_conv2d(input, weight, offset, mask, bias, *_modulated(geometry), True)
    )


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    *,
    with_bias: bool,
    **geometry: int,
) -> None:
    zeros = bias if with_bias else input.new_zeros(len(weight))
    gradients = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, mask, zeros, *_modulated(geometry), True
    )
    places = (grad_input, grad_weight, grad_offset, grad_mask, grad_bias)
    for place, gradient in zip(places if with_bias else places[:-1], gradients):
        place.copy_(gradient)


def _modulated(geometry: dict[str, int]) -> list[int]:
    """torchvision's order of the geometry that mmcv passes by name."""
    names = (
        "stride_h",
        "stride_w",
        "pad_h",
        "pad_w",
        "dilation_h",
        "dilation_w",
        "group",
        "deformable_group",
    )
    return [geometry[name] for name in names]


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    **geometry: int,
) -> None:
    unused, bias = _no_mask_and_bias(input, weight)
    output.copy_(
        torch.ops.torchvision.deform_conv2d(input, weight, offset, unused, bias, *_plain(geometry), False)
    )


#: torchvision computes all gradients at once, mmcv asks for those of the weight by a second call with the same
#: grad_output: the first call leaves them here for it, or else a backward pass would cost twice.
_weight_gradient: list[tuple[Tensor, Tensor]] = []


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    **geometry: int,
) -> None:
    gradients = _deform_conv_gradients(input, weight, offset, grad_output, geometry)
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])
    _weight_gradient[:] = [(grad_output, gradients[1])]


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    *,
    scale: float,
    **geometry: int,
) -> None:
    known = [gradient for of_output, gradient in _weight_gradient if of_output is grad_output]
    _weight_gradient.clear()
    if not known:  # the weight itself has no part in its gradient
        known = [_deform_conv_gradients(input, grad_weight, offset, grad_output, geometry)[1]]
    grad_weight.add_(known[0], alpha=scale)


def _deform_conv_gradients(
    input: Tensor, weight: Tensor, offset: Tensor, grad_output: Tensor, geometry: dict[str, int]
) -> tuple[Tensor, ...]:
    unused, bias = _no_mask_and_bias(input, weight)
    return torch.ops.torchvision._deform_conv2d_backward(
        grad_output, input, weight, offset, unused, bias, *_plain(geometry), False
    )


def _no_mask_and_bias(input: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return input.new_zeros(len(input), 1), input.new_zeros(len(weight))


def _plain(geometry: dict[str, int]) -> list[int]:
    names = ("dH", "dW", "padH", "padW", "dilationH", "dilationW", "group", "deformable_group")
    return [geometry[name] for name in names]


def masked_im2col_forward(
    features: Tensor,
    rows: Tensor,
    columns: Tensor,
    output: Tensor,
    *,
    kernel_h: int,
    kernel_w: int,
    pad_h: int,
    pad_w: int,
) -> None:
    """The neighbourhoods [C * kernel_h * kernel_w, N] of N places in features [1, C, H, W]."""
    width = features.shape[3] + 2 * pad_w - kernel_w + 1
    neighbourhoods = F.unfold(features, (kernel_h, kernel_w), padding=(pad_h, pad_w))[0]
    output.copy_(neighbourhoods[:, rows * width + columns])


def masked_col2im_forward(
    values: Tensor, rows: Tensor, columns: Tensor, output: Tensor, *, height: int, width: int, channels: int
) -> None:
    output[0][:, rows, columns] = values


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    **geometry: int,
) -> None:
    rfeatures.copy_(features)  # all that the backward call is given of them
    output.copy_(_carafe(features, masks, **geometry))


def carafe_backward(
    grad_output: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rgrad_output: Tensor,
    rgrad_input_hs: Tensor,
    rgrad_input: Tensor,
    rgrad_masks: Tensor,
    grad_input: Tensor,
    grad_masks: Tensor,
    **geometry: int,
) -> None:
    with torch.enable_grad():
        inputs = rfeatures.detach().requires_grad_(), masks.detach().requires_grad_()
        gradients = torch.autograd.grad(_carafe(*inputs, **geometry), inputs, grad_output)
    for place, gradient in zip((grad_input, grad_masks), gradients):
        place.copy_(gradient)


def _carafe(
    features: Tensor, masks: Tensor, *, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """CARAFE (Wang et al. 2019, equation 3): each output pixel is a weighted sum of its source's neighbourhood.

    features [N, C, H, W]; masks [N, G * k * k, s * H, s * W], the weights of each group; returns [N, C, s * H, s * W].
    """
    n, c, h, w = features.shape
    neighbours = F.unfold(features, kernel_size, padding=kernel_size // 2)
    neighbours = neighbours.view(n, group_size, c // group_size, kernel_size**2, h, w)
    weights = masks.view(n, group_size, kernel_size**2, h, scale_factor, w, scale_factor)
    sums = torch.einsum("ngckhw,ngkhswt->ngchswt", neighbours, weights)
    return sums.reshape(n, c, h * scale_factor, w * scale_factor)


OPERATORS = {
    operator.__name__: operator
    for operator in (
        nms,
        roi_align_forward,
        roi_align_backward,
        modulated_deform_conv_forward,
        modulated_deform_conv_backward,
        deform_conv_forward,
        deform_conv_backward_input,
        deform_conv_backward_parameters,
        masked_im2col_forward,
        masked_col2im_forward,
        carafe_forward,
        carafe_backward,
    )
}
