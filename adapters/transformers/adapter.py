"""Detection transformers of Hugging Face's transformers; see README.md for what is changed and why."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a checkpoint is a local folder or lies in the local cache
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import hf_models
import torch
import transformers
from torch import Tensor, nn
from torchvision.ops import box_convert, masks_to_boxes
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForObjectDetection,
    AutoModelForUniversalSegmentation,
    RTDetrImageProcessor,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

from adapters.torch_common import MEAN, STD, TensorBatch, TorchAdapter, renormalised
from adapters.torch_export import image_size, mark
from bench.worker.api import Batch

UNIVERSAL = ("mask2former", "maskformer")
#: Statistics of pixels → how the adapter of ONNX files calls them.
FED = {(MEAN, STD): "imagenet", ((0.0,) * 3, (255.0,) * 3): "unit"}


@dataclass(frozen=True, kw_only=True)
class HfBatch(TensorBatch):
    """``pixel_mask``: int64 [B, H, W], 1 where the image is. ``relative``: per image centre and size [N, 4] as parts of
    what the model's boxes are relative to."""

    pixel_mask: Tensor
    relative: list[Tensor]

    def to(self, device: torch.device) -> HfBatch:
        moved = super().to(device)
        relative = [one.to(device, non_blocking=True) for one in self.relative]
        return replace(moved, pixel_mask=self.pixel_mask.to(device, non_blocking=True), relative=relative)


class RawOutputs(nn.Module):
    """A model as a graph has it: images [1, 3, H, W] to logits [1, Q, K] and boxes [1, Q, 4]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(pixel_values=images)
        return found.logits, found.pred_boxes


class Adapter(TorchAdapter):
    version = transformers.__version__
    package = "transformers"
    packages = ("transformers", "torchvision", "scipy")
    ddp_arguments = {"forward_sync_buffers": False, "find_unused_parameters": True}

    # -- model -----------------------------------------------------------------------------------------------

    @staticmethod
    def find_model(name: str) -> None:
        configuration(name, {})

    def build_model(self) -> nn.Module:
        name, classes = self.job.model["name"], list(self.job.classes)
        config, folder = configuration(name, self.job.options.get("config", {}))
        self.kind = config.model_type
        freeze_as_asked(config, self.workload["frozen_bn"])
        refuse_too_small(config, self.workload["input"]["size"])
        self.label_of = list(range(len(classes)))
        if folder and not self.job.training:
            self.label_of = labels_by_name(config.id2label, classes, name)
        else:
            config.id2label = dict(enumerate(classes))
            config.label2id = {word: label for label, word in enumerate(classes)}
        auto = AutoModelForUniversalSegmentation if self.kind in UNIVERSAL else AutoModelForObjectDetection
        if folder and has_weights(folder):
            model = auto.from_pretrained(
                folder, config=config, local_files_only=True, ignore_mismatched_sizes=self.job.training
            )
        else:
            model = auto.from_config(config)
        self.uses_masks = self.kind in UNIVERSAL
        self.processor = image_processor(config, folder)
        return model.float()

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        return backbone_stages(self.model)

    def compiled_modules(self) -> Sequence[nn.Module]:
        return (backbone_of(self.model),)

    def _prepare_training(self) -> None:
        super()._prepare_training()
        chosen = self.job.options.get("optimizer", "sgd")
        if chosen == "adamw":
            settings = self.workload["optimizer"]
            self.optimizer = torch.optim.AdamW(
                self.parameter_groups(), lr=settings["lr"], weight_decay=settings["weight_decay"]
            )
        elif chosen != "sgd":
            raise ValueError(f"optimizer must be sgd or adamw, got {chosen}")

    def postprocess_settings(self) -> dict[str, Any]:
        settings = {
            "score_threshold": self.workload["score_threshold"],
            "max_detections": self.workload["max_detections"],
        }
        if self.kind in UNIVERSAL:
            return {**settings, "candidates": self.model.config.num_queries}
        given = inspect.signature(self.processor.post_process_object_detection).parameters
        most = given["top_k"].default if "top_k" in given else None
        return {**settings, "candidates": most or getattr(self.model.config, "num_queries", None)}

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> HfBatch:
        """What transformers' processors prepare: the mask of the padding, relative boxes, masks as numbers."""
        data: TensorBatch = super().convert(batch)
        mean, std = statistics_of(self.processor)
        if (mean, std) != (MEAN, STD):
            data = replace(data, images=renormalised(data.images, data.image_sizes, mean, std))
        mask = torch.zeros(len(data.images), *data.images.shape[-2:], dtype=torch.int64)
        for one, (height, width) in zip(mask, data.image_sizes, strict=True):
            one[:height, :width] = 1
        extents = self.extents(data)
        relative = [relative_boxes(boxes, size) for boxes, size in zip(data.boxes, extents, strict=True)]
        data = replace(data, masks=[one.to(torch.float32) for one in data.masks])
        return HfBatch(**vars(data), pixel_mask=mask, relative=relative)

    def arguments(self, data: HfBatch) -> dict[str, Tensor]:
        """What the model is called with, the same in training and inference."""
        if self.kind in UNIVERSAL or self.kind in hf_models.MASKED:
            return {"pixel_values": data.images, "pixel_mask": data.pixel_mask}
        return {"pixel_values": data.images}

    def extents(self, data: TensorBatch) -> list[tuple[int, int]]:
        """(height, width) that boxes of the model are relative to."""
        if self.kind in hf_models.MASKED:
            return data.image_sizes
        return [tuple(data.images.shape[-2:])] * len(data.images)

    def compute_losses(self, data: HfBatch) -> dict[str, Tensor]:
        if self.kind in UNIVERSAL:
            found = self.model(**self.arguments(data), mask_labels=data.masks, class_labels=data.labels)
            return {"loss_total": found.loss.squeeze()}
        labels = [
            {"class_labels": label, "boxes": boxes}
            for label, boxes in zip(data.labels, data.relative, strict=True)
        ]
        found = self.model(**self.arguments(data), labels=labels)
        if self.kind not in hf_models.WEIGHTED_LOSSES:
            return {"loss_total": found.loss}
        return hf_models.by_kind(found.loss_dict) if self.kind == "rt_detr" else dict(found.loss_dict)

    def predict_raw(self, data: HfBatch) -> Any:
        return self.model(**self.arguments(data))

    def predict_final(self, raw: Any, data: TensorBatch) -> list[dict[str, Tensor]]:
        if self.kind in UNIVERSAL:
            return [self.segments(raw, place, data) for place in range(len(data.images))]
        threshold = self.workload["score_threshold"]
        sizes = scaled_extents(self.extents(data), data.image_sizes, data.original_sizes)
        found = self.processor.post_process_object_detection(raw, threshold=threshold, target_sizes=sizes)
        return [self.limited(one, size) for one, size in zip(found, data.original_sizes, strict=True)]

    def limited(self, found: Mapping[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """The best detections of classes that the data set has, clipped to the image of this (height, width)."""
        height, width = size
        labels = torch.tensor(self.label_of, device=found["labels"].device)[found["labels"]]
        scores, order = torch.where(labels >= 0, found["scores"], -1).sort(descending=True, stable=True)
        order = order[scores >= 0][: self.workload["max_detections"]]
        limit = found["boxes"].new_tensor([width, height, width, height])
        boxes = found["boxes"][order].clamp(min=0).minimum(limit)
        return {"boxes": boxes, "scores": found["scores"][order], "labels": labels[order]}

    def export(self, path: str) -> None:
        """Raw outputs, which the adapter of ONNX files decodes; by torch's exporter of traces."""
        if self.kind in UNIVERSAL or self.kind in hf_models.MASKED:
            raise ValueError(
                f"{self.kind} needs the mask of the padding, which a graph of images lacks; "
                "RT-DETR, D-FINE, RF-DETR and DEIMv2 are exported"
            )
        if statistics_of(self.processor) not in FED:
            raise ValueError(
                "pixels normalised by neither ImageNet's statistics nor to 0..1 are not exported"
            )
        size = image_size(self.workload)
        self.model.config.use_cache = False
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                RawOutputs(self.model).eval(),
                (torch.zeros(1, 3, *size),),
                path,
                dynamo=False,
                opset_version=17,
                input_names=["images"],
                output_names=["logits", "pred_boxes"],
            )
        names = [self.job.classes[label] if label >= 0 else "" for label in self.label_of]
        mark(path, names, decoder="rtdetr", input=FED[statistics_of(self.processor)])

    @contextlib.contextmanager
    def first_candidates(self) -> Iterator[None]:
        """Inside, nothing is dropped: transformers drops values by a function, which is no layer to switch off."""
        dropout = nn.functional.dropout
        nn.functional.dropout = lambda values, *_, **__: values  # type: ignore[assignment]
        try:
            with super().first_candidates():
                yield
        finally:
            nn.functional.dropout = dropout

    def segments(self, raw: Any, place: int, data: TensorBatch) -> dict[str, Tensor]:
        """Instances of one image: its part of the padded canvas is cut out, the rest is transformers' own."""
        logits = raw.masks_queries_logits[place : place + 1]
        canvas, size = data.images.shape[-2:], data.image_sizes[place]
        height, width = (
            max(1, round(side * part / whole)) for side, part, whole in zip(logits.shape[-2:], size, canvas)
        )
        one = type(raw)(
            class_queries_logits=raw.class_queries_logits[place : place + 1],
            masks_queries_logits=logits[..., :height, :width],
        )
        original = data.original_sizes[place]
        found = self.processor.post_process_instance_segmentation(
            one,
            threshold=self.workload["score_threshold"],
            target_sizes=[original],
            return_binary_maps=True,
        )[0]
        infos = found["segments_info"]
        masks = found["segmentation"]
        masks = masks.bool() if infos else torch.zeros(0, *original, dtype=torch.bool)
        occupied = masks.flatten(1).any(dim=1) if infos else torch.zeros(0, dtype=torch.bool)
        boxes = torch.zeros(len(masks), 4)
        if occupied.any():
            boxes[occupied] = masks_to_boxes(masks[occupied]) + torch.tensor([0, 0, 1, 1])
        scores = torch.tensor([info["score"] for info in infos], dtype=torch.float32)
        labels = torch.tensor([info["label_id"] for info in infos], dtype=torch.int64)
        best = scores.argsort(descending=True, stable=True)[: self.workload["max_detections"]]
        return {"boxes": boxes[best], "scores": scores[best], "labels": labels[best], "masks": masks[best]}


# -- configurations and checkpoints --------------------------------------------------------------------------


def configuration(name: str, changes: Mapping[str, Any]) -> tuple[Any, str | None]:
    """The configuration of a model, and the folder or name of the checkpoint it came from.

    Args:
        name: A canonical name, a model type of transformers (`rt_detr`), a folder with `config.json`, or a name of the
            Hub that lies in the local cache.
        changes: Fields to set.

    Raises:
        ValueError: No such model here.
    """
    if name in hf_models.CONFIGS:
        kind, fields = hf_models.CONFIGS[name]
        return CONFIG_MAPPING[kind](**{**fields, **changes}), None
    if name in CONFIG_MAPPING:
        return CONFIG_MAPPING[name](**changes), None
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True, **changes)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{name} is no model type of transformers {transformers.__version__}, no folder with a config.json and "
            f"not in the local Hub cache ({first}); to get it from the Hub: hf download {name}"
        ) from None
    return config, name


def has_weights(folder: str) -> bool:
    """Whether a checkpoint brings weights; a folder may hold a configuration alone."""
    path = Path(folder)
    return not path.is_dir() or any(path.glob("*.safetensors")) or any(path.glob("*.bin"))


def freeze_as_asked(config: Any, frozen: bool | None) -> None:
    """Set whether batch normalisation in the backbone uses fixed statistics. None leaves the configuration's choice."""
    if frozen is None or not hasattr(config, "backbone_config"):
        return
    if config.model_type in hf_models.FREE_NORMALISATION:
        config.freeze_backbone_batch_norms = frozen
    elif config.model_type in hf_models.MASKED and not frozen:
        raise ValueError(
            f"transformers always freezes the batch normalisation of {config.model_type}'s backbone; "
            "set frozen_bn: true"
        )


def refuse_too_small(config: Any, size: Any) -> None:
    """Models that choose their queries among the cells of their feature maps need as many cells as queries."""
    if isinstance(size, Mapping):
        return
    if config.model_type in hf_models.FREE_NORMALISATION:
        strides = config.feat_strides
    elif config.model_type == "rf_detr":
        strides = [config.backbone_config.patch_size]
    else:
        return
    cells = sum(math.prod(-(-side // stride) for side in size) for stride in strides)
    if cells < config.num_queries:
        raise ValueError(
            f"{config.model_type} chooses {config.num_queries} queries among the cells of its feature maps; images of "
            f"{size[0]}x{size[1]} have {cells}: set a larger input.size, or options.config: {{num_queries: {cells}}}"
        )


def labels_by_name(names: Mapping[int, str], classes: Sequence[str], where: str) -> list[int]:
    """The data set's label of each class of a checkpoint, -1 for a class that it lacks.

    As many classes as the data set has are taken to be the same ones in the same order.
    """
    if len(names) == len(classes):
        return list(range(len(classes)))
    label_of = {word.lower(): label for label, word in enumerate(classes)}
    found = [label_of.get(names[number].lower(), -1) for number in sorted(names)]
    if all(label < 0 for label in found):
        some = ", ".join(list(names.values())[:5])
        raise ValueError(
            f"{where} has {len(names)} classes ({some}, …), of which the data set has none; it has "
            f"{len(classes)}: {', '.join(classes[:5])}, …"
        )
    return found


def image_processor(config: Any, folder: str | None = None) -> Any:
    """The processor of a checkpoint, or the default one of this kind of model: its statistics and post-processing are
    used, its resizing is not.

    RT-DETRv2 and D-FINE name no processor of their own; their checkpoints use that of RT-DETR.
    """
    if folder:
        with contextlib.suppress(OSError, ValueError):  # a folder without preprocessor_config.json
            return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    try:
        chosen = IMAGE_PROCESSOR_MAPPING[type(config)]
    except KeyError:
        return RTDetrImageProcessor()
    return (chosen["torchvision"] if isinstance(chosen, Mapping) else chosen)()


def statistics_of(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation by channel (RGB, 0..255) that a processor normalises with."""
    scale = 1 / processor.rescale_factor if processor.do_rescale else 1.0
    if not processor.do_normalize:
        return (0.0,) * 3, (scale,) * 3
    mean, std = (
        tuple(round(value * scale, 6) for value in values)
        for values in (processor.image_mean, processor.image_std)
    )
    return mean, std


# -- parts of the model --------------------------------------------------------------------------------------


def backbone_of(model: nn.Module) -> nn.Module:
    """The module that makes features of images; the whole model where it is not told apart."""
    inner = getattr(model, "model", model)
    if hasattr(inner, "pixel_level_module"):  # Mask2Former
        return inner.pixel_level_module.encoder
    backbone = getattr(inner, "backbone", inner)
    for name in ("conv_encoder", "model", "_backbone"):
        backbone = getattr(backbone, name, backbone)
    return backbone


def backbone_stages(model: nn.Module) -> Sequence[Sequence[nn.Module]]:
    """Modules by stage: of timm's ResNet, and of transformers' own ResNet-vd and HGNetV2; of others none are known."""
    backbone = backbone_of(model)
    if all(hasattr(backbone, f"layer{number}") for number in range(1, 5)):
        first = [backbone.conv1, backbone.bn1, backbone.layer1]
        return [first, *([getattr(backbone, f"layer{number}")] for number in range(2, 5))]
    stages = getattr(getattr(backbone, "encoder", None), "stages", None)
    if stages is None or not hasattr(backbone, "embedder"):
        return ()
    return [[backbone.embedder, stages[0]], *([stage] for stage in stages[1:])]


# -- boxes ---------------------------------------------------------------------------------------------------


def relative_boxes(boxes: Tensor, extent: tuple[int, int]) -> Tensor:
    """Corners [N, 4] in pixels to centre, width and height relative to ``extent`` (height, width)."""
    height, width = extent
    return box_convert(boxes, "xyxy", "cxcywh") / boxes.new_tensor([width, height, width, height])


def scaled_extents(
    extents: Sequence[tuple[int, int]],
    sizes: Sequence[tuple[int, int]],
    originals: Sequence[tuple[int, int]],
) -> Tensor:
    """[B, 2]: height and width of what boxes are relative to, in pixels of the original images."""
    rows = [
        [extent[side] * original[side] / size[side] for side in (0, 1)]
        for extent, size, original in zip(extents, sizes, originals, strict=True)
    ]
    return torch.tensor(rows)
