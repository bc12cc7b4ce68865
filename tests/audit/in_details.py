"""Sabotages that keep most of the work: parts of a batch, of the arithmetic, of what is remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.audit.in_training import set_losses
from tests.audit.sabotages import after, both, first_image, inference, training

# -- the batch ---------------------------------------------------------------------------


def _second_image(data: Any) -> Any:
    swapped = dataclasses.replace(
        data,
        images=data.images.flip(0),
        **{field.name: getattr(data, field.name)[::-1] for field in dataclasses.fields(data)[1:]},
    )
    return first_image(swapped)


@training("retinanet ssd faster_rcnn")
def gradients_summed_over_two_halves(adapter: Any) -> None:
    """Each image by itself, with the gradients of the batch in the end: half the memory."""
    plain = adapter.compute_losses

    def losses(data: Any) -> Any:
        halves = [plain(one) for one in (first_image(data), _second_image(data))]
        return {name: (value + halves[1][name]) / 2 for name, value in halves[0].items()}

    set_losses(adapter, losses)


@inference("retinanet ssd solov2")
def one_image_at_a_time(adapter: Any) -> None:
    plain_raw, plain_final = adapter.predict_raw, adapter.predict_final

    def raw(data: Any) -> Any:
        return [(plain_raw(one), one) for one in (first_image(data), _second_image(data))]

    adapter.predict_raw = raw
    adapter.predict_final = lambda found, _: [plain_final(one, data)[0] for one, data in found]


@training("retinanet ssd")
def labels_shifted(adapter: Any) -> None:
    def change(data: Any) -> Any:
        offset = adapter.label_offset
        labels = [(one - offset + 1) % len(adapter.job.classes) + offset for one in data.labels]
        return dataclasses.replace(data, labels=labels)

    after(adapter, "load", change)


@training("retinanet ssd faster_rcnn")
def boxes_mirrored(adapter: Any) -> None:
    def change(data: Any) -> Any:
        width = data.images.shape[3]
        boxes = [torch.stack([width - b[:, 2], b[:, 1], width - b[:, 0], b[:, 3]], 1) for b in data.boxes]
        return dataclasses.replace(data, boxes=boxes)

    after(adapter, "load", change)


@training("retinanet ssd faster_rcnn")
def boxes_moved_by_a_pixel(adapter: Any) -> None:
    after(adapter, "load", lambda data: dataclasses.replace(data, boxes=[one + 1 for one in data.boxes]))


@training("solov2")
def masks_of_one_image(adapter: Any) -> None:
    def change(data: Any) -> Any:
        return dataclasses.replace(data, masks=[data.masks[0], *(one * 0 for one in data.masks[1:])])

    after(adapter, "load", change)


@training("solov2")
def masks_of_half_resolution(adapter: Any) -> None:
    def half(mask: Tensor) -> Tensor:
        small = F.interpolate(mask[None].float(), scale_factor=0.25)
        return F.interpolate(small, scale_factor=4.0)[0].to(mask.dtype)

    after(adapter, "load", lambda data: dataclasses.replace(data, masks=[half(one) for one in data.masks]))


@training("retinanet ssd")
def first_image_twice(adapter: Any) -> None:
    def change(data: Any) -> Any:
        twice = {
            f.name: [getattr(data, f.name)[0]] * 2
            for f in dataclasses.fields(data)[1:]
            if f.name != "masks" and getattr(data, f.name)
        }
        return dataclasses.replace(data, images=data.images[:1].repeat(2, 1, 1, 1), **twice)

    after(adapter, "load", change)


@inference("retinanet ssd faster_rcnn solov2")
def detections_of_one_image(adapter: Any) -> None:
    def change(found: Any) -> Any:
        return [found[0], *({name: value[:0] for name, value in one.items()} for one in found[1:])]

    after(adapter, "predict_final", change)


# -- arithmetic ---------------------------------------------------------------------------


@training("retinanet ssd solov2")
def gradients_rounded(adapter: Any) -> None:
    plain = adapter.optimizer_step

    def step() -> None:
        for parameter in adapter.model.parameters():
            if parameter.grad is not None:
                parameter.grad = parameter.grad.bfloat16().float()
        plain()

    adapter.optimizer_step = step


class _Backward16(torch.autograd.Function):
    """A convolution whose gradients are products of bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = stride, padding
        return F.conv2d(x, weight, None, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        x, weight = (value.bfloat16() for value in ctx.saved_tensors)
        stride, padding = ctx.settings
        of_x, of_weight, _ = torch.ops.aten.convolution_backward(
            gradient.bfloat16(),
            x,
            weight,
            None,
            stride,
            padding,
            [1, 1],
            False,
            [0, 0],
            1,
            [True, True, False],
        )
        return of_x.float(), of_weight.float(), None, None


@training("retinanet faster_rcnn")
def backward_in_bfloat16(adapter: Any) -> None:
    for module in adapter.model.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.forward = lambda x, m=module: _Backward16.apply(x, m.weight, m.stride, m.padding)


@both("retinanet ssd")
def images_rounded(adapter: Any) -> None:
    after(adapter, "load", lambda data: dataclasses.replace(data, images=data.images.bfloat16().float()))


@training("ssd retinanet")
def average_in_bfloat16(adapter: Any) -> None:
    plain = adapter.ema_update

    def update() -> None:
        plain()
        with torch.no_grad():
            for value in adapter.ema.module.parameters():
                value.copy_(value.bfloat16())

    adapter.ema_update = update


@training("ssd retinanet")
def momentum_in_bfloat16(adapter: Any) -> None:
    plain = adapter.optimizer_step

    def step() -> None:
        plain()
        for state in adapter.optimizer.state.values():
            state["momentum_buffer"].copy_(state["momentum_buffer"].bfloat16())

    adapter.optimizer_step = step


@both("retinanet ssd")
def convolutions_in_less_precision(adapter: Any) -> None:
    plain = adapter.load

    def load(data: Any) -> Any:
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        return plain(data)

    adapter.load = load


# -- the model ---------------------------------------------------------------------------


@training("ssd retinanet")
def values_dropped_by_a_function(adapter: Any) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> Any:
        return {name: F.dropout(value, 0.1, training=True) for name, value in plain(images).items()}

    backbone.forward = forward


@both("retinanet ssd")
def a_level_of_the_pyramid_is_blank(adapter: Any) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> Any:
        maps = plain(images)
        last = list(maps)[-1]
        return {**maps, last: torch.zeros_like(maps[last])}

    backbone.forward = forward


@both("faster_rcnn")
def regions_from_other_levels(adapter: Any) -> None:
    adapter.model.roi_heads.box_roi_pool.canonical_scale = 56


@training("retinanet")
def a_stage_without_gradient_of_its_input(adapter: Any) -> None:
    layer = adapter.model.backbone.body.layer3
    plain = layer.forward
    layer.forward = lambda x: plain(x.detach())


@both("retinanet ssd faster_rcnn")
def other_first_weights(adapter: Any) -> None:
    """A start from weights that some steps have moved."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.mul_(1 + 0.01 * torch.randn_like(parameter))


# -- optimizer ---------------------------------------------------------------------------


@training("ssd retinanet")
def momentum_reset(adapter: Any) -> None:
    """Before the third step."""
    plain, taken = adapter.optimizer_step, [0]

    def step() -> None:
        taken[0] += 1
        if taken[0] == 3:
            adapter.optimizer.state.clear()
        plain()

    adapter.optimizer_step = step


@training("ssd retinanet")
def weight_decay_of_heads_only(adapter: Any) -> None:
    (group,) = adapter.optimizer.param_groups
    heads = {id(parameter) for parameter in adapter.model.head.parameters()}
    rest = [parameter for parameter in group["params"] if id(parameter) not in heads]
    group["params"] = [parameter for parameter in group["params"] if id(parameter) in heads]
    adapter.optimizer.add_param_group({**group, "params": rest, "weight_decay": 0.0})


def _set_vectors(adapter: Any, **values: Any) -> None:
    """Give biases and scales a group of the optimizer of their own."""
    optimizer = adapter.optimizer
    for group in list(optimizer.param_groups):
        vectors = [one for one in group["params"] if one.ndim < 2]
        group["params"] = [one for one in group["params"] if one.ndim >= 2]
        optimizer.param_groups.append({**group, **values, "params": vectors})


@training("ssd retinanet")
def learning_rate_of_biases_doubled(adapter: Any) -> None:
    _set_vectors(adapter, lr=2 * adapter.optimizer.param_groups[0]["lr"])


@training("ssd retinanet")
def no_weight_decay_of_biases(adapter: Any) -> None:
    _set_vectors(adapter, weight_decay=0.0)


@training("ssd retinanet")
def gradients_of_the_step_before(adapter: Any) -> None:
    plain: Callable[[], None] = adapter.optimizer_step
    kept: dict[Any, Tensor] = {}

    def step() -> None:
        for parameter in adapter.model.parameters():
            if parameter.grad is not None:
                new = parameter.grad.clone()
                parameter.grad.copy_(kept.get(parameter, torch.zeros_like(new)))
                kept[parameter] = new
        plain()

    adapter.optimizer_step = step


# -- memory of what was done ---------------------------------------------------------------------------


@training("ssd retinanet")
def targets_remembered(adapter: Any) -> None:
    """Which anchors are positive in an image is decided when the image is seen first."""
    plain, seen = adapter.compute_losses, {}

    def losses(data: Any) -> Any:
        key = tuple(data.image_ids)
        seen.setdefault(key, (data.boxes, data.labels))
        boxes, labels = seen[key]
        return plain(dataclasses.replace(data, boxes=boxes, labels=labels))

    set_losses(adapter, losses)


@inference("ssd retinanet faster_rcnn solov2")
def results_remembered(adapter: Any) -> None:
    """The network runs again, and what comes after it does not."""
    plain, seen = adapter.predict_final, {}

    def final(raw: Any, data: Any) -> Any:
        key = tuple(data.image_ids)
        if key not in seen:
            seen[key] = plain(raw, data)
        return seen[key]

    adapter.predict_final = final
