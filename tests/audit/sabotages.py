"""Ways to do other work than is said: each one changes a prepared adapter, whose `describe` would not tell.

Here are those of input, arithmetic and model; `in_training` and `in_inference` have the others.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops.misc import FrozenBatchNorm2d

Patch = Callable[[Any], None]
TRAINING: dict[str, tuple[str, Patch]] = {}
INFERENCE: dict[str, tuple[str, Patch]] = {}


def _for(models: str, table: dict[str, tuple[str, Patch]]) -> Callable[[Patch], Patch]:
    def register(patch: Patch) -> Patch:
        for model in models.split():
            table[f"{model}-{patch.__name__}"] = (model, patch)
        return patch

    return register


def training(models: str) -> Callable[[Patch], Patch]:
    return _for(models, TRAINING)


def inference(models: str) -> Callable[[Patch], Patch]:
    return _for(models, INFERENCE)


def both(models: str) -> Callable[[Patch], Patch]:
    return lambda patch: inference(models)(training(models)(patch))


def nothing(*_: Any, **__: Any) -> None:
    return None


def after(adapter: Any, name: str, change: Callable[..., Any]) -> None:
    """Let ``change`` have what a method of the adapter returns."""
    plain = getattr(adapter, name)
    setattr(adapter, name, lambda *args: change(plain(*args)))


def before_loading(adapter: Any, act: Callable[[], Any]) -> None:
    """Do something at the beginning of every step."""
    plain = adapter.load

    def load(data: Any) -> Any:
        act()
        return plain(data)

    adapter.load = load


def _images(adapter: Any, change: Callable[[Tensor], Tensor]) -> None:
    after(adapter, "load", lambda data: dataclasses.replace(data, images=change(data.images)))


# -- input ---------------------------------------------------------------------------


@both("retinanet faster_rcnn solov2")
def bgr(adapter: Any) -> None:
    _images(adapter, lambda images: images.flip(1))


@both("retinanet ssd")
def mirrored(adapter: Any) -> None:
    _images(adapter, lambda images: images.flip(3))


@both("faster_rcnn solov2")
def half_resolution(adapter: Any) -> None:
    def change(images: Tensor) -> Tensor:
        return F.interpolate(F.interpolate(images, scale_factor=0.5), scale_factor=2.0)

    _images(adapter, change)


@both("retinanet ssd")
def one_pixel_smaller(adapter: Any) -> None:
    def change(images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return F.pad(F.interpolate(images, (height - 1, width - 1), mode="bilinear"), (0, 1, 0, 1))

    _images(adapter, change)


@both("ssd")
def moved_by_a_pixel(adapter: Any) -> None:
    _images(adapter, lambda images: images.roll(1, 3))


@both("retinanet")
def normalised_twice(adapter: Any) -> None:
    _images(adapter, lambda images: (images - 0.01) / 1.01)


def first_image(data: Any) -> Any:
    def one(field: Any) -> Any:
        return field[:1]

    return dataclasses.replace(
        data,
        images=data.images[:1],
        **{f.name: one(getattr(data, f.name)) for f in dataclasses.fields(data)[1:]},
    )


@training("retinanet faster_rcnn ssd solov2")
def one_image_of_two_from_the_second_step(adapter: Any) -> None:
    taken = [0]

    def change(data: Any) -> Any:
        taken[0] += 1
        return data if taken[0] == 1 else first_image(data)

    after(adapter, "load", change)


@training("retinanet ssd")
def an_object_left_out(adapter: Any) -> None:
    def change(data: Any) -> Any:
        return dataclasses.replace(
            data, boxes=[data.boxes[0][:-1], *data.boxes[1:]], labels=[data.labels[0][:-1], *data.labels[1:]]
        )

    after(adapter, "load", change)


# -- arithmetic ---------------------------------------------------------------------------


@both("retinanet faster_rcnn ssd solov2")
def bfloat16(adapter: Any) -> None:
    adapter.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)


@both("retinanet")
def weights_rounded_to_bfloat16(adapter: Any) -> None:
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.copy_(parameter.bfloat16().float())


@both("faster_rcnn")
def products_in_less_precision(adapter: Any) -> None:
    plain = adapter.forward if adapter.job.training else adapter.network
    name = "forward" if adapter.job.training else "network"

    def changed(data: Any) -> Any:
        torch.set_float32_matmul_precision("medium")
        return plain(data)

    setattr(adapter, name, changed)


@both("retinanet")
def activations_rounded(adapter: Any) -> None:
    for module in adapter.model.backbone.body.children():
        module.register_forward_hook(lambda _, __, out: out.bfloat16().float())


@both("retinanet ssd")
def one_thread_more(adapter: Any) -> None:
    before_loading(adapter, lambda: torch.set_num_threads(2))


# -- the model ---------------------------------------------------------------------------


@both("retinanet faster_rcnn")
def statistics_of_the_batch(adapter: Any) -> None:
    def normalise(norm: FrozenBatchNorm2d, x: Tensor) -> Tensor:
        mean, var = norm.running_mean.clone(), norm.running_var.clone()
        return F.batch_norm(x, mean, var, norm.weight, norm.bias, training=True)

    for module in adapter.model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.forward = types.MethodType(normalise, module)


@both("retinanet faster_rcnn ssd solov2")
def random_heads(adapter: Any) -> None:
    torch.manual_seed(5)
    heads = ("head", "roi_heads", "rpn")
    with torch.no_grad():
        for name, parameter in adapter.model.named_parameters():
            if name.startswith(heads) and parameter.ndim > 1:
                parameter.copy_(parameter.flatten()[torch.randperm(parameter.numel())].view_as(parameter))


@training("retinanet")
def values_dropped(adapter: Any) -> None:
    tower = adapter.model.head.classification_head.conv
    tower.append(nn.Dropout(0.1))


@training("retinanet")
def recomputed_activations(adapter: Any) -> None:
    layer = adapter.model.backbone.body.layer3
    plain = layer.forward
    layer.forward = lambda x: checkpoint(plain, x, use_reentrant=False)


@both("faster_rcnn")
def other_roi_sampling(adapter: Any) -> None:
    adapter.model.roi_heads.box_roi_pool.sampling_ratio = 1


@both("faster_rcnn")
def fewer_proposals(adapter: Any) -> None:
    adapter.model.rpn._post_nms_top_n = {"training": 40, "testing": 40}


@both("faster_rcnn")
def no_top_level(adapter: Any) -> None:
    adapter.model.backbone.fpn.extra_blocks = None
    generator = adapter.model.rpn.anchor_generator
    generator.sizes, generator.aspect_ratios = generator.sizes[:4], generator.aspect_ratios[:4]
    generator.cell_anchors = generator.cell_anchors[:4]
