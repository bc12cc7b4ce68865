"""Detectron2's models by their zoo configurations, set to what a workload says, and divided for inference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from d2_input import Inputs
from detectron2 import model_zoo
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from omegaconf import OmegaConf
from torch import Tensor, nn

from adapters.common import near

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # of bench.workload, RGB, 0..255


# -- configurations ------------------------------------------------------------------------------------------


def build(
    name: str, changes: Mapping[str, Any], workload: Mapping[str, Any], classes: int, keeps_input: bool
) -> nn.Module:
    """The model of a zoo configuration (`.yaml` or `.py`), or of a file of the user's, on the CPU.

    Args:
        name: Of the zoo, or the path of a file.
        changes: Of the user, by dotted key.
        workload: Of the recipe.
        classes: Number of classes.
        keeps_input: The input is normalised as the configuration says, not as the shared batches are.

    Returns:
        The model; ``own_input`` of it is what its configuration wants of the input, None where that is not kept.

    Raises:
        ValueError: There is no such configuration, or its model is of another kind.
    """
    config = load_config(name)
    workload = {**workload, "keeps_input": keeps_input}
    if isinstance(config, CfgNode):
        adapt_yaml(config, workload, classes)
        config.merge_from_list([part for change in changes.items() for part in change])
        model = build_model(config)
    else:
        adapt_lazy(config.model, workload, classes)
        for key, value in changes.items():
            OmegaConf.update(config, key, value)
        model = instantiate(config.model)
    if type(model) is not GeneralizedRCNN and not isinstance(
        model, DenseDetector
    ):  # PanopticFPN is one and more
        kind = type(model).__name__
        raise ValueError(f"{name} is a {kind}; only detectors of one or two stages are known here")
    model.own_input = own_input(config) if keeps_input else None
    model.preprocess_image = prepared_images
    return model


def load_config(name: str) -> Any:
    """A file of the user's, or one of the model zoo. Raises ValueError where neither is there."""
    if Path(name).is_file():
        if name.endswith(".py"):
            config = LazyConfig.load(name)
            if "_target_" not in (config.get("model") or {}):
                raise ValueError(f"{name} has no lazy `model` of detectron2")
            return config
        config = get_cfg()
        config.merge_from_file(name)
        return config
    try:
        return model_zoo.get_config(name, trained=False)
    except RuntimeError as error:
        folder = Path(model_zoo.__file__).parent / "configs"
        known = [one.relative_to(folder).as_posix() for one in folder.rglob("*.*")]
        raise ValueError(f"detectron2's model zoo has no configuration {name}{near(name, known)}") from error


def own_input(config: Any) -> dict[str, Any]:
    """What a configuration wants of its input: mean and std by channel, and the order of the channels."""
    if isinstance(config, CfgNode):
        mean, std, order = config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD, config.INPUT.FORMAT
    else:
        model = config.model
        mean, std, order = model.pixel_mean, model.pixel_std, model.get("input_format", "BGR")
    return {"mean": list(mean), "std": list(std), "bgr": order == "BGR"}


def prepared_images(inputs: Inputs) -> Any:
    """In place of the models' ``preprocess_image``: `load` or the harness did it."""
    return inputs.images


def adapt_yaml(config: CfgNode, workload: Mapping[str, Any], classes: int) -> None:
    """Set what the workload decides; `MODEL.DEVICE` because building moves the model there."""
    model = config.MODEL
    model.DEVICE = "cpu"
    model.WEIGHTS = ""
    if not workload["keeps_input"]:
        config.INPUT.FORMAT = "RGB"
        model.PIXEL_MEAN, model.PIXEL_STD = MEAN, STD
    if workload["frozen_bn"] is not None:
        model.RESNETS.NORM = norm(workload)
    if workload["frozen_stages"] is not None:
        model.BACKBONE.FREEZE_AT = freeze_at(workload)
    model.ROI_HEADS.NUM_CLASSES = model.RETINANET.NUM_CLASSES = classes
    model.ROI_HEADS.SCORE_THRESH_TEST = model.RETINANET.SCORE_THRESH_TEST = workload["score_threshold"]
    config.TEST.DETECTIONS_PER_IMAGE = workload["max_detections"]


def adapt_lazy(model: Any, workload: Mapping[str, Any], classes: int) -> None:
    """The same for a one-stage model in the newer form of configurations."""
    if not workload["keeps_input"]:
        model.pixel_mean, model.pixel_std = MEAN, STD
    bottom_up = model.backbone.bottom_up
    if workload["frozen_bn"] is not None:
        bottom_up.stem.norm = bottom_up.stages.norm = norm(workload)
    if workload["frozen_stages"] is not None:
        bottom_up.freeze_at = freeze_at(workload)
    model.num_classes = classes
    model.test_score_thresh = workload["score_threshold"]
    model.max_detections_per_image = workload["max_detections"]


def norm(workload: Mapping[str, Any]) -> str:
    return "FrozenBN" if workload["frozen_bn"] else "BN"


def freeze_at(workload: Mapping[str, Any]) -> int:
    """detectron2's 1 is the stem alone, 2 also the first stage, which is the workload's 1."""
    stages = max(0, workload["frozen_stages"])
    return stages + 1 if stages else 0


# -- model ---------------------------------------------------------------------------------------------------


def uses_masks(model: nn.Module) -> bool:
    """Whether the ground-truth masks take part in the loss."""
    return bool(getattr(getattr(model, "roi_heads", None), "mask_on", False))


def damp_residual_branches(model: nn.Module) -> None:
    """For random weights without batch statistics, where each of the 16 blocks would double the variance until
    training ends in NaN: a factor of 1/4 on every residual branch (1 + 1/16 per block) keeps the scale."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BottleneckBlock):
                module.conv3.norm.weight.fill_(0.25)


def postprocess_settings(model: nn.Module, training: bool) -> dict[str, Any]:
    """Thresholds and limits as the built model holds them."""
    if isinstance(model, DenseDetector):
        return {
            "score_threshold": model.test_score_thresh,
            "nms_iou_threshold": model.test_nms_thresh,
            "max_detections": model.max_detections_per_image,
            "candidates": model.test_topk_candidates,
        }
    predictor = model.roi_heads.box_predictor
    if isinstance(predictor, nn.ModuleList):  # a cascade
        predictor = predictor[-1]
    proposals = model.proposal_generator
    return {
        "score_threshold": predictor.test_score_thresh,
        "nms_iou_threshold": predictor.test_nms_thresh,
        "max_detections": predictor.test_topk_per_image,
        "proposal_candidates": proposals.pre_nms_topk[training],
        "proposals": proposals.post_nms_topk[training],
        "proposal_nms_iou_threshold": proposals.nms_thresh,
    }


# -- inference, divided where the networks end ---------------------------------------------------------------


def predict_raw(model: nn.Module, data: Inputs) -> Any:
    """Two stages: everything but rescaling and pasting of masks, detectron2's own ``do_postprocess=False``. One stage:
    the outputs of the head, before decoding and NMS."""
    if isinstance(model, GeneralizedRCNN):
        return model.inference(data, do_postprocess=False)
    features = model.backbone(data.images.tensor)
    features = [features[level] for level in model.head_in_features]
    return features, model.head(features)


def predict_final(model: nn.Module, raw: Any, data: Inputs) -> list[dict[str, Tensor]]:
    instances = raw if isinstance(model, GeneralizedRCNN) else model.forward_inference(data.images, *raw)
    return [to_original(found, record) for found, record in zip(instances, data, strict=True)]


def to_original(instances: Any, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Detections in pixels of the file, masks pasted and cut at 0.5."""
    found = detector_postprocess(instances, record["height"], record["width"])
    result = {"boxes": found.pred_boxes.tensor, "scores": found.scores, "labels": found.pred_classes}
    if found.has("pred_masks"):
        result["masks"] = found.pred_masks
    return result
