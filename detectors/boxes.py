"""Boxes (x1, y1, x2, y2): overlap, coding of one box relative to another, and matching of boxes to objects."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from detectors.precision import full
from detectors.structures import GroundTruth

#: exp() of a size beyond this would make boxes larger than any image (Detectron's BBOX_XFORM_CLIP).
MAX_LOG_SIZE_RATIO = math.log(1000.0 / 16)


def area(boxes: Tensor) -> Tensor:
    """[..., 4] to [...]."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return (x2 - x1) * (y2 - y1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes a [..., N, 4] with boxes b [..., M, 4], [..., N, M]; 0 where both are empty.

    Coordinates are handled one by one: a [..., N, M, 2] intermediate would be twice the size and vectorise badly.
    """
    ax1, ay1, ax2, ay2 = a.unsqueeze(-2).unbind(-1)
    bx1, by1, bx2, by2 = b.unsqueeze(-3).unbind(-1)
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_(min=0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_(min=0)
    intersection = width.mul_(height)
    union = (area(a).unsqueeze(-1) + area(b).unsqueeze(-2)).sub_(intersection)
    return intersection.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def clip(boxes: Tensor, image_sizes: Tensor) -> Tensor:
    """Boxes [B, N, 4] cut to their image; image_sizes [B, 2] (height, width)."""
    limit = image_sizes.flip(-1).repeat(1, 2).to(boxes.dtype).unsqueeze(1)
    return torch.minimum(boxes.clamp(min=0), limit)


class BoxCoder:
    """Offsets of a box relative to a reference box (R-CNN, Girshick et al. 2014, appendix C), times ``weights``.

    The arithmetic, down to its order, is that of torchvision/models/detection/_utils.py, ``BoxCoder``.
    """

    def __init__(self, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.weights = weights

    def encode(self, boxes: Tensor, reference: Tensor) -> Tensor:
        """[..., 4] and [..., 4] to offsets (dx, dy, dw, dh) [..., 4]."""
        rx1, ry1, rx2, ry2 = reference.unbind(-1)
        bx1, by1, bx2, by2 = boxes.unbind(-1)
        wx, wy, ww, wh = self.weights
        reference_w, reference_h = rx2 - rx1, ry2 - ry1
        box_w, box_h = bx2 - bx1, by2 - by1
        dx = wx * ((bx1 + 0.5 * box_w) - (rx1 + 0.5 * reference_w)) / reference_w
        dy = wy * ((by1 + 0.5 * box_h) - (ry1 + 0.5 * reference_h)) / reference_h
        dw = ww * torch.log(box_w / reference_w)
        dh = wh * torch.log(box_h / reference_h)
        return torch.stack([dx, dy, dw, dh], dim=-1)

    def decode(self, offsets: Tensor, reference: Tensor) -> Tensor:
        """Offsets [..., 4] and reference boxes [..., 4] to boxes [..., 4], in full precision."""
        offsets = full(offsets)
        rx1, ry1, rx2, ry2 = reference.unbind(-1)
        dx, dy, dw, dh = offsets.unbind(-1)
        wx, wy, ww, wh = self.weights
        width, height = rx2 - rx1, ry2 - ry1
        x = dx / wx * width + (rx1 + 0.5 * width)
        y = dy / wy * height + (ry1 + 0.5 * height)
        half_w = 0.5 * (torch.exp((dw / ww).clamp(max=MAX_LOG_SIZE_RATIO)) * width)
        half_h = 0.5 * (torch.exp((dh / wh).clamp(max=MAX_LOG_SIZE_RATIO)) * height)
        return torch.stack([x - half_w, y - half_h, x + half_w, y + half_h], dim=-1)


POSITIVE, NEGATIVE, IGNORED = 1, 0, -1


def match(
    iou: Tensor,
    valid: Tensor,
    *,
    positive: float,
    negative: float,
    low_quality: bool,
    forced_iou: float = 0.0,
    forced_to_object: bool = False,
) -> tuple[Tensor, Tensor]:
    """Assign to every box the object it overlaps most.

    iou: [B, G, N] of objects with boxes. valid: bool [B, G], False for padding.
    Returns the object's index [B, N] and the role [B, N]: POSITIVE at IoU ≥ ``positive``, NEGATIVE below
    ``negative``, IGNORED between. With ``low_quality``, the boxes that overlap some object most of all boxes (ties
    included) are positive from ``forced_iou`` on, and go to the object that they overlap most themselves; with
    ``forced_to_object``, to that object, of several to the last.

    As torchvision's ``Matcher``, ``forced_to_object`` as mmdet/models/task_modules/assigners/max_iou_assigner.py, but
    for an object that no box overlaps: there every box that also overlaps nothing ties with IoU 0 and becomes
    positive; here none does.
    """
    iou = iou.masked_fill(~valid.unsqueeze(-1), -1.0)
    best_of_box, index = iou.max(dim=1)
    role = torch.where(best_of_box >= positive, POSITIVE, IGNORED)
    role.masked_fill_(best_of_box < negative, NEGATIVE)
    if low_quality:
        best_of_object = iou.amax(dim=2, keepdim=True)
        forced = (iou == best_of_object) & (best_of_object > 0) & (best_of_object >= forced_iou)
        if forced_to_object:
            number = torch.arange(1, iou.shape[1] + 1, dtype=torch.int16, device=iou.device)
            last = (forced * number[:, None]).amax(dim=1).to(torch.int64)
            index = torch.where(last > 0, last - 1, index)
        role.masked_fill_(forced.any(dim=1), POSITIVE)
    return index, role


#: Overlaps that are held at once: 1 GiB of float32. One crowded image pads all others of its batch.
MOST_OVERLAPS = 2**28


def match_boxes(
    truth: GroundTruth, boxes: Tensor, *, counted: Tensor | None = None, **rules: Any
) -> tuple[Tensor, Tensor]:
    """``match`` of boxes to the objects of a batch, some images after the other if they have many objects.

    Args:
        truth: the objects.
        boxes: [N, 4], or [B, N, 4].
        counted: bool [B, N]; other boxes overlap nothing.
        rules: of ``match``.

    Returns:
        The object's index and the role, both [B, N].
    """
    count, objects = truth.valid.shape
    step = count  # in a compiled graph, which must not depend on the number of boxes
    if not torch.compiler.is_compiling():
        step = max(1, MOST_OVERLAPS // max(objects * boxes.shape[-2], 1))
    found = []
    for start in range(0, count, step):
        part = slice(start, start + step)
        iou = pairwise_iou(truth.boxes[part], boxes if boxes.ndim == 2 else boxes[part])
        if counted is not None:
            iou = iou.masked_fill(~counted[part].unsqueeze(1), 0.0)
        found.append(match(iou, truth.valid[part], **rules))
    index, role = (torch.cat(one) if len(one) > 1 else one[0] for one in zip(*found, strict=True))
    return index, role
