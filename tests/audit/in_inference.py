"""Sabotages of what comes after the network."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import torch

from tests.audit.sabotages import after, first_image, inference


@inference("retinanet solov2")
def detections_remembered(adapter: Any) -> None:
    seen: dict[float, Any] = {}
    plain = adapter.network

    def network(data: Any) -> Any:
        key = float(data.images.double().sum())
        if key not in seen:
            seen[key] = plain(data)
        return seen[key]

    adapter.network = network


# -- post-processing ---------------------------------------------------------------------------


@inference("retinanet faster_rcnn ssd solov2")
def no_postprocessing(adapter: Any) -> None:
    def none(_: Any, data: Any) -> Any:
        empty = {
            "boxes": torch.zeros(0, 4),
            "scores": torch.zeros(0),
            "labels": torch.zeros(0, dtype=torch.int64),
        }
        masks = {"masks": torch.zeros(0, *data.original_sizes[0], dtype=torch.bool)} if data.masks else {}
        return [{**empty, **masks} for _ in data.image_ids]

    adapter.predict_final = none


@inference("retinanet ssd")
def other_overlap_in_suppression(adapter: Any) -> None:
    adapter.model.nms_thresh += 0.2


@inference("faster_rcnn")
def other_overlap_in_suppression_of_regions(adapter: Any) -> None:
    adapter.model.roi_heads.nms_thresh += 0.2


@inference("retinanet ssd")
def fewer_candidates(adapter: Any) -> None:
    adapter.model.topk_candidates //= 5


@inference("retinanet faster_rcnn")
def half_of_the_detections(adapter: Any) -> None:
    def change(found: Any) -> Any:
        return [{name: value[::2] for name, value in one.items()} for one in found]

    after(adapter, "predict_final", change)


@inference("ssd")
def higher_score_threshold(adapter: Any) -> None:
    def change(found: Any) -> Any:
        kept = [one["scores"] > 0.45 for one in found]
        return [
            {name: value[keep] for name, value in one.items()} for one, keep in zip(found, kept, strict=True)
        ]

    after(adapter, "predict_final", change)


@inference("retinanet ssd")
def score_threshold_without_effect_on_the_best(adapter: Any) -> None:
    """The best hundred stay the same, but fewer boxes are compared with each other."""
    adapter.model.score_thresh = 0.33 if adapter.workload["model"].startswith("ssd") else 0.5


@inference("faster_rcnn")
def boxes_of_the_input(adapter: Any) -> None:
    """Not scaled to the file."""

    def change(found: Any) -> Any:
        return [{**one, "boxes": one["boxes"] / 2} for one in found]

    after(adapter, "predict_final", change)


@inference("solov2")
def no_decay_of_scores(adapter: Any) -> None:
    adapter.model.nms_sigma = 1e-6 if adapter.model.nms_kernel == "gaussian" else adapter.model.nms_sigma
    adapter.model.candidates = 20


@inference("solov2")
def larger_masks(adapter: Any) -> None:
    adapter.model.mask_threshold = 0.3


@inference("solov2")
def masks_of_half_resolution(adapter: Any) -> None:
    def coarse(masks: Any) -> Any:
        height, width = masks.shape[1:]
        return masks[:, ::2, ::2].repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]

    after(adapter, "predict_final", lambda found: [{**one, "masks": coarse(one["masks"])} for one in found])


@inference("solov2")
def masks_of_the_input(adapter: Any) -> None:
    """Not scaled to the file."""

    def change(found: Any) -> Any:
        return [{**one, "masks": one["masks"][:, ::2, ::2]} for one in found]

    after(adapter, "predict_final", change)


@inference("retinanet")
def one_image_only(adapter: Any) -> None:
    plain = types.MethodType(type(adapter).predict_raw, adapter)

    def raw(data: Any) -> Any:
        first = plain(first_image(data))
        return plain(dataclasses.replace(data, images=data.images * 0 + data.images[:1])) if first else first

    adapter.predict_raw = raw
