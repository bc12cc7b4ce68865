"""Random weights with which a detector can train and predict at once, frozen normalisation included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detectors.anchors import level_anchors
from detectors.c4 import Res5BoxHead
from detectors.cascade import CascadeRCNN
from detectors.deformable import DeformConvNorm
from detectors.dense import DenseDetector
from detectors.layers import calibrating
from detectors.rcnn import RCNN
from detectors.retinanet import RetinaNetHead
from detectors.solov2 import SOLOv2
from detectors.solov2_masks import by_cell
from detectors.ssd import SSD

#: With 80 other classes of standard deviation 1 it makes the background four times as likely as all of them.
BACKGROUND_LOGIT = 6.3
#: Standard deviation in SSD: with 1 a learning rate of 1e-3 would be too much for its head.
SSD_ACTIVATIONS = 0.25


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

    SSD has no normalisation at all: every convolution is scaled to outputs of standard deviation 0.25, that of the
    classes to 1, and the background is preferred so far that about one score in four thousand passes 0.05.

    The points of deformable convolutions, which start on whole pixels, move by about half a pixel. On whole pixels the
    slope of bilinear sampling jumps. At one pixel outside of the map mmcv and PaddlePaddle take 0 for it, torchvision
    does not.
    """
    _displace_points(model)
    with calibrating(model):
        model.backbone(images)
    if isinstance(model, RCNN):
        _unit_logits(model, images, image_sizes)
    elif isinstance(model, CascadeRCNN):
        _unit_logits_of_stages(model, images, image_sizes)
    elif isinstance(model, SOLOv2):
        _unit_classes_and_masks(model, images)
    elif isinstance(model, SSD):
        _calibrate_ssd(model, images)
    elif isinstance(model, DenseDetector):
        _spread_dense_scores(model, images)


def _displace_points(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, DeformConvNorm):
            module.offset.weight.normal_(std=0.004)
            module.offset.bias.fill_(0.5)


def _unit_logits(model: RCNN, images: Tensor, image_sizes: Tensor) -> None:
    """Without a region proposal network, on windows of one size all over the image."""
    pyramid = model.features(images)
    given = None
    if model.rpn is None:
        windows = level_anchors(torch.tensor([[0.0, 0.0, 64.0, 64.0]]), (8, 8), (16, 16)).to(images.device)
        given = [windows] * len(images)
    proposals = model.propose(pyramid, images, image_sizes, given)
    image, slot = proposals.valid.nonzero(as_tuple=True)
    if isinstance(model.box_head, Res5BoxHead):
        # It costs as much as a backbone, and has normalisation of its own.
        some = slice(None, None, max(1, len(image) // 64))
        image, slot = image[some], slot[some]
    with calibrating(model.box_head):
        logits, _ = model.box_head(pyramid, proposals.boxes[image, slot], image)
    model.box_head.classes.weight.div_(logits.std().clamp(min=1e-6))


def _unit_logits_of_stages(model: CascadeRCNN, images: Tensor, image_sizes: Tensor) -> None:
    """As for one head, all on the proposals: untrained heads move them little."""
    pyramid = model.features(images)
    proposals = model.propose(pyramid, images, image_sizes)
    image, slot = proposals.valid.nonzero(as_tuple=True)
    for head in model.box_heads:
        logits, _ = head.predict(model.pool(pyramid, head, proposals.boxes[image, slot], image))
        head.classes.weight.div_(logits.std().clamp(min=1e-6))


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


def _calibrate_ssd(model: SSD, images: Tensor) -> None:
    """Scale the weight of each convolution, in the order in which they run, to the standard deviation of its output."""
    wanted = dict.fromkeys(model.head.classes, 1.0)
    for part in (model.backbone, model.neck):
        wanted |= {module: SSD_ACTIVATIONS for module in part.modules() if isinstance(module, nn.Conv2d)}
    model.neck.scale.mul_(SSD_ACTIVATIONS)

    def scale(conv: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
        factor = wanted[conv] / output.std().clamp(min=1e-6)
        conv.weight.mul_(factor)
        return output * factor  # the bias is still 0

    hooks = [conv.register_forward_hook(scale) for conv in wanted]
    model.output(images)
    for hook in hooks:
        hook.remove()
    for conv in model.head.classes:
        conv.bias.view(-1, model.head.num_classes + 1)[:, -1] = BACKGROUND_LOGIT


def _unit_activations(tower: Iterable[nn.Conv2d], maps: Sequence[Tensor]) -> None:
    """Scale the weight of each convolution, in turn, so that what it gives over all maps has standard deviation 1."""
    for conv in tower:
        conv.weight.div_(torch.cat([conv(feature).flatten() for feature in maps]).std().clamp(min=1e-6))
        maps = [F.relu(conv(feature)) for feature in maps]
