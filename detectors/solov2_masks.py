"""Masks of SOLOv2: what is learned of them, and how they are drawn at the size of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from detectors.dense import focal_loss
from detectors.precision import full, full_precision
from detectors.solov2_targets import Assignment, quarter_masks
from detectors.structures import Target

MASK_STRIDE = 4
#: Pixels of masks that are drawn together: 16 MiB, which stays in a cache.
PIXELS_AT_ONCE = 1 << 22


class Prediction(NamedTuple):
    """What the network says of a batch, before any threshold.

    classes: logits [B, K, S_l, S_l] of each level's grid. kernels: [B, D, S_l, S_l] of each level. features:
    [B, D, H / 4, W / 4]; the product of a cell's kernel with them is the logit of its mask.
    """

    classes: list[Tensor]
    kernels: list[Tensor]
    features: Tensor


def by_cell(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, C, S_l, S_l] of all levels to [B, cells, C], in the order of ``Assignment``."""
    return torch.cat([one.permute(0, 2, 3, 1).flatten(1, 2) for one in maps], dim=1)


def mask_losses(
    predicted: Prediction, assigned: Sequence[Assignment], targets: Sequence[Target]
) -> tuple[Tensor, Tensor]:
    """The dice loss, 1 - 2 Σpt / (Σp² + Σt²), of all pairs of a cell and its object.

    Args:
        predicted: of the batch.
        assigned: of each image.
        targets: of each image, with masks.

    Returns:
        The losses [P], and whether the object has a pixel at the features' resolution, [P].
    """
    kernels = by_cell(predicted.kernels)
    losses, drawn = [], []
    for image, (pairs, target) in enumerate(zip(assigned, targets, strict=True)):
        features = predicted.features[image]
        assert target.masks is not None
        truth = (
            quarter_masks(target.masks, (features.shape[1], features.shape[2])).flatten(1).to(torch.float32)
        )
        masks = full(kernels[image, pairs.cell] @ features.flatten(1)).sigmoid()
        # Against all objects in one product, which is far less than the one before it: no copy of an object's mask
        # for each of its cells has to be made, nor kept for the backward pass.
        with full_precision(masks.device):
            overlap = (masks @ truth.to(masks.dtype).T).gather(1, pairs.object[:, None]).squeeze(1)
        of_truth = truth.sum(dim=1)[pairs.object]
        losses.append(1 - 2 * overlap / (masks.square().sum(dim=1) + of_truth + 2e-3))
        drawn.append(of_truth > 0)
    return torch.cat(losses), torch.cat(drawn)


def class_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the focal loss of logits [B, cells, K] for labels [B, cells], of which K is the background."""
    return focal_loss([logits], labels, torch.ones_like(labels, dtype=torch.float32))


def draw_masks(masks: Tensor, threshold: float, size: tuple[int, int], original: tuple[int, int]) -> Tensor:
    """Masks at the size of the original image.

    Bilinear interpolation is a matrix for the rows and one for the columns, and so are two of them, one after the
    other: two products instead of two interpolations, and no masks between them. Some masks at a time, so that
    probabilities of all at the original size are never in memory.

    Args:
        masks: probabilities [N, h, w] at stride 4, with padding.
        threshold: above which a pixel is the object's, once the mask is enlarged, cut to ``size`` and resized.
        size: height and width of the input without padding.
        original: height and width of the image.

    Returns:
        bool [N, *original].
    """
    masks = masks.float()  # also where the network ran in half precision: pixels are decided here
    axes = zip(masks.shape[1:], size, original, strict=True)
    rows, columns = (_enlarged(*lengths, like=masks) for lengths in axes)
    drawn = torch.empty((len(masks), *original), dtype=torch.bool, device=masks.device)
    together = max(1, PIXELS_AT_ONCE // (original[0] * original[1]))
    for some, into in zip(masks.split(together), drawn.split(together), strict=True):
        into.copy_(rows.T @ (some @ columns) > threshold)
    return drawn


def _enlarged(cells: int, pixels: int, original: int, *, like: Tensor) -> Tensor:
    """What interpolation from cells of stride 4, cut to so many pixels, to the original length multiplies with.

    [cells, original].
    """
    unit = torch.eye(cells, dtype=like.dtype, device=like.device).unsqueeze(0)
    full = F.interpolate(unit, size=MASK_STRIDE * cells, mode="linear", align_corners=False)
    return F.interpolate(full[..., :pixels], size=original, mode="linear", align_corners=False).squeeze(0)


def mask_extents(masks: Tensor) -> Tensor:
    """Boxes float32 [N, 4] of bool masks [N, H, W]: from the first to behind the last pixel, zeros for an empty one."""
    edges = []
    pixels = masks.view(torch.uint8)  # `any` of bool takes twenty times as long on a CPU
    for occupied in (pixels.amax(dim=1).bool(), pixels.amax(dim=2).bool()):  # columns, rows
        number = torch.arange(occupied.shape[1], device=masks.device)
        behind = torch.where(occupied, number + 1, 0).amax(dim=1)
        first = torch.where(occupied, number, behind[:, None]).amin(dim=1)
        edges.append((first, behind))
    (x1, x2), (y1, y2) = edges
    return torch.stack([x1, y1, x2, y2], dim=1).to(torch.float32)
