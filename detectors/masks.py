"""Masks of regions put back into the image."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.precision import full


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Probabilities [N, M, M] within boxes [N, 4] to bool masks [N, height, width]: > threshold.

    As torchvision's ``paste_masks_in_image`` with padding 1, but for the full-size float image per object that it
    makes: only the part within the box is resized and compared.
    """
    height, width = size
    padded, whole = F.pad(masks, (1, 1, 1, 1)), _padded_boxes(boxes, masks.shape[-1])
    if masks.is_cuda:
        axes = [_resize_weights(whole[:, axis::2], size[1 - axis], padded.shape[-1]) for axis in (1, 0)]
        return _pasted_at_once(padded, *axes, partial(torch.gt, other=threshold))
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    for index, (x1, y1, x2, y2) in enumerate(whole.tolist()):
        resized = F.interpolate(
            padded[index, None, None],
            size=(max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)),
            mode="bilinear",
            align_corners=False,
        )[0, 0]
        left, right = max(x1, 0), min(x2 + 1, width)
        top, bottom = max(y1, 0), min(y2 + 1, height)
        if left < right and top < bottom:
            pasted[index, top:bottom, left:right] = (
                resized[top - y1 : bottom - y1, left - x1 : right - x1] > threshold
            )
    return pasted


def paste_masks_on_grid(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
) -> Tensor:
    """Probabilities [N, M, M] within boxes [N, 4] to bool masks [N, height, width]: ≥ threshold.

    As ``_do_paste_mask`` in mmdet/models/roi_heads/mask_heads/fcn_mask_head.py: each pixel's centre is interpolated
    linearly in the mask, outside which there are zeros. This is done along one axis after the other, as products with
    the axes' weights, and within the box only.
    """
    height, width = size
    weights_y = _grid_weights(boxes[:, 1::2], height, masks.shape[1])
    weights_x = _grid_weights(boxes[:, ::2], width, masks.shape[2])
    if masks.is_cuda:
        return _pasted_at_once(masks, weights_y, weights_x, partial(torch.ge, other=threshold))
    pasted = torch.zeros((len(masks), height, width), dtype=torch.bool, device=masks.device)
    first = boxes[:, :2].floor() - 1
    last = boxes[:, 2:].ceil() + 1
    spans = torch.cat([first, last], dim=1).clamp(min=0).to(torch.int64).tolist()
    for index, (left, top, right, bottom) in enumerate(spans):
        rows, columns = weights_y[index, top:bottom], weights_x[index, left:right]
        pasted[index, top:bottom, left:right] = rows @ masks[index] @ columns.T >= threshold
    return pasted


#: Pixels of masks that are computed at once on a GPU: 512 MiB of float32.
MOST_PIXELS = 2**27


def _pasted_at_once(
    masks: Tensor, weights_y: Tensor, weights_x: Tensor, compare: Callable[[Tensor], Tensor]
) -> Tensor:
    """Whole images as products with the axes' weights, [N, height, M] and [N, width, M]: the host learns no box."""
    count = max(1, MOST_PIXELS // max(weights_y.shape[1] * weights_x.shape[1], 1))
    parts = zip(*(one.split(count) for one in (masks, weights_y, weights_x)), strict=True)
    with torch.autocast(masks.device.type, enabled=False):
        found = [compare(y @ full(mask) @ x.transpose(1, 2)) for mask, y, x in parts]
    return torch.cat(found)


def _resize_weights(ends: Tensor, length: int, mask_size: int) -> Tensor:
    """As ``_grid_weights``, but of a mask that is resized to whole pixels, first to last: int64 ends [N, 2]."""
    first, last = ends.unsqueeze(-1).unbind(1)
    extent = (last - first + 1).clamp(min=1)
    pixel = torch.arange(length, device=ends.device)
    place = ((pixel - first + 0.5) * (mask_size / extent) - 0.5).clamp(0, mask_size - 1)
    inside = (pixel >= first) & (pixel < first + extent)
    weights = 1 - (place.unsqueeze(-1) - torch.arange(mask_size, device=ends.device)).abs()
    return weights.clamp_(min=0) * inside.unsqueeze(-1)


def _grid_weights(ends: Tensor, length: int, mask_size: int) -> Tensor:
    """Of each mask pixel in each image pixel along one axis, [N, length, mask_size]. ends: [N, 2] of boxes."""
    begin, end = ends.unsqueeze(-1).unbind(1)
    centre = torch.arange(length, device=ends.device, dtype=ends.dtype) + 0.5
    # A box without extent divides by zero; its pixels are read far outside the mask, where there are zeros.
    place = (centre - begin) / (end - begin) * mask_size - 0.5
    place = place.nan_to_num(nan=-2.0, posinf=mask_size + 1.0, neginf=-2.0).clamp(-2, mask_size + 1)
    pixel = torch.arange(mask_size, device=ends.device, dtype=ends.dtype)
    return (1 - (place.unsqueeze(-1) - pixel).abs()).clamp_(min=0)


def _padded_boxes(boxes: Tensor, mask_size: int) -> Tensor:
    """Boxes grown by the padding of one mask pixel on each side, as whole pixels: int64 [N, 4]."""
    x1, y1, x2, y2 = boxes.unbind(1)
    scale = float(mask_size + 2) / mask_size
    half_w, half_h = (x2 - x1) * 0.5 * scale, (y2 - y1) * 0.5 * scale
    x, y = (x2 + x1) * 0.5, (y2 + y1) * 0.5
    return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=1).to(torch.int64)
