"""Sabotages of Mask R-CNN: its proposals, and what it makes of masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import roi_heads

from adapters.torchvision.adapter import paste_masks_in_image, resize_boxes
from tests.audit.in_training import set_losses
from tests.audit.sabotages import after, both, inference, training


def within(adapter: Any, method: str, owner: Any, name: str, other: Callable[..., Any]) -> None:
    """While a method of the adapter runs, a function of a library is another one, which gets the plain one first."""
    call, plain = getattr(adapter, method), getattr(owner, name)

    def changed(*arguments: Any) -> Any:
        setattr(owner, name, lambda *given, **named: other(plain, *given, **named))
        try:
            return call(*arguments)
        finally:
            setattr(owner, name, plain)

    setattr(adapter, method, changed)


def _change_masks(adapter: Any, change: Callable[[Any], Any]) -> None:
    after(adapter, "predict_final", lambda found: [{**one, "masks": change(one)} for one in found])


def _half(masks: Tensor) -> Tensor:
    height, width = masks.shape[1:]
    return masks[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]


# -- training ------------------------------------------------------------------------------------------


def _change_targets(adapter: Any, change: Callable[[Tensor], Tensor]) -> None:
    after(adapter, "load", lambda data: dataclasses.replace(data, masks=[change(one) for one in data.masks]))


@training("mask_rcnn")
def masks_moved_by_a_pixel(adapter: Any) -> None:
    _change_targets(adapter, lambda masks: masks.roll(1, 2))


@training("mask_rcnn")
def masks_with_gaps(adapter: Any) -> None:
    _change_targets(adapter, lambda masks: masks * (torch.arange(masks.shape[1]) % 4 > 0)[:, None])


@training("mask_rcnn")
def no_mask_loss(adapter: Any) -> None:
    plain = adapter.compute_losses
    set_losses(adapter, lambda data: {name: one * ("mask" not in name) for name, one in plain(data).items()})


def _every_second(lists: Any) -> Any:
    return [one[::2] for one in lists]


@training("mask_rcnn")
def mask_loss_of_half_the_regions(adapter: Any) -> None:
    def loss(plain: Any, logits: Tensor, proposals: Any, masks: Any, labels: Any, matched: Any) -> Any:
        kept = torch.cat([torch.arange(len(one)) % 2 == 0 for one in proposals])
        return plain(logits[kept], _every_second(proposals), masks, labels, _every_second(matched))

    within(adapter, "forward", roi_heads, "maskrcnn_loss", loss)


@training("mask_rcnn")
def masks_of_half_the_regions(adapter: Any) -> None:
    pool = adapter.model.roi_heads.mask_roi_pool
    plain = pool.forward
    pool.forward = lambda maps, boxes, sizes: plain(maps, _every_second(boxes), sizes)

    def loss(plain: Any, logits: Tensor, proposals: Any, masks: Any, labels: Any, matched: Any) -> Any:
        return plain(logits, _every_second(proposals), masks, labels, _every_second(matched))

    within(adapter, "forward", roi_heads, "maskrcnn_loss", loss)


@training("mask_rcnn")
def mask_loss_without_gradient_of_features(adapter: Any) -> None:
    pool = adapter.model.roi_heads.mask_roi_pool
    plain = pool.forward
    pool.forward = lambda maps, boxes, sizes: plain(
        {name: one.detach() for name, one in maps.items()}, boxes, sizes
    )


# -- both ----------------------------------------------------------------------------------------------


@both("mask_rcnn")
def regions_of_masks_at_half_resolution(adapter: Any) -> None:
    pool = adapter.model.roi_heads.mask_roi_pool
    plain = pool.forward
    pool.forward = lambda *arguments: F.interpolate(F.avg_pool2d(plain(*arguments), 2), scale_factor=2.0)


@both("mask_rcnn")
def one_sample_per_bin_of_masks(adapter: Any) -> None:
    adapter.model.roi_heads.mask_roi_pool.sampling_ratio = 1


@both("mask_rcnn")
def padding_taken_for_image(adapter: Any) -> None:
    after(
        adapter, "load",
        lambda data: dataclasses.replace(data, image_sizes=[tuple(data.images.shape[2:])] * 2),
    )  # fmt: skip


# -- inference -----------------------------------------------------------------------------------------


@inference("mask_rcnn")
def masks_pasted_at_half_resolution(adapter: Any) -> None:
    _change_masks(adapter, lambda one: _half(one["masks"]))


@inference("mask_rcnn")
def boxes_for_masks(adapter: Any) -> None:
    def filled(one: Any) -> Tensor:
        masks = torch.zeros_like(one["masks"])
        for mask, (x1, y1, x2, y2) in zip(masks, one["boxes"].round().int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = True
        return masks

    _change_masks(adapter, filled)


@inference("mask_rcnn")
def masks_of_the_best_half(adapter: Any) -> None:
    def change(one: Any) -> Tensor:
        best = torch.arange(len(one["masks"])) < len(one["masks"]) // 2
        return one["masks"] & best[:, None, None]

    _change_masks(adapter, change)


@inference("mask_rcnn")
def no_masks(adapter: Any) -> None:
    def change(found: Any) -> Any:
        return [{name: value for name, value in one.items() if name != "masks"} for one in found]

    after(adapter, "predict_final", change)


@inference("mask_rcnn")
def masks_not_cut(adapter: Any) -> None:
    """Whatever is above 0 belongs to the object."""

    def final(raw: Any, data: Any) -> Any:
        found = []
        for one, size, original in zip(raw, data.image_sizes, data.original_sizes, strict=True):
            boxes = resize_boxes(one["boxes"], size, original)
            masks = paste_masks_in_image(one["masks"], boxes, original)[:, 0]
            found.append({**one, "boxes": boxes, "masks": masks})
        return found

    adapter.predict_final = final


@inference("mask_rcnn")
def masks_of_the_first_class(adapter: Any) -> None:
    def chosen(plain: Any, logits: Tensor, labels: Any) -> Any:
        return plain(logits, [one * 0 + 1 for one in labels])

    within(adapter, "predict_raw", roi_heads, "maskrcnn_inference", chosen)


@inference("mask_rcnn faster_rcnn")
def fewer_candidates_for_proposals(adapter: Any) -> None:
    adapter.model.rpn._pre_nms_top_n = {"training": 300, "testing": 120}


@inference("mask_rcnn")
def other_overlap_of_proposals(adapter: Any) -> None:
    adapter.model.rpn.nms_thresh += 0.05


@inference("mask_rcnn")
def small_proposals_dropped(adapter: Any) -> None:
    adapter.model.rpn.min_size = 8


@inference("mask_rcnn")
def proposals_beyond_the_image(adapter: Any) -> None:
    boxes = torchvision.models.detection.rpn.box_ops
    within(adapter, "predict_raw", boxes, "clip_boxes_to_image", lambda _, found, __: found)


@inference("mask_rcnn")
def ten_detections_fewer(adapter: Any) -> None:
    adapter.model.roi_heads.detections_per_img -= 10
