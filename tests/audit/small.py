"""Small detectors behind the real adapters, so that an arm is audited in a second or two."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.ssd import SSD
from torchvision.models.resnet import BasicBlock, ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d

from adapters.native.adapter import Adapter as NativeAdapter
from adapters.torchvision.adapter import Adapter as TorchvisionAdapter
from adapters.torchvision.adapter import AlreadyPrepared, _hand_over
from bench.judge.audit import Audit
from bench.judge.audit import audit as judge
from bench.judge.observations import summary
from bench.recipe.workload import Workload
from bench.record.models import ArmRecord, Losses
from bench.worker.__main__ import Rotation
from bench.worker.api import Batch, Job
from bench.worker.audit import audit, keep, look
from bench.worker.probe import phases_of, run_block
from detectors.solov2_targets import with_pairs

SIZE = (96, 128)
CLASSES = ["cat", "dog", "fox"]
MODELS = {
    "retinanet": "retinanet_r50_fpn",
    "faster_rcnn": "faster_rcnn_r50_fpn",
    "ssd": "ssd300_vgg16",
    "solov2": "solov2_light_r50_fpn",
    "mask_rcnn": "mask_rcnn_r50_fpn",
    "fcos": "fcos_r50_fpn",
}


def batches() -> list[Batch]:
    """Three batches of two images with smooth content, objects in both, the second image lower than its padding."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(3):
        height, width = SIZE
        sizes = np.array([[height, width], [height - 16, width]])
        coarse = rng.standard_normal((2, 3, 24, 32))
        images = coarse.repeat(4, 2).repeat(4, 3) + 0.3 * rng.standard_normal((2, 3, height, width))
        images[1, :, height - 16 :] = 0
        corners = rng.uniform([2, 2], [50, 30], (2, 3, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(20, 44, (2, 3, 2))], axis=2).astype(np.float32)
        masks = np.zeros((2, 3, height, width), np.uint8)
        for image in range(2):
            for mask, (x1, y1, x2, y2) in zip(masks[image], boxes[image].astype(int), strict=True):
                mask[y1:y2, x1:x2] = 1
        made.append(
            Batch(
                images=images.astype(np.float32),
                image_sizes=sizes,
                original_sizes=2 * sizes,
                image_ids=np.array([2 * number, 2 * number + 1]),
                boxes=tuple(boxes),
                labels=tuple(rng.integers(0, len(CLASSES), (2, 3))),
                masks=tuple(masks),
            )
        )
    return made


# -- models ---------------------------------------------------------------------------


def _pyramid(norm: Any, levels: list[int], extra: Any = None) -> nn.Module:
    """A residual network of four blocks and a pyramid of 64 channels."""
    body = ResNet(BasicBlock, [1, 1, 1, 1], norm_layer=norm)
    layers = {f"layer{level}": str(place) for place, level in enumerate(levels)}
    channels = [32 << level for level in levels]
    return BackboneWithFPN(body, layers, channels, 64, extra or LastLevelMaxPool())


class Levels(nn.Module):
    """Three feature maps for SSD."""

    out_channels = (64, 64, 64)

    def __init__(self) -> None:
        super().__init__()
        strides = (4, 2, 2, 2)
        channels = (3, 32, 64, 64, 64)
        self.layers = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 5 if stride == 4 else 3, stride, 2 if stride == 4 else 1)
            for i, stride in enumerate(strides)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = {}
        for index, layer in enumerate(self.layers):
            x = layer(x).relu()
            if index:
                maps[str(index)] = x
        return maps


def _detector(name: str, norm: Any, limits: dict[str, Any]) -> nn.Module:
    if name == "retinanet":
        backbone = _pyramid(norm, [2, 3, 4], LastLevelP6P7(64, 64))
        return RetinaNet(backbone, len(CLASSES), topk_candidates=300, **limits)
    if name == "ssd":
        anchors = DefaultBoxGenerator([[2], [2, 3], [2]], scales=[0.15, 0.3, 0.5, 0.8])
        return SSD(Levels(), anchors, SIZE, len(CLASSES) + 1, topk_candidates=100, **limits)
    if name == "fcos":
        backbone = _pyramid(norm, [2, 3, 4], LastLevelP6P7(64, 64))
        return FCOS(backbone, len(CLASSES), topk_candidates=300, **limits)
    limits = {f"box_{key}": value for key, value in limits.items()}
    masks: dict[str, Any] = {}
    if name == "mask_rcnn":
        predictor = MaskRCNNPredictor(32, 32, len(CLASSES) + 1)
        masks = {"mask_head": MaskRCNNHeads(64, (32, 32), 1), "mask_predictor": predictor}
    return (MaskRCNN if masks else FasterRCNN)(
        _pyramid(norm, [1, 2, 3, 4]),
        box_head=TwoMLPHead(64 * 7 * 7, 128),
        box_predictor=FastRCNNPredictor(128, len(CLASSES) + 1),
        rpn_pre_nms_top_n_train=300, rpn_post_nms_top_n_train=200, rpn_pre_nms_top_n_test=200,
        rpn_post_nms_top_n_test=100, box_batch_size_per_image=128, **masks, **limits,
    )  # fmt: skip


def spread(model: nn.Module) -> None:
    """Random weights whose scores differ from place to place, so that something is detected."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.05)
            if name.endswith(("cls_logits", "cls_score")) or "classification_head.module_list" in name:
                module.weight.data.mul_(0.2)
            elif name.endswith(("bbox_reg", "bbox_pred")) or "regression_head.module_list" in name:
                module.weight.data.mul_(0.05)
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            module.weight.data.uniform_(0.3, 0.6)


class SmallTorchvision(TorchvisionAdapter):
    """torchvision's detectors on small backbones."""

    def build_model(self) -> nn.Module:
        name = next(short for short, model in MODELS.items() if model == self.workload["model"])
        limits = {
            "score_thresh": self.workload["score_threshold"],
            "detections_per_img": self.workload["max_detections"],
        }
        self.label_offset = 0 if name in ("retinanet", "fcos") else 1
        self.uses_masks = name == "mask_rcnn"
        norm = FrozenBatchNorm2d if self.workload["frozen_bn"] else nn.BatchNorm2d
        model = _detector(name, norm, limits)
        model.transform = AlreadyPrepared()
        if not name.endswith("rcnn"):
            model.postprocess_detections = _hand_over
        spread(model)
        if name == "fcos":  # boxes of some size, so that their loss has a gradient
            nn.init.constant_(model.head.regression_head.bbox_reg.bias, 2.0)
        return model

    def stages(self) -> Any:
        return [[]] * 5


class SmallNative(NativeAdapter):
    """The project's own light SOLOv2, with one block in every stage of the backbone."""

    def build_model(self) -> nn.Module:
        self.job = dataclasses.replace(
            self.job, weights="none"
        )  # no calibration: there is no folder of batches
        model = super().build_model()
        self.job = dataclasses.replace(self.job, weights=None)
        for index, stage in enumerate(model.backbone.stages):
            model.backbone.stages[index] = stage[:1]
        model.levels = [
            dataclasses.replace(level, cells=cells)
            for level, cells in zip(model.levels, (12, 10, 8, 6, 4), strict=True)
        ]
        model.head.grids = tuple(level.cells for level in model.levels)
        model.prepare = partial(with_pairs, levels=model.levels)
        nn.init.constant_(model.head.classes.bias, -1.0)
        return model


def adapter(name: str, task: str = "train", rank: int = 0, **workload: Any) -> Any:
    """A prepared adapter of one of `MODELS`, of one rank of the workload's."""
    settings = {"frozen_stages": 0, "ema": task == "train", "score_threshold": 0.1, **workload}
    full = Workload(task=task, model=MODELS[name], input={"size": SIZE}, **settings)
    job = Job(
        workload=full.model_dump(mode="json"), options={}, model={"name": MODELS[name]}, classes=CLASSES,
        category_ids=[1, 2, 3], dataset={}, weights=None, batches="", threads=1, rank=rank, world_size=full.ranks,
        scratch="",
    )  # fmt: skip
    made: Any = (SmallNative if name == "solov2" else SmallTorchvision)(job)
    made.prepare()
    return made


def record(made: Any, label: str) -> ArmRecord:
    """The record of an arm with what was observed of it, and nothing that it says of itself."""
    return record_of(made.workload, [audit(made, batches())], label)


def record_of(workload: Any, seen: list[Any], label: str) -> ArmRecord:
    """The same from the audits of all ranks."""
    return ArmRecord(
        id=label, codebase="small", label=label, cell="all", status="ok", workload=dict(workload),
        audit={"ranks": [summary(one, None) for one in seen]},
    )  # fmt: skip


def timed(made: Any, source: Rotation, found: int = 1) -> list[Losses]:
    """What is kept of a warm-up and two blocks of one launch, with the detections of a step of the first."""
    phases = phases_of(made, source)
    seen = []
    for round_ in range(-1, 2):
        one = run_block(made, phases, 2, found=None if round_ else found)
        done = {**one["done"], "steps": 2.0 * (round_ + 2)}
        seen.append(Losses(launch=0, round=round_, losses=one["losses"], done=done, found=one["found"]))
    return seen


def with_closing(one: ArmRecord, made: Any, sabotage: Callable[[Any], None] = lambda _: None) -> ArmRecord:
    """The record of an arm that was timed with this adapter, changed by a sabotage then, and watched once more."""
    source = Rotation([made.convert(batch) for batch in batches()])
    with tempfile.TemporaryDirectory() as folder:
        state = f"{folder}/state"
        if made.job.training:
            keep(made, state)
        blocks = timed(made, source)
        sabotage(made)
        closing = [summary(look(made, batches(), state, source), None)]
    return one.model_copy(update={"losses": blocks, "audit": {**one.audit, "closing": closing}})


def verdict(arm: ArmRecord, baseline: ArmRecord) -> Audit:
    return judge(arm, baseline)


def put_average_off(adapter: Any, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Until somebody asks for it, which no timed step does. ``meanwhile``: done in its place."""
    plain, found, due = adapter.ema_update, adapter.averaged_model, []

    def averaged() -> Any:
        while due:
            due.pop()
            plain()
        return found()

    def update() -> None:
        meanwhile()
        due.append(1)

    adapter.ema_update, adapter.averaged_model = update, averaged
