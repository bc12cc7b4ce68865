"""Sabotages in the corners: work that no step is timed with, small parts of the weights, settings, forms of masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.audit.sabotages import after, before_loading, both, inference, training

# -- work that no step is timed with ------------------------------------------------------------------


@inference("retinanet ssd solov2")
def results_made_when_they_are_read(adapter: Any) -> None:
    postprocess, read = adapter.postprocess, adapter.detections
    adapter.postprocess = lambda raw, _: [raw, torch.zeros(2) + 1]
    adapter.detections = lambda found, data: read(postprocess(found[0], data), data)


@inference("retinanet faster_rcnn")
def all_made_when_results_are_read(adapter: Any) -> None:
    network, postprocess, read = adapter.network, adapter.postprocess, adapter.detections
    adapter.network = lambda data: data.images.sum()
    adapter.postprocess = lambda raw, _: raw + 1
    adapter.detections = lambda _, data: read(postprocess(network(data), data), data)


@training("retinanet ssd")
def images_made_while_batches_are_converted(adapter: Any) -> None:
    """Work that a codebase does with every image."""
    plain = adapter.convert

    def convert(batch: Any) -> Any:
        data = plain(batch)
        data.images.copy_(F.conv2d(data.images, torch.eye(3)[:, :, None, None]))
        for _ in range(40):
            data.images.mul_(1.0)
        return data

    adapter.convert = convert


# -- results ----------------------------------------------------------------------------------------


@inference("retinanet ssd faster_rcnn")
def suppression_over_all_classes(adapter: Any) -> None:
    boxes: Any = torchvision.ops.boxes

    def changed(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            plain = boxes.batched_nms
            boxes.batched_nms = lambda b, scores, groups, limit: plain(b, scores, groups * 0, limit)
            try:
                return call(*arguments)
            finally:
                boxes.batched_nms = plain

        return run

    for name in ("predict_raw", "predict_final"):
        setattr(adapter, name, changed(getattr(adapter, name)))


@inference("solov2")
def masks_are_discs(adapter: Any) -> None:
    """Of the same area, at the same place."""

    def disc(mask: Tensor) -> Tensor:
        places = torch.nonzero(mask).float()
        if not len(places):
            return mask
        grid = torch.stack(torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij"), -1)
        distance = (grid - places.mean(0)).square().sum(-1)
        return distance <= distance.flatten().kthvalue(len(places)).values

    def change(found: Any) -> Any:
        return [{**one, "masks": torch.stack([*map(disc, one["masks"])])} for one in found]

    after(adapter, "predict_final", change)


# -- arithmetic -----------------------------------------------------------------------------------------


@inference("retinanet ssd")
def values_of_a_layer_in_8_bits(adapter: Any) -> None:
    def rounded(_: Any, inputs: Any) -> Any:
        step = inputs[0].abs().max() / 127
        return ((inputs[0] / step).round() * step,)

    convolutions = [one for one in adapter.model.backbone.modules() if isinstance(one, nn.Conv2d)]
    convolutions[-1].register_forward_pre_hook(rounded)


@inference("retinanet")
def a_level_at_half_resolution(adapter: Any) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> Any:
        maps = plain(images)
        name = next(iter(maps))
        small = F.avg_pool2d(maps[name], 2)
        return {**maps, name: F.interpolate(small, size=maps[name].shape[2:], mode="bilinear")}

    backbone.forward = forward


@both("retinanet ssd")
def without_the_library_for_convolutions(adapter: Any) -> None:
    before_loading(adapter, lambda: setattr(torch.backends.mkldnn, "enabled", False))


@both("retinanet ssd")
def without_denormal_numbers(adapter: Any) -> None:
    before_loading(adapter, lambda: torch.set_flush_denormal(True))


@training("retinanet ssd")
def in_search_of_anomalies(adapter: Any) -> None:
    before_loading(adapter, lambda: torch.autograd.set_detect_anomaly(True))


# -- optimizer and average --------------------------------------------------------------------------------


@training("retinanet ssd")
def gradients_of_two_steps_together(adapter: Any) -> None:
    plain, taken = adapter.optimizer_step, [0]

    def step() -> None:
        taken[0] += 1
        if taken[0] % 2 == 0:
            plain()

    def forward(data: Any) -> Any:
        if taken[0] % 2 == 0:
            adapter.optimizer.zero_grad(set_to_none=True)
        return adapter.loss_module(data)

    adapter.optimizer_step, adapter.forward = step, forward


@training("retinanet ssd")
def average_of_the_step_before(adapter: Any) -> None:
    plain, model, before = adapter.ema_update, adapter.model, []

    def update() -> None:
        now = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(before[-1] if before else now)
        plain()
        model.load_state_dict(now)
        before.append(now)

    adapter.ema_update = update


def _apart(adapter: Any, chosen: list[nn.Parameter], **values: Any) -> None:
    """Give some parameters a group of the optimizer of their own."""
    (group,) = adapter.optimizer.param_groups
    some = {id(one) for one in chosen}
    group["params"] = [one for one in group["params"] if id(one) not in some]
    adapter.optimizer.param_groups.append({**group, "params": chosen, **values})


@training("ssd")
def no_weight_decay_of_a_layer(adapter: Any) -> None:
    _apart(adapter, list(adapter.model.head.parameters())[-2:], weight_decay=0.0)


@training("retinanet")
def other_weight_decay_of_a_stage(adapter: Any) -> None:
    weights = [one for one in adapter.model.backbone.body.layer1.parameters() if one.ndim > 1]
    _apart(adapter, weights, weight_decay=2e-4)


@training("ssd")
def one_bias_is_not_updated(adapter: Any) -> None:
    _apart(
        adapter, [[one for one in adapter.model.parameters() if one.ndim < 2][-1]], lr=0.0, weight_decay=0.0
    )


@training("retinanet ssd faster_rcnn")
def second_image_without_gradient(adapter: Any) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> Any:
        return {name: torch.cat([one[:1], one[1:].detach()]) for name, one in plain(images).items()}

    backbone.forward = forward


@training("retinanet")
def top_level_without_gradient(adapter: Any) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> Any:
        maps = plain(images)
        return {**maps, "p7": maps["p7"].detach()}

    backbone.forward = forward


@training("faster_rcnn")
def one_image_without_anchors_of_objects(adapter: Any) -> None:
    rpn = adapter.model.rpn
    plain = rpn.compute_loss

    def compute_loss(objectness: Any, deltas: Any, labels: Any, targets: Any) -> Any:
        return plain(objectness, deltas, [labels[0], *(one.clamp(max=0) for one in labels[1:])], targets)

    rpn.compute_loss = compute_loss
