"""Test-time augmentation: detections in several views of an image become those of the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from detectors.cpu import nms
from detectors.structures import Detections


def suppression_of(model: nn.Module) -> tuple[float, int]:
    """The overlap from which a model takes two boxes for duplicates, and how many detections an image has at most.

    Raises:
        ValueError: for a model that does not suppress boxes.
    """
    heads = [model, *getattr(model, "box_heads", []), getattr(model, "box_head", None)]
    for head in reversed(heads):
        if hasattr(head, "nms_threshold") and hasattr(head, "max_detections"):
            return head.nms_threshold, head.max_detections
    raise ValueError(f"{type(model).__name__} suppresses no boxes, so that views cannot be joined")


def mirrored(found: Detections, width: int) -> Detections:
    """Detections in an image of ``width`` pixels as they are in its mirror image."""
    x1, y1, x2, y2 = found.boxes.unbind(1)
    boxes = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    return found._replace(boxes=boxes, masks=None if found.masks is None else found.masks.flip(-1))


def joined(views: Sequence[Detections], threshold: float, limit: int) -> Detections:
    """The best detections of all views of an image.

    Args:
        views: in the pixels of the image itself.
        threshold: overlap (IoU) from which two boxes of a class are duplicates.
        limit: the most detections.

    Returns:
        Detections, best score first, each with box and mask of the view that it was found in.
    """
    boxes, scores, labels = (
        torch.cat([getattr(view, name) for view in views]) for name in ("boxes", "scores", "labels")
    )
    keep = nms(boxes.clamp(min=0), scores, labels, threshold)[:limit]
    masks = None if views[0].masks is None else torch.cat([view.masks for view in views])[keep]
    return Detections(boxes[keep], scores[keep], labels[keep], masks)
