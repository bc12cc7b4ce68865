"""Random weights with which a detector can train and predict at once, frozen normalisation included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.dense import DenseDetector
from detectors.layers import calibrating
from detectors.rcnn import RCNN
from detectors.retinanet import RetinaNetHead
from detectors.solov2 import SOLOv2, by_cell


@torch.no_grad()
def calibrate(model: nn.Module, images: Tensor, image_sizes: Tensor) -> None:
    """Fit what random weights leave unfit, from images [B, 3, H, W] with image_sizes [B, 2] (height, width).

    Frozen normalisation is meant for pretrained weights. With random ones its statistics (0, 1) are far from those of
    its input, activations grow from block to block, and training diverges. One pass in which each layer takes the
    statistics of what reaches it, from the first to the last, makes the network behave as with batch normalisation.

    The class layer of an R-CNN starts so small that no score passes the usual threshold and inference, without
    detections, would not do its work. It is scaled to logits of standard deviation 1. So are, for the same reason, the
    classes and the masks of SOLOv2. RetinaNet's and FCOS's classes get 0.5 around their prior: about one score in two
    thousand passes 0.05, and the focal loss of many thousands of wrong scores stays small. RetinaNet's towers, in which
    activations would shrink by three at every layer, are made to keep their scale.
    """
    with calibrating(model):
        model.backbone(images)
    if isinstance(model, RCNN):
        _unit_logits(model, images, image_sizes)
    elif isinstance(model, SOLOv2):
        _unit_classes_and_masks(model, images)
    elif isinstance(model, DenseDetector):
        _spread_dense_scores(model, images)


def _unit_logits(model: RCNN, images: Tensor, image_sizes: Tensor) -> None:
    pyramid = model.features(images)
    proposals = model.rpn.propose(pyramid, image_sizes, (images.shape[2], images.shape[3]))
    image, slot = proposals.valid.nonzero(as_tuple=True)
    logits, _ = model.box_head(pyramid, proposals.boxes[image, slot], image)
    model.box_head.classes.weight.div_(logits.std().clamp(min=1e-6))


def _unit_classes_and_masks(model: SOLOv2, images: Tensor) -> None:
    predicted = model.predict(images)
    classes = torch.cat([logits.flatten() for logits in predicted.classes])
    model.head.classes.weight.div_(classes.std().clamp(min=1e-6))
    masks = by_cell(predicted.kernels) @ predicted.features.flatten(2)
    model.head.kernels.weight.div_(masks.std().clamp(min=1e-6))


def _spread_dense_scores(model: DenseDetector, images: Tensor) -> None:
    if isinstance(model.head, RetinaNetHead):
        maps = model.neck(model.backbone(images))
        for tower in (model.head.class_tower, model.head.box_tower):
            _unit_activations(tower, maps)
    logits = torch.cat([level.flatten() for level in model.output(images).logits])
    model.head.classes.weight.mul_(0.5 / logits.std().clamp(min=1e-6))


def _unit_activations(tower: Iterable[nn.Conv2d], maps: Sequence[Tensor]) -> None:
    """Scale the weight of each convolution, in turn, so that what it gives over all maps has standard deviation 1."""
    for conv in tower:
        conv.weight.div_(torch.cat([conv(feature).flatten() for feature in maps]).std().clamp(min=1e-6))
        maps = [F.relu(conv(feature)) for feature in maps]
