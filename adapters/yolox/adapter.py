"""YOLOX as the package pixeltable-yolox has it; see README.md for what is changed and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import yolox
from torch import Tensor, nn
from torchvision.ops import box_convert
from yolox.config import YoloxConfig
from yolox.utils import ModelEMA, postprocess

from adapters.torch_common import TensorBatch, TorchAdapter, renormalised
from bench.worker.api import Batch

NMS_THRESHOLD = 0.65
PADDING = 114.0


class Adapter(TorchAdapter):
    version = yolox.__version__
    package = "yolox"
    packages = ("pixeltable-yolox",)
    uses_masks = False

    # -- model -----------------------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        name = self.job.model["name"]
        config = YoloxConfig.get_named_config(name)
        if config is None:
            raise ValueError(f"yolox knows no {name}; it has yolox_nano, yolox_tiny, yolox_s, _m, _l and _x")
        config.num_classes = len(self.job.classes)
        model = config.get_model()
        self.statistics = batch_norms(model.backbone.backbone) if self.workload["frozen_bn"] else []
        for layer in self.statistics:
            layer.requires_grad_(False)
        return model

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        body = self.model.backbone.backbone
        return [[body.stem, body.dark2], [body.dark3], [body.dark4], [body.dark5]]

    def compiled_modules(self) -> Sequence[nn.Module]:
        return (self.model.backbone,)

    def _prepare_training(self) -> None:
        for layer in self.statistics:
            layer.eval()
        super()._prepare_training()

    def _prepare_ema(self, decay: float) -> None:
        self.own_ema = ModelEMA(self.model, decay)

    def ema_update(self) -> None:
        self.own_ema.update(self.model)

    def averaged_model(self) -> nn.Module | None:
        return self.own_ema.ema if hasattr(self, "own_ema") else None

    def ema_state(self) -> dict[str, Any]:
        if not hasattr(self, "own_ema"):
            return {}
        return {"model": self.own_ema.ema.state_dict(), "updates": self.own_ema.updates}

    def load_ema_state(self, state: dict[str, Any]) -> None:
        if state:
            self.own_ema.ema.load_state_dict(state["model"])
            self.own_ema.updates = state["updates"]

    def postprocess_settings(self) -> dict[str, Any]:
        return {
            "score_threshold": self.workload["score_threshold"],
            "nms_iou_threshold": NMS_THRESHOLD,
            "max_detections": self.workload["max_detections"],
        }

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> TensorBatch:
        """YOLOX takes BGR of 0..255 and pads with grey; the pixels stay those of the shared batch."""
        data: TensorBatch = super().convert(batch)
        images = renormalised(data.images, data.image_sizes, (0, 0, 0), (1, 1, 1), bgr=True, pad=PADDING)
        return replace(data, images=images)

    def compute_losses(self, data: TensorBatch) -> dict[str, Tensor]:
        found = self.model(data.images, targets_of(data))
        names = ("iou_loss", "conf_loss", "cls_loss")
        return {name: found[name] for name in names}

    def predict_raw(self, data: TensorBatch) -> Tensor:
        return self.model(data.images)

    def predict_final(self, raw: Tensor, data: TensorBatch) -> list[dict[str, Tensor]]:
        classes = len(self.job.classes)
        # It writes corners over the centres that it is given.
        found = postprocess(raw.clone(), classes, self.workload["score_threshold"], NMS_THRESHOLD)
        sizes = zip(found, data.image_sizes, data.original_sizes, strict=True)
        return [self.one_image(rows, size, original) for rows, size, original in sizes]

    def one_image(
        self, rows: Tensor | None, size: tuple[int, int], original: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Rows [N, 7] of one image (corners, objectness, score and number of the class) in pixels of its file."""
        if rows is None:
            rows = torch.zeros(0, 7, device=self.device)
        scores, order = (rows[:, 4] * rows[:, 5]).sort(descending=True, stable=True)
        order = order[: self.workload["max_detections"]]
        scale = rows.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
        return {
            "boxes": rows[order, :4] * scale,
            "scores": scores[: len(order)],
            "labels": rows[order, 6].long(),
        }


def batch_norms(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def targets_of(data: TensorBatch) -> Tensor:
    """[B, most objects of an image, 5]: label, centre and size in pixels of the input; rows of zeros fill up."""
    most = max(1, *(len(labels) for labels in data.labels))
    targets = torch.zeros(len(data.labels), most, 5, device=data.images.device)
    for target, labels, boxes in zip(targets, data.labels, data.boxes, strict=True):
        target[: len(labels), 0] = labels
        target[: len(labels), 1:] = box_convert(boxes, "xyxy", "cxcywh")
    return targets
