"""Inference of each architecture, divided where the last layer with weights has run.

These are the calls of each architecture's own ``_forward``. Up to the cut is the network (for the R-CNN family with the
box NMS, which the mask head needs), the rest is post-processing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import paddle
from ppdet.modeling.architectures import CascadeRCNN
from ppdet_data import Found, by_image


def _features(model: Any, inputs: Mapping[str, Any]) -> Any:
    maps = model.backbone(inputs)
    return maps if model.neck is None else model.neck(maps)


def _network_rcnn(model: Any, inputs: Mapping[str, Any]) -> Any:
    features = _features(model, inputs)
    rois, rois_num, _ = model.rpn_head(features, inputs)
    predictions, feature_layer = model.bbox_head(features, rois, rois_num, inputs)
    if isinstance(model, CascadeRCNN):
        rois = model.bbox_head.get_refined_rois()
    boxes, counts, _ = model.bbox_post_process(
        predictions, (rois, rois_num), inputs["im_shape"], inputs["scale_factor"]
    )
    masks = None
    if getattr(model, "mask_head", None) is not None and boxes.shape[0]:
        masks = model.mask_head(features, boxes, counts, inputs, feat_func=feature_layer)
    return boxes, counts, masks


def _postprocess_rcnn(model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
    """Image by image: ppdet's ``MaskPostProcess`` looks up the size of image i as that of box i, which is right
    for one image only, and its box post-processing invents a box for an image without any."""
    boxes, counts, masks = raw
    found, start = [], 0
    for index, count in enumerate(counts.tolist()):
        if not count:
            found.append(Found(None))
            continue
        one, end = slice(index, index + 1), start + count
        post = model.bbox_post_process
        _, rows, number = post.get_pred(
            boxes[start:end], counts[one], inputs["im_shape"][one], inputs["scale_factor"][one]
        )
        pasted = None
        if masks is not None:
            pasted = model.mask_post_process(masks[start:end], rows, number, post.get_origin_shape())
        found.append(Found(rows, pasted))
        start = end
    return found


def _network_retinanet(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model.head(_features(model, inputs))


def _postprocess_retinanet(model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
    rows, counts, _ = model.head.post_process(raw, inputs["im_shape"], inputs["scale_factor"])
    return by_image(rows, counts)


def _network_fcos(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model.fcos_head(_features(model, inputs))


def _postprocess_fcos(model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
    return by_image(*model.fcos_head.post_process(raw, inputs["scale_factor"]))


def _network_ssd(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model.ssd_head(model.backbone(inputs), inputs["image"])


def _postprocess_ssd(model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
    rows, counts, _ = model.post_process(*raw, inputs["im_shape"], inputs["scale_factor"])
    return by_image(rows, counts)


def _network_solov2(model: Any, inputs: Mapping[str, Any]) -> Any:
    features = _features(model, inputs)
    masks = model.mask_head(features)
    return (*model.solov2_head(features), masks)


def _postprocess_solov2(model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
    """Image by image: ppdet's ``get_prediction`` answers for the first image of a batch only."""
    categories, kernels, features = raw
    found = []
    for index in range(features.shape[0]):
        one = slice(index, index + 1)
        masks, labels, scores, _ = model.solov2_head.get_prediction(
            [level[one] for level in categories],
            [level[one] for level in kernels],
            features[one],
            inputs["im_shape"][one],
            inputs["scale_factor"][one],
        )
        rows = paddle.stack([labels.astype("float32"), scores], axis=1)
        found.append(Found(rows, masks.reshape([-1, *masks.shape[-2:]])))
    return found


def _network_detr(model: Any, inputs: Mapping[str, Any]) -> Any:
    features = _features(model, inputs)
    return model.detr_head(model.transformer(features, inputs.get("pad_mask"), inputs), features)


def _postprocess_detr(model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
    padded = paddle.to_tensor(inputs["image"].shape[2:])
    return by_image(*model.post_process(raw, inputs["im_shape"], inputs["scale_factor"], padded)[:2])


_PARTS: dict[str, tuple[Callable[..., Any], Callable[..., list[Found]]]] = {
    **dict.fromkeys(("FasterRCNN", "MaskRCNN", "CascadeRCNN"), (_network_rcnn, _postprocess_rcnn)),
    "RetinaNet": (_network_retinanet, _postprocess_retinanet),
    "FCOS": (_network_fcos, _postprocess_fcos),
    "SSD": (_network_ssd, _postprocess_ssd),
    "SOLOv2": (_network_solov2, _postprocess_solov2),
    "DETR": (_network_detr, _postprocess_detr),
}


def _network_whole(model: Any, inputs: Mapping[str, Any]) -> Any:
    return model(inputs)


def _postprocess_whole(model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:  # noqa: ARG001
    """Of an architecture that is not divided here: its own post-processing ran in the network."""
    rows, found, start = raw["bbox"], [], 0
    for count in raw["bbox_num"].tolist():
        found.append(Found(rows[start : start + count] if count else None))
        start += count
    return found


_WHOLE = (_network_whole, _postprocess_whole)


def network(architecture: str, model: Any, inputs: Mapping[str, Any]) -> Any:
    """Raw predictions of a model in evaluation mode."""
    return _PARTS.get(architecture, _WHOLE)[0](model, inputs)


def postprocess(architecture: str, model: Any, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
    """Final detections of each image from what `network` returned."""
    return _PARTS.get(architecture, _WHOLE)[1](model, raw, inputs)
