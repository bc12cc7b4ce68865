"""Ultralytics' own models, losses and post-processing; see README.md. SPDX-License-Identifier: AGPL-3.0-only."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_VERBOSE", "false")

import torch
import ultralytics
from torch import Tensor, nn
from torchvision.ops import box_convert
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel, RTDETRDetectionModel, yaml_model_load
from ultralytics.utils.nms import non_max_suppression

from adapters.torch_common import TensorBatch, TorchAdapter, renormalised
from bench.worker.api import Batch

NMS_THRESHOLD = 0.7  # Ultralytics' default
PADDING = 114 / 255


class Adapter(TorchAdapter):
    version = ultralytics.__version__
    package = "ultralytics"
    packages = ("ultralytics", "opencv-python")
    uses_masks = False
    ddp_arguments = {"forward_sync_buffers": False, "find_unused_parameters": True}

    # -- model -----------------------------------------------------------------------------------------------

    @staticmethod
    def find_model(name: str) -> None:
        if not name.endswith((".yaml", ".yml")):
            raise ValueError(f"{name}: name a configuration of Ultralytics, such as yolo11n.yaml")
        try:
            yaml_model_load(name)
        except FileNotFoundError:
            raise ValueError(f"Ultralytics has no configuration {name}, and there is no such file") from None

    def build_model(self) -> nn.Module:
        name = self.job.model["name"]
        self.find_model(name)
        self.is_rtdetr = "rtdetr" in name
        kind = RTDETRDetectionModel if self.is_rtdetr else DetectionModel
        model = kind(name, nc=len(self.job.classes), verbose=False)
        model.args, model.nc = get_cfg(), len(self.job.classes)  # as its trainer sets them, for the losses
        model.names = dict(enumerate(self.job.classes))
        return model

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        layers = self.model.model
        if type(layers[0]).__name__ != "ResNetLayer":
            return ()
        return [[layers[0], layers[1]], [layers[2]], [layers[3]], [layers[4]]]

    def _prepare_training(self) -> None:
        if self.workload["frozen_bn"]:
            for layer in self.model.model[: len(self.model.yaml["backbone"])].modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.eval()
                    layer.requires_grad_(False)
        super()._prepare_training()

    def postprocess_settings(self) -> dict[str, Any]:
        settings = {
            "score_threshold": self.workload["score_threshold"],
            "max_detections": self.workload["max_detections"],
        }
        return settings if self.is_rtdetr else {**settings, "nms_iou_threshold": NMS_THRESHOLD}

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> TensorBatch:
        """Ultralytics takes RGB of 0..1 and pads with grey; the pixels stay those of the shared batch."""
        data: TensorBatch = super().convert(batch)
        images = renormalised(data.images, data.image_sizes, (0, 0, 0), (255, 255, 255), pad=PADDING)
        return replace(data, images=images)

    def compute_losses(self, data: TensorBatch) -> dict[str, Tensor]:
        height, width = data.images.shape[-2:]
        counts = torch.tensor([len(labels) for labels in data.labels], device=data.images.device)
        boxes = box_convert(torch.cat(data.boxes), "xyxy", "cxcywh")
        batch = {
            "img": data.images,
            "batch_idx": torch.arange(len(counts), device=counts.device).repeat_interleave(counts),
            "cls": torch.cat(data.labels).float()[:, None],
            "bboxes": boxes / boxes.new_tensor([width, height, width, height]),
        }
        return {"loss_total": self.model.loss(batch)[0].sum()}

    def predict_raw(self, data: TensorBatch) -> Tensor:
        found = self.model(data.images)
        return found[0] if isinstance(found, tuple | list) else found

    def predict_final(self, raw: Tensor, data: TensorBatch) -> list[dict[str, Tensor]]:
        threshold, most = self.workload["score_threshold"], self.workload["max_detections"]
        if self.is_rtdetr:
            height, width = data.images.shape[-2:]
            corners = box_convert(raw[..., :4], "cxcywh", "xyxy")
            corners = corners * corners.new_tensor([width, height, width, height])
            rows = [
                torch.cat([boxes, scored], dim=1)[scored[:, 0] > threshold]
                for boxes, scored in zip(corners, raw[..., 4:6], strict=True)
            ]
        else:
            rows = non_max_suppression(
                raw.clone(), threshold, NMS_THRESHOLD, max_det=most, nc=len(self.job.classes)
            )
        sizes = zip(rows, data.image_sizes, data.original_sizes, strict=True)
        return [one_image(one, size, original, most) for one, size, original in sizes]


def one_image(rows: Tensor, size: tuple[int, int], original: tuple[int, int], most: int) -> dict[str, Tensor]:
    """Rows [N, 6] of one image (corners, score, class) in pixels of its file, the best first."""
    order = rows[:, 4].argsort(descending=True, stable=True)[:most]
    scale = rows.new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
    limit = rows.new_tensor([original[1], original[0]] * 2)
    boxes = (rows[order, :4] * scale).clamp(min=0).minimum(limit)
    return {"boxes": boxes, "scores": rows[order, 4], "labels": rows[order, 5].long()}
