"""Ways to do other work than is said: each one changes a prepared adapter, whose `describe` would not tell."""

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


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _after(adapter: Any, name: str, change: Callable[..., Any]) -> None:
    """Let ``change`` have what a method of the adapter returns."""
    plain = getattr(adapter, name)
    setattr(adapter, name, lambda *args: change(plain(*args)))


def _losses(adapter: Any, losses: Callable[[Any], Any]) -> None:
    adapter.loss_module._compute_losses = losses


def _images(adapter: Any, change: Callable[[Tensor], Tensor]) -> None:
    _after(adapter, "load", lambda data: dataclasses.replace(data, images=change(data.images)))


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


def _first_image(data: Any) -> Any:
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
        return data if taken[0] == 1 else _first_image(data)

    _after(adapter, "load", change)


@training("retinanet ssd")
def an_object_left_out(adapter: Any) -> None:
    def change(data: Any) -> Any:
        return dataclasses.replace(
            data, boxes=[data.boxes[0][:-1], *data.boxes[1:]], labels=[data.labels[0][:-1], *data.labels[1:]]
        )

    _after(adapter, "load", change)


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
    plain = adapter.load

    def load(data: Any) -> Any:
        torch.set_num_threads(2)
        return plain(data)

    adapter.load = load


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


# -- loss ---------------------------------------------------------------------------


@training("retinanet faster_rcnn")
def half_the_batch_in_the_loss(adapter: Any) -> None:
    plain = adapter.compute_losses

    def losses(data: Any) -> Any:
        adapter.model.backbone(data.images)  # the work of the forward pass is done
        return plain(_first_image(data))

    _losses(adapter, losses)


@training("retinanet ssd solov2")
def backward_of_one_term(adapter: Any) -> None:
    adapter.backward = lambda losses: next(iter(losses.values())).backward()


@training("retinanet faster_rcnn")
def terms_that_cancel(adapter: Any) -> None:
    def change(losses: Any) -> Any:
        (first, a), (second, b), *_ = losses.items()
        return {**losses, first: a * 0.9, second: b + 0.1 * a.detach()}

    plain = adapter.compute_losses
    _losses(adapter, lambda data: change(plain(data)))


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
    _losses(adapter, lambda data: change(plain(data)))


@training("solov2")
def masks_of_half_the_objects(adapter: Any) -> None:
    def change(data: Any) -> Any:
        return dataclasses.replace(
            data, **{name: [one[:2] for one in getattr(data, name)] for name in ("boxes", "labels", "masks")}
        )

    _after(adapter, "load", change)


# -- backward, optimizer, average ---------------------------------------------------------------------------


@training("retinanet faster_rcnn ssd solov2")
def no_backward(adapter: Any) -> None:
    adapter.backward = _nothing


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
    adapter.optimizer_step = _nothing


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
    adapter.ema_update = _nothing


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

    _after(adapter, "predict_final", change)


@inference("ssd")
def higher_score_threshold(adapter: Any) -> None:
    def change(found: Any) -> Any:
        kept = [one["scores"] > 0.45 for one in found]
        return [
            {name: value[keep] for name, value in one.items()} for one, keep in zip(found, kept, strict=True)
        ]

    _after(adapter, "predict_final", change)


@inference("faster_rcnn")
def boxes_of_the_input(adapter: Any) -> None:
    """Not scaled to the file."""

    def change(found: Any) -> Any:
        return [{**one, "boxes": one["boxes"] / 2} for one in found]

    _after(adapter, "predict_final", change)


@inference("solov2")
def no_decay_of_scores(adapter: Any) -> None:
    adapter.model.nms_sigma = 1e-6 if adapter.model.nms_kernel == "gaussian" else adapter.model.nms_sigma
    adapter.model.candidates = 20


@inference("solov2")
def larger_masks(adapter: Any) -> None:
    adapter.model.mask_threshold = 0.3


@inference("solov2")
def masks_of_the_input(adapter: Any) -> None:
    """Not scaled to the file."""

    def change(found: Any) -> Any:
        return [{**one, "masks": one["masks"][:, ::2, ::2]} for one in found]

    _after(adapter, "predict_final", change)


@inference("retinanet")
def one_image_only(adapter: Any) -> None:
    plain = types.MethodType(type(adapter).predict_raw, adapter)

    def raw(data: Any) -> Any:
        first = plain(_first_image(data))
        return plain(dataclasses.replace(data, images=data.images * 0 + data.images[:1])) if first else first

    adapter.predict_raw = raw
