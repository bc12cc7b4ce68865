"""The project's own codebase, `detectors`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import detectors
from adapters.common import EndlessBatches, padded_size, resized_size
from adapters.torch_common import TensorBatch, TorchAdapter
from adapters.torch_export import image_size, mark
from bench.worker.api import Description, Job
from bench.worker.batches import load_batches
from detectors import cpu, transforms
from detectors.cascade import CascadeRCNN
from detectors.coco import CocoDetection, Example
from detectors.cpu.deformable import GRADIENT_OPERATOR, OPERATOR
from detectors.cpu.winograd import FLOPS
from detectors.dense import DenseDetector
from detectors.rcnn import ProposalDetector
from detectors.sampling import BalancedSampler
from detectors.solov2 import SOLOv2


class Adapter(TorchAdapter):
    version = version("detection-bench")
    package = "detectors"
    sgd_arguments = {"fused": True}  # as detectors.train: one pass over weights, gradients and momentum

    operators = {
        "deformable convolution": (
            *TorchAdapter.operators["deformable convolution"],
            OPERATOR,
            GRADIENT_OPERATOR,
        )
    }

    flop_formulas = FLOPS

    averaged: detectors.EMA | None = None

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        if job.options.get("channels_last", True):
            self.memory_format = torch.channels_last

    # -- model -----------------------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        cpu.use(self.job.options.get("kernels", "auto"))
        conventions = {name: value for name, value in self.job.options.items() if name == "conventions"}
        if self.job.model["name"] == "solov2_light_r50_vd_fpn_dcn_512":
            conventions = {}  # it has PaddleDetection's, whatever other models of the recipe have
        model = detectors.build(
            self.job.model["name"],
            num_classes=len(self.job.classes),
            frozen_stages=max(0, _or(self.workload["frozen_stages"], 1)),
            frozen_bn=_or(self.workload["frozen_bn"], True),
            score_threshold=self.workload["score_threshold"],
            max_detections=self.workload["max_detections"],
            **conventions,
        )
        mask_heads = getattr(model, "mask_heads", ()) or getattr(model, "mask_head", None) is not None
        self.uses_masks = isinstance(model, SOLOv2) or bool(mask_heads)
        if not self.job.weights:
            batch = load_batches(self.job.batches, 0, 1)[0]
            detectors.calibrate(
                model,
                torch.from_numpy(batch.images).to(torch.get_default_dtype()),
                torch.from_numpy(batch.image_sizes),
            )
        return model

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        backbone = self.model.backbone
        stem = [backbone.stem] if hasattr(backbone, "stem") else []
        return [[*stem, backbone.stages[0]], *([stage] for stage in backbone.stages[1:])]

    def parameter_groups(self) -> list[dict[str, Any]]:
        settings = self.workload["optimizer"]
        return detectors.parameter_groups(
            self.model, lr=settings["lr"], weight_decay=settings["weight_decay"]
        )

    def _prepare_training(self) -> None:
        super()._prepare_training()
        name = self.job.options.get("optimizer", "sgd")
        if name not in ("sgd", "adamw"):
            raise ValueError(f"option optimizer: sgd or adamw, not {name}")
        if name == "adamw":
            settings = self.workload["optimizer"]
            self.optimizer = torch.optim.AdamW(
                self.parameter_groups(), lr=settings["lr"], weight_decay=settings["weight_decay"], fused=True
            )

    def _prepare_ema(self, decay: float) -> None:
        self.averaged = detectors.EMA(self.model, decay, warm_up=self.job.options.get("ema_warm_up", True))

    def compiled_modules(self) -> Sequence[nn.Module]:
        return (
            self.model.backbone,
            self.model.neck,
        )  # what follows has shapes that depend on the predictions

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Any) -> TensorBatch:
        data = super().convert(batch)
        return data if self.uses_masks else replace(data, masks=[])

    def load(self, data: TensorBatch) -> TensorBatch:
        """To the device; and in every step of training what SOLOv2's loader prepares."""
        prepare = getattr(self.model, "prepare", None)
        if prepare is None or not self.job.training:
            return super().load(data)
        targets = prepare(_targets(data), tuple(data.images.shape[2:]))
        return replace(data, pairs=[one.pairs for one in targets]).to(self.device)

    def compute_losses(self, data: TensorBatch) -> dict[str, Tensor]:
        return self.model.losses(data.images, self._sizes(data), _targets(data))

    def predict_raw(self, data: TensorBatch) -> list[detectors.Detections]:
        return self.model.network(data.images, self._sizes(data))

    def predict_final(self, raw: list[detectors.Detections], data: TensorBatch) -> list[dict[str, Tensor]]:
        return [
            {name: value for name, value in found._asdict().items() if value is not None}
            for found in self.model.postprocess(raw, data.image_sizes, data.original_sizes)
        ]

    def export(self, path: str) -> None:
        from detectors.export import export_onnx  # brings the compiler along

        size = image_size(self.workload)
        export_onnx(self.model, size, path, self.job.classes)
        mark(path, self.job.classes)

    def ema_update(self) -> None:
        assert self.averaged is not None
        self.averaged.update()

    def _sizes(self, data: TensorBatch) -> Tensor:
        return torch.tensor(data.image_sizes).to(self.device, non_blocking=True)

    # -- own input -------------------------------------------------------------------------------------------

    def pipeline(self) -> Iterator[TensorBatch]:
        self.batches = iter(
            DataLoader(
                CocoDetection(
                    self.job.dataset["annotations"],
                    self.job.dataset["images"],
                    self.job.dataset["image_ids"],
                    self.job.category_ids,
                    partial(resized_size, size=self.workload["input"]["size"]),
                    masks=self.uses_masks,
                ),
                batch_sampler=EndlessBatches(
                    len(self.job.dataset["image_ids"]),
                    self.workload["batch_size"],
                    self.job.rank,
                    self.job.world_size,
                ),
                num_workers=self.workload["input"]["workers"],
                collate_fn=self.collate,
            )
        )
        return self.batches

    def collate(self, examples: Sequence[Example]) -> TensorBatch:
        sizes = [example.image.shape[:2] for example in examples]
        padded = padded_size(sizes, self.workload["input"]["size"])
        images = transforms.normalised_batch([example.image for example in examples], padded)
        return TensorBatch(
            images=images.contiguous(memory_format=self.memory_format),
            image_sizes=sizes,
            original_sizes=[example.original_size for example in examples],
            image_ids=[example.image_id for example in examples],
            boxes=[example.target.boxes for example in examples],
            labels=[example.target.labels for example in examples],
            masks=[
                transforms.pad_masks(example.target.masks, padded)
                for example in examples
                if example.target.masks is not None
            ],
        )

    @contextlib.contextmanager
    def first_candidates(self) -> Iterator[None]:
        drawn = BalancedSampler.keys
        BalancedSampler.keys = _first_ones  # type: ignore[method-assign]
        try:
            yield
        finally:
            BalancedSampler.keys = drawn  # type: ignore[method-assign]

    # -- facts and state -------------------------------------------------------------------------------------

    def describe(self, data: Any) -> Description:
        description = super().describe(data)
        description.extra["ema"] = self.averaged is not None
        description.kernels = cpu.describe(self.device)
        return description

    def describe_optimizer(self) -> dict[str, Any]:
        groups = self.optimizer.param_groups
        lr = self.workload["optimizer"]["lr"]
        return {
            **super().describe_optimizer(),
            "lr_factors": sorted({round(group["lr"] / lr, 6) for group in groups}) if lr else [],
            "tensors_without_weight_decay": sum(
                len(group["params"]) for group in groups if group["weight_decay"] == 0
            ),
        }

    def postprocess_settings(self) -> dict[str, Any]:
        if isinstance(self.model, SOLOv2):
            return {
                "score_threshold": self.model.score_threshold,
                "max_detections": self.model.max_detections,
                "candidates": self.model.candidates,
                "candidate_score_threshold": self.model.candidate_threshold,
                "mask_threshold": self.model.mask_threshold,
                "nms_kernel": self.model.nms_kernel,
                "nms_sigma": self.model.nms_sigma,
            }
        if isinstance(self.model, DenseDetector):
            return {
                "score_threshold": self.model.score_threshold,
                "nms_iou_threshold": self.model.nms_threshold,
                "max_detections": self.model.max_detections,
                "candidates": self.model.candidates,
            }
        rpn = self.model.rpn
        phase = 0 if self.model.training else 1
        proposals = {
            "proposal_candidates": rpn.pre_nms[phase],
            "proposals": rpn.post_nms[phase],
            "proposal_nms_iou_threshold": rpn.nms_threshold,
        }
        if isinstance(self.model, ProposalDetector):
            final = {"nms_iou_threshold": rpn.nms_threshold, "max_detections": rpn.post_nms[1]}
            return {**final, "candidates": rpn.pre_nms[1], **proposals}
        head = self.model.box_heads[-1] if isinstance(self.model, CascadeRCNN) else self.model.box_head
        return {
            "score_threshold": head.score_threshold,
            "nms_iou_threshold": head.nms_threshold,
            "max_detections": head.max_detections,
            **proposals,
        }

    def averaged_model(self) -> nn.Module | None:
        return self.averaged.model if self.averaged is not None else None

    def ema_state(self) -> dict[str, Any]:
        if self.averaged is None:
            return {}
        return {"model": self.averaged.model.state_dict(), "updates": self.averaged.updates}

    def load_ema_state(self, state: dict[str, Any]) -> None:
        if self.averaged is not None:
            self.averaged.model.load_state_dict(state["model"])
            self.averaged.updates = state["updates"]


def _targets(data: TensorBatch) -> list[detectors.Target]:
    masks = data.masks or [None] * len(data.boxes)
    targets = [detectors.Target(*values) for values in zip(data.boxes, data.labels, masks, strict=True)]
    if not data.pairs:
        return targets
    return [one._replace(pairs=pairs) for one, pairs in zip(targets, data.pairs, strict=True)]


def _or(value: Any, own: Any) -> Any:
    """What the workload says, or where it leaves that to the codebase its own."""
    return own if value is None else value


def _first_ones(_: BalancedSampler, role: Tensor) -> Tensor:
    """In place of `BalancedSampler.keys`: the first candidates of a role are taken."""
    keys = torch.arange(role.shape[1], 0, -1, device=role.device, dtype=torch.float32) / (role.shape[1] + 1)
    return keys.expand(role.shape)
