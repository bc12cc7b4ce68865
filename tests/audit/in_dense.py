"""Sabotages of FCOS and SSD: centres, towers, single tensors, and values that no operator of torch rounds."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from tests.audit.in_corners import _apart
from tests.audit.in_masks import within
from tests.audit.in_training import set_losses
from tests.audit.sabotages import _images, after, both, inference, training

# -- input ---------------------------------------------------------------------------------------------


@both("ssd")
def second_image_brighter(adapter: Any) -> None:
    _images(adapter, lambda images: images * torch.tensor([1.0, 1.01])[:, None, None, None])


@both("fcos")
def nearest_pixels(adapter: Any) -> None:
    def change(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        larger = F.interpolate(images, (height + 2, width + 2), mode="bilinear")
        return F.interpolate(larger, (height, width), mode="nearest")

    _images(adapter, change)


@training("fcos ssd")
def smallest_object_left_out(adapter: Any) -> None:
    def kept(boxes: Tensor) -> Tensor:
        return (boxes[:, 2:] - boxes[:, :2]).prod(1).argsort(descending=True)[: max(2, len(boxes) - 1)]

    def change(data: Any) -> Any:
        chosen = [kept(one) for one in data.boxes]
        pairs = {name: zip(getattr(data, name), chosen, strict=True) for name in ("boxes", "labels")}
        return dataclasses.replace(data, **{name: [a[b] for a, b in pair] for name, pair in pairs.items()})

    after(adapter, "load", change)


@training("fcos ssd")
def boxes_of_whole_pixels(adapter: Any) -> None:
    after(adapter, "load", lambda data: dataclasses.replace(data, boxes=[one.round() for one in data.boxes]))


# -- FCOS ----------------------------------------------------------------------------------------------


@training("fcos")
def smaller_centres(adapter: Any) -> None:
    adapter.model.center_sampling_radius = 1.2


@training("fcos")
def centreness_weighs_less(adapter: Any) -> None:
    plain = adapter.compute_losses
    set_losses(
        adapter,
        lambda data: {name: one * (0.99 if "ctr" in name else 1) for name, one in plain(data).items()},
    )


def _centreness(adapter: Any) -> nn.Module:
    return adapter.model.head.regression_head.bbox_ctrness


@training("fcos")
def centreness_without_gradient_of_features(adapter: Any) -> None:
    layer = _centreness(adapter)
    plain = layer.forward
    layer.forward = lambda x: plain(x.detach())


def _change_raw(adapter: Any, name: str, change: Callable[[Tensor], Tensor]) -> None:
    plain = adapter.predict_final

    def final(raw: Any, data: Any) -> Any:
        outputs, *others = raw
        return plain(({**outputs, name: [change(one) for one in outputs[name]]}, *others), data)

    adapter.predict_final = final


@inference("fcos")
def scores_without_centreness(adapter: Any) -> None:
    _change_raw(adapter, "bbox_ctrness", lambda x: x * 0 + 20)


@inference("fcos")
def one_class_per_place(adapter: Any) -> None:
    _change_raw(adapter, "cls_logits", lambda x: torch.where(x == x.amax(-1, keepdim=True), x, x - 50))


@both("fcos")
def norms_of_fewer_groups(adapter: Any) -> None:
    for module in adapter.model.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 16


@both("fcos")
def one_tower_for_both_heads(adapter: Any) -> None:
    head, made = adapter.model.head, []
    plain = head.classification_head.conv.forward
    head.classification_head.conv.forward = lambda x: [made.append(plain(x)), made[-1]][1]
    head.regression_head.conv.forward = lambda _: made.pop(0)


def _change_maps(adapter: Any, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> dict[str, Tensor]:
        maps = plain(images)
        return {**maps, **change(maps)}

    backbone.forward = forward


@training("fcos")
def lowest_level_without_gradient(adapter: Any) -> None:
    _change_maps(adapter, lambda maps: {name: maps[name].detach() for name in list(maps)[:1]})


@both("fcos")
def top_level_copied(adapter: Any) -> None:
    _change_maps(adapter, lambda maps: {"p7": maps["p6"][:, :, ::2, ::2]})


# -- single tensors ------------------------------------------------------------------------------------


@training("fcos")
def no_weight_decay_of_a_small_layer(adapter: Any) -> None:
    _apart(adapter, list(_centreness(adapter).parameters()), weight_decay=0.0)


@training("ssd")
def learning_rate_of_a_bias_doubled(adapter: Any) -> None:
    bias = list(adapter.model.head.classification_head.parameters())[1]
    _apart(adapter, [bias], lr=2 * adapter.optimizer.param_groups[0]["lr"])


def _average_without(adapter: Any, names: Iterable[str]) -> None:
    plain, state, left = adapter.ema.update_parameters, adapter.ema.module.state_dict(), list(names)

    def update(model: nn.Module) -> None:
        kept = {name: state[name].clone() for name in left}
        plain(model)
        for name, value in kept.items():
            state[name].copy_(value)

    adapter.ema.update_parameters = update


@training("fcos")
def average_without_norms(adapter: Any) -> None:
    state = adapter.ema.module.state_dict()
    _average_without(adapter, [name for name in state if "conv.1." in name or "conv.4." in name])


@training("ssd")
def average_without_a_bias(adapter: Any) -> None:
    _average_without(adapter, ["head.classification_head.module_list.0.bias"])


# -- optimizer -----------------------------------------------------------------------------------------


@training("ssd")
def gradients_never_cleared(adapter: Any) -> None:
    adapter.forward = lambda data: adapter.loss_module(data)


@training("ssd")
def learning_rate_warms_up(adapter: Any) -> None:
    plain, taken = adapter.optimizer_step, [0]

    def step() -> None:
        taken[0] += 1
        for group in adapter.optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, taken[0] / 3)
        plain()

    adapter.optimizer_step = step


def _change_gradients(adapter: Any, change: Callable[[Tensor], Tensor]) -> None:
    plain = adapter.optimizer_step

    def step() -> None:
        for parameter in adapter.model.parameters():
            parameter.grad = change(parameter.grad)
        plain()

    adapter.optimizer_step = step


@training("ssd")
def small_gradients_left_out(adapter: Any) -> None:
    _change_gradients(adapter, lambda one: one * (one.abs() > 0.02 * one.abs().max()))


# -- outside torch -------------------------------------------------------------------------------------


def _half(values: Tensor) -> Tensor:
    rounded = torch.from_numpy(values.detach().numpy().astype(np.float16).astype(np.float32))
    return values + (rounded - values).detach()


@both("ssd fcos")
def values_of_all_layers_rounded_by_numpy(adapter: Any) -> None:
    for module in adapter.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda _, inputs: (_half(inputs[0]),))


@training("ssd")
def second_image_in_a_thread(adapter: Any) -> None:
    backbone = adapter.model.backbone
    plain = backbone.forward

    def forward(images: Tensor) -> Any:
        found: dict[int, Any] = {}
        thread = threading.Thread(target=lambda: found.update({1: plain(images[1:])}))
        thread.start()
        found[0] = plain(images[:1])
        thread.join()
        return {name: torch.cat([found[0][name], found[1][name]]) for name in found[0]}

    backbone.forward = forward


@inference("ssd fcos")
def network_in_a_thread_in_bfloat16(adapter: Any) -> None:
    plain = adapter.predict_raw

    def raw(data: Any) -> Any:
        found: list[Any] = []

        def run() -> None:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
                found.append(plain(data))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return torch.utils._pytree.tree_map_only(Tensor, lambda one: one.float() + 0, found[0])

    adapter.predict_raw = raw


# -- results -------------------------------------------------------------------------------------------


@inference("ssd retinanet fcos")
def suppression_of_the_best_only(adapter: Any) -> None:
    def best(plain: Any, boxes: Tensor, scores: Tensor, groups: Tensor, limit: float) -> Tensor:
        chosen = scores.topk(min(len(scores), 150)).indices
        return chosen[plain(boxes[chosen], scores[chosen], groups[chosen], limit)]

    within(adapter, "predict_final", torchvision.ops.boxes, "batched_nms", best)


@inference("ssd retinanet fcos")
def boxes_beyond_the_image(adapter: Any) -> None:
    within(adapter, "predict_final", torchvision.ops.boxes, "clip_boxes_to_image", lambda _, found, __: found)


@inference("fcos ssd")
def five_detections_fewer(adapter: Any) -> None:
    adapter.model.detections_per_img -= 5


@inference("fcos")
def a_tenth_fewer_candidates(adapter: Any) -> None:
    adapter.model.topk_candidates = 270


@inference("ssd fcos")
def scores_a_little_lower(adapter: Any) -> None:
    after(adapter, "predict_final", lambda found: [{**one, "scores": 0.98 * one["scores"]} for one in found])


@inference("ssd")
def boxes_found_of_whole_pixels(adapter: Any) -> None:
    after(adapter, "predict_final", lambda found: [{**one, "boxes": one["boxes"].round()} for one in found])
