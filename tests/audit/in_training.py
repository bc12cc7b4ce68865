"""Sabotages of loss, backward pass, optimizer and average."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.audit.sabotages import first_image, nothing, training


def set_losses(adapter: Any, losses: Callable[[Any], Any]) -> None:
    adapter.loss_module._compute_losses = losses


@training("retinanet faster_rcnn")
def half_the_batch_in_the_loss(adapter: Any) -> None:
    plain = adapter.compute_losses

    def losses(data: Any) -> Any:
        adapter.model.backbone(data.images)  # the work of the forward pass is done
        return plain(first_image(data))

    set_losses(adapter, losses)


@training("retinanet ssd solov2")
def backward_of_one_term(adapter: Any) -> None:
    adapter.backward = lambda losses: next(iter(losses.values())).backward()


@training("retinanet faster_rcnn")
def terms_that_cancel(adapter: Any) -> None:
    def change(losses: Any) -> Any:
        (first, a), (second, b), *_ = losses.items()
        return {**losses, first: a * 0.9, second: b + 0.1 * a.detach()}

    plain = adapter.compute_losses
    set_losses(adapter, lambda data: change(plain(data)))


@training("faster_rcnn")
def half_of_the_regions(adapter: Any) -> None:
    adapter.model.roi_heads.fg_bg_sampler.batch_size_per_image //= 2


@training("faster_rcnn")
def a_quarter_of_the_regions(adapter: Any) -> None:
    adapter.model.roi_heads.fg_bg_sampler.batch_size_per_image //= 4


@training("faster_rcnn")
def half_of_the_anchors(adapter: Any) -> None:
    adapter.model.rpn.fg_bg_sampler.batch_size_per_image //= 2


@training("faster_rcnn")
def other_share_of_positives(adapter: Any) -> None:
    adapter.model.roi_heads.fg_bg_sampler.positive_fraction = 0.01


@training("retinanet")
def other_overlap_of_positives(adapter: Any) -> None:
    adapter.model.proposal_matcher.high_threshold = 0.6


@training("retinanet")
def no_focus(adapter: Any) -> None:
    """Every other anchor is left out of the classification loss."""
    head = adapter.model.head.classification_head
    plain = head.compute_loss

    def compute_loss(targets: Any, outputs: Any, matched: Any) -> Any:
        ignored = [index.clone() for index in matched]
        for index in ignored:
            index[1::2] = torch.where(index[1::2] < 0, head.BETWEEN_THRESHOLDS, index[1::2])
        return plain(targets, outputs, ignored)

    head.compute_loss = compute_loss


@training("ssd")
def fewer_hard_negatives(adapter: Any) -> None:
    adapter.model.neg_to_pos_ratio = 2


@training("solov2")
def no_masks_in_the_loss(adapter: Any) -> None:
    def change(losses: Any) -> Any:
        return {name: value * (0.0 if "mask" in name else 1.0) for name, value in losses.items()}

    plain = adapter.compute_losses
    set_losses(adapter, lambda data: change(plain(data)))


@training("solov2")
def masks_of_half_the_objects(adapter: Any) -> None:
    def change(data: Any) -> Any:
        return dataclasses.replace(
            data, **{name: [one[:2] for one in getattr(data, name)] for name in ("boxes", "labels", "masks")}
        )

    plain = adapter.load
    adapter.load = lambda data: plain(change(data))


# -- backward, optimizer, average ---------------------------------------------------------------------------


@training("retinanet faster_rcnn ssd solov2")
def no_backward(adapter: Any) -> None:
    adapter.backward = nothing


@training("retinanet solov2")
def backward_only_once(adapter: Any) -> None:
    plain, taken = adapter.backward, [0]

    def backward(losses: Any) -> None:
        taken[0] += 1
        if taken[0] == 1:
            plain(losses)

    adapter.backward = backward


@training("retinanet faster_rcnn")
def backbone_without_gradient(adapter: Any) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> Any:
        with torch.no_grad():
            return plain(images)

    backbone.forward = forward


@training("retinanet")
def one_stage_more_is_frozen(adapter: Any) -> None:
    adapter.model.backbone.body.layer1.requires_grad_(False)


@training("retinanet faster_rcnn solov2")
def clipped_gradients(adapter: Any) -> None:
    plain = adapter.optimizer_step

    def step() -> None:
        nn.utils.clip_grad_norm_(adapter.model.parameters(), 0.05)
        plain()

    adapter.optimizer_step = step


@training("retinanet ssd solov2")
def no_optimizer_step(adapter: Any) -> None:
    adapter.optimizer_step = nothing


@training("retinanet ssd")
def learning_rate_0_after_one_step(adapter: Any) -> None:
    plain = adapter.optimizer_step

    def step() -> None:
        plain()
        for group in adapter.optimizer.param_groups:
            group["lr"] = 0.0

    adapter.optimizer_step = step


@training("faster_rcnn")
def every_second_step(adapter: Any) -> None:
    plain, taken = adapter.optimizer_step, [0]

    def step() -> None:
        taken[0] += 1
        if taken[0] % 2:
            plain()

    adapter.optimizer_step = step


def _set_optimizer(adapter: Any, **values: Any) -> None:
    for group in adapter.optimizer.param_groups:
        group.update(values)


@training("retinanet")
def no_momentum(adapter: Any) -> None:
    _set_optimizer(adapter, momentum=0.0)


@training("retinanet")
def nesterov(adapter: Any) -> None:
    _set_optimizer(adapter, nesterov=True)


@training("retinanet ssd")
def no_weight_decay(adapter: Any) -> None:
    _set_optimizer(adapter, weight_decay=0.0)


@training("ssd")
def only_heads_are_trained(adapter: Any) -> None:
    for group in adapter.optimizer.param_groups:
        group["params"] = list(adapter.model.head.parameters())


@training("retinanet faster_rcnn ssd solov2")
def no_average(adapter: Any) -> None:
    adapter.ema_update = nothing


@training("ssd")
def average_every_second_step(adapter: Any) -> None:
    plain, taken = adapter.ema_update, [0]

    def update() -> None:
        taken[0] += 1
        if taken[0] % 2:
            plain()

    adapter.ema_update = update


@training("ssd")
def average_of_half_the_weights(adapter: Any) -> None:
    plain = adapter.ema.update_parameters
    rest = nn.ModuleList([adapter.model.head])

    def update(model: nn.Module) -> None:
        kept = [value.clone() for value in adapter.ema.module.head.state_dict().values()]
        plain(model)
        for value, old in zip(adapter.ema.module.head.state_dict().values(), kept, strict=True):
            value.copy_(old)

    assert rest
    adapter.ema.update_parameters = update


# -- memory of what was done ---------------------------------------------------------------------------


@training("retinanet")
def features_remembered(adapter: Any) -> None:
    """Of an image that was seen before, the frozen beginning of the backbone is not computed again."""
    body, seen = adapter.model.backbone.body, {}
    conv, plain = body.conv1, body.conv1.forward

    def forward(images: Tensor) -> Tensor:
        key = float(images.double().sum())
        if key not in seen:
            seen[key] = plain(images).detach()
        return seen[key]

    conv.weight.requires_grad_(False)
    conv.forward = forward
