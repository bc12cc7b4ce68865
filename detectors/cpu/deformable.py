"""Deformable convolution (DCNv2, Zhu et al. 2018, arXiv:1811.11168), also for the CPU.

torchvision's kernel for the CPU runs on one thread, forward and backward, and would take most of a training step. Here
sampling and products are operators of torch that use all threads. Values and gradients are those of
torchvision/csrc/ops/cpu/deform_conv2d_kernel.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional as F

from detectors.cpu.products import product
from detectors.cpu.switch import ours
from detectors.precision import full

#: What the columns of one part of the output may take. More makes no product faster, and memory of this size is reused
#: from part to part where a larger piece would be fetched from the system, page by page, each time.
COLUMN_BYTES = 16 * 2**20
#: What the profiler calls the forward and the backward pass.
OPERATOR, GRADIENT_OPERATOR = "detectors::deform_conv2d", "_SampledProductBackward"


def deform_conv2d(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    *,
    mask: Tensor,
) -> Tensor:
    """Convolution at displaced points, as torchvision.ops.deform_conv2d with one group.

    Points are read bilinearly; pixels outside of the image are 0.

    Args:
        x: images [B, C, H, W].
        offset: [B, 2 * kh * kw, H', W'], (dy, dx) of each point in pixels.
        weight: [C', C, kh, kw].
        bias: [C'], or None.
        stride: along height and width.
        padding: as ``stride``.
        dilation: as ``stride``.
        mask: [B, kh * kw, H', W'], what each point is multiplied with.

    Returns:
        [B, C', H', W'].
    """
    if x.device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        # In float32, as torchvision's does under autocast on CUDA.
        with torch.autocast("cpu", enabled=False):
            x32, offset, weight, mask = (full(one) for one in (x, offset, weight, mask))
            bias = None if bias is None else full(bias)
            out = deform_conv2d(x32, offset, weight, bias, stride, padding, dilation, mask=mask)
            return out.to(x.dtype)
    tensors = [x, offset, weight, mask, *([] if bias is None else [bias])]
    kinds = {one.dtype for one in tensors}
    if not ours(*tensors) or kinds not in ({torch.float32}, {torch.float64}):
        # Imported here, where it is needed: see operators.py. Its gradient is registered by its package.
        from torchvision.ops import deform_conv2d as theirs

        return theirs(x, offset, weight, bias, stride, padding, dilation, mask=mask)
    return _deform_conv2d_cpu(x, offset, weight, bias, stride, padding, dilation, mask)


def _as_it_is(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """``torch.compiler.disable``, from the first call on.

    The compiler takes 160 MiB, which only models with deformable convolutions have to pay.
    """
    disabled: list[Callable[..., Tensor]] = []

    @wraps(function)
    def call(*inputs: Any) -> Tensor:
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*inputs)

    return call


@_as_it_is  # a loop whose length depends on the size, around operators that are fast as they are
@torch.profiler.record_function(OPERATOR)
def _deform_conv2d_cpu(
    x: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor,
) -> Tensor:
    batch, channels, height, width = x.shape
    kernel = (weight.shape[2], weight.shape[3])
    size = (offset.shape[2], offset.shape[3])
    grid = _undisplaced(kernel, size, stride, padding, dilation).to(x.dtype)
    point = grid + offset.permute(0, 2, 3, 1).reshape(batch, -1, grid.shape[1], 2)
    factor = mask.permute(0, 2, 3, 1).reshape(batch, -1, grid.shape[1])
    row, share = _corners(point, factor, height, width)
    table = x.permute(0, 2, 3, 1).reshape(-1, channels)
    matrix = weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])
    out = _SampledProduct.apply(table, row.flatten(0, 1), share.flatten(0, 1), matrix, bias)
    return out.view(batch, *size, -1).permute(0, 3, 1, 2)


def _undisplaced(
    kernel: tuple[int, int],
    size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """(y, x) of the points that a plain convolution reads: int64 [H' * W', kh * kw, 2]."""
    y, x = (
        torch.arange(size[axis])[:, None] * stride[axis]
        - padding[axis]
        + torch.arange(kernel[axis]) * dilation[axis]
        for axis in (0, 1)
    )
    shape = (size[0], size[1], kernel[0], kernel[1])
    points = torch.stack([y[:, None, :, None].expand(shape), x[None, :, None, :].expand(shape)], dim=-1)
    return points.view(size[0] * size[1], -1, 2)


def _corners(point: Tensor, factor: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The four pixels that a point is read from, and the share of each in it.

    point: [B, P, K, 2] (y, x); factor: [B, P, K]. Returns rows of the table of all pixels [B * height * width, …],
    int64 [B, P, K, 4], and shares [B, P, K, 4], through which gradients reach point and factor.
    """
    limit = torch.tensor([height, width])
    # Beyond this nothing is read, and no whole number could hold infinity.
    point = point.clamp(min=-2).minimum((limit + 1).to(point.dtype))
    low = point.detach().floor()
    upper = point - low
    corner = low.to(torch.int64).unsqueeze(-1) + torch.arange(2)  # [B, P, K, 2 (y, x), 2 (low, high)]
    inside = (corner >= 0) & (corner < limit[:, None])
    share = torch.stack([1 - upper, upper], dim=-1) * inside
    corner = corner.clamp(min=0).minimum(limit[:, None] - 1)
    (row, column), (share_y, share_x) = corner.unbind(3), share.unbind(3)
    image = torch.arange(len(point)).view(-1, 1, 1, 1)
    row = (image * height + row) * width
    shares = (share_y * factor.unsqueeze(-1)).unsqueeze(-1) * share_x.unsqueeze(-2)
    return (row.unsqueeze(-1) + column.unsqueeze(-2)).flatten(3), shares.flatten(3)


def _columns(table: Tensor, row: Tensor, share: Tensor) -> Tensor:
    """Weighted sums of four rows of a table [N, C]; row and share: [P, K, 4]. [P, K * C].

    Which is what an embedding bag computes: in parallel, with contiguous reads.
    """
    sampled = F.embedding_bag(row.flatten(0, 1), table, mode="sum", per_sample_weights=share.flatten(0, 1))
    return sampled.view(len(row), -1)


def _parts(positions: int, column_bytes: int) -> Iterator[slice]:
    """All positions in parts whose columns, of column_bytes for each position, fit into COLUMN_BYTES."""
    step = max(1, COLUMN_BYTES // column_bytes)
    return (slice(start, start + step) for start in range(0, positions, step))


class _SampledProduct(torch.autograd.Function):
    """Columns of a table [N, C] at row, share [P, K, 4], times a matrix [K * C, C'], plus bias: [P, C'].

    The columns, K times as large as the input, are never there as a whole and not kept for the backward pass: reading
    them again takes a tenth of the time of the products that need them.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, table: Tensor, row: Tensor, share: Tensor, matrix: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(table, row, share, matrix)
        out = table.new_empty((len(row), matrix.shape[1]))
        for part in _parts(len(row), len(matrix) * table.element_size()):
            product(_columns(table, row[part], share[part]), matrix, out=out[part])
        return out if bias is None else out.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        table, row, share, matrix = ctx.saved_tensors
        of_table_wanted, _, _, of_matrix_wanted, of_bias_wanted = ctx.needs_input_grad
        of_table, of_share = torch.zeros_like(table), torch.empty_like(share)
        of_matrix = torch.zeros_like(matrix)
        for part in _parts(len(row), len(matrix) * table.element_size()):
            with torch.enable_grad():
                leaves = (
                    share[part].detach().requires_grad_(),
                    table.detach().requires_grad_(of_table_wanted),
                )
                columns = _columns(leaves[1], row[part], leaves[0])
            wanted = leaves if of_table_wanted else leaves[:1]
            if of_matrix_wanted:
                of_matrix += product(columns.detach().T, gradient[part])
            found = torch.autograd.grad(columns, wanted, product(gradient[part], matrix.T))
            of_share[part] = found[0]
            if of_table_wanted:
                of_table += found[1]
        return (
            of_table if of_table_wanted else None,
            None,
            of_share,
            of_matrix if of_matrix_wanted else None,
            gradient.sum(dim=0) if of_bias_wanted else None,
        )
