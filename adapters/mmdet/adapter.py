"""MMDetection 3.x: its configs, its models, its loader, its average of weights; see README.md for what is patched."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mmcv_kernels
import mmdet
import torch
from mm_config import adapt_config, final_stage, load_config, own_input
from mmengine.dataset import pseudo_collate
from mmengine.logging import MMLogger
from mmengine.model import ExponentialMovingAverage, revert_sync_batchnorm
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.ops import masks_to_boxes

from adapters.common import EndlessBatches
from adapters.torch_common import TensorBatch, TorchAdapter, renormalised
from bench.worker.api import Batch, Description, Detections, Job

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of bench.workload, RGB, 0..255


@dataclass(frozen=True)
class Samples:
    """A batch as mmdetection's detectors take it: images [B, 3, H, W] and one DetDataSample per image."""

    images: Tensor
    samples: list[Any]

    @property
    def image_ids(self) -> list[int]:
        return [int(sample.img_id) for sample in self.samples]

    def to(self, device: torch.device) -> Samples:
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, samples=[sample.to(device) for sample in self.samples])


def registered(kernels: str) -> str:
    """Make mmdet's classes known by name, with mmcv's operators of this kind. Returns the kind that they are."""
    kind = mmcv_kernels.install(kernels)
    MMLogger.get_instance("mmengine", logger_name="mmengine", log_level=logging.WARNING)
    from mmdet.utils import register_all_modules  # imports mmcv.ops, so not before its kernels are chosen

    register_all_modules()
    return kind


class Adapter(TorchAdapter):
    version = mmdet.__version__
    package = "mmdet"
    packages = ("mmdet", "mmengine", "opencv-python", "opencv-python-headless")  # either of the last two

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.kernels = registered(job.options.get("kernels", "auto"))

    # -- model -----------------------------------------------------------------------------------------------

    @staticmethod
    def find_model(name: str) -> None:
        registered("auto")
        load_config(name, {})

    def build_model(self) -> nn.Module:
        from mmdet.models.dense_heads import SSDHead
        from mmdet.registry import MODELS

        if fixed := re.match(r"ssd/ssd(300|512)_", self.job.model["name"]):
            size = [int(fixed[1])] * 2
            if self.workload["input"]["size"] != size:
                raise ValueError(f"this SSD is defined for one size of image; set input.size: {size}")
        SSDHead.loss_cls = None  # its predict reads it, and 3.3.0 forgot to set it
        offered = self.job.model.get("options", {}).get("cfg_options", {})
        changes = {**offered, **self.job.options.get("cfg_options", {})}
        config = load_config(self.job.model["name"], changes)
        # Random weights were made for no other scale of pixels; they diverge in that of a caffe-style model.
        own = "://" in self.workload["model"] and bool(self.job.weights)
        own |= self.job.model["name"].startswith(("yolox/", "rtmdet/"))
        self.own_input = own_input(config.model.get("data_preprocessor") or {}) if own else None
        if self.own_input and config.model.type == "YOLOX":
            self.own_input["pad"] = 114.0  # of the pipelines of its configs
        adapt_config(config.model, self.workload, len(self.job.classes))
        model = MODELS.build(config.model)
        model.init_weights()
        if self.job.world_size == 1 or self.workload["device"] == "cpu":
            model = revert_sync_batchnorm(model)  # it needs several GPUs
        self.uses_masks = uses_masks(model)
        return model

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        return backbone_stages(self.model.backbone)

    def _prepare_training(self) -> None:
        super()._prepare_training()
        if self.workload["ema"]:  # as mmengine's EMAHook makes it; momentum is the weight of the new value
            self.ema = ExponentialMovingAverage(self.model, momentum=1 - self.workload["ema_decay"])

    def postprocess_settings(self) -> dict[str, Any]:
        return postprocess_settings(self.model, self.job.training)

    def describe(self, data: Any) -> Description:
        description = super().describe(data)
        description.kernels = self.kernels
        if self.kernels == mmcv_kernels.COMPILED:
            description.library["mmcv"] = importlib.metadata.version("mmcv")
        else:
            description.library["mmcv-lite"] = importlib.metadata.version("mmcv-lite")
        return description

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> Samples:
        fixed_size = not isinstance(self.workload["input"]["size"], Mapping)
        data = super().convert(batch)
        if self.own_input:
            data = replace(data, images=renormalised(data.images, data.image_sizes, **self.own_input))
        return to_samples(data, fixed_size)

    def objects(self, data: Samples) -> int:
        return sum(len(sample.gt_instances) for sample in data.samples)

    def compute_losses(self, data: Samples) -> dict[str, Tensor]:
        """The terms that mmengine's BaseModel.parse_losses adds up; it logs others too (accuracies)."""
        masks = [sample.gt_instances.get("masks") for sample in data.samples]
        terms = self.model.loss(data.images, data.samples)
        for sample, given in zip(data.samples, masks):
            if (
                given is not None
            ):  # RTMDet-Ins leaves a tensor in their place, and takes none in the next step
                sample.gt_instances.masks = given
        return {name: total(value) for name, value in terms.items() if "loss" in name}

    def predict_raw(self, data: Samples) -> Callable[[], list[InstanceData]]:
        return predict_raw(self.model, data)

    def predict_final(self, raw: Callable[[], list[InstanceData]], data: Samples) -> list[dict[str, Tensor]]:  # noqa: ARG002
        fields = {"boxes": "bboxes", "scores": "scores", "labels": "labels", "masks": "masks"}
        limit = self.workload["max_detections"]  # which YOLOX's head does not know; its detections are sorted
        return [{name: found[own][:limit] for name, own in fields.items() if own in found} for found in raw()]

    def detections(self, processed: Sequence[Any], data: Samples) -> list[Detections]:
        """SOLO's boxes are zeros: those of its masks stand in their place."""
        for found in processed:
            if "masks" in found and len(found["masks"]) and not found["boxes"].any():
                occupied = found["masks"].flatten(1).any(dim=1)
                found["boxes"] = torch.zeros_like(found["boxes"], dtype=torch.float32)
                ends = torch.tensor([0, 0, 1, 1], device=found["masks"].device)
                found["boxes"][occupied] = masks_to_boxes(found["masks"][occupied]) + ends
        return super().detections(processed, data)

    # -- mmdetection's own input -----------------------------------------------------------------------------

    def pipeline(self) -> Iterator[dict[str, Any]]:
        """mmdetection's dataset, transforms and collation, the images in the order of the shared batches."""
        from mmdet.registry import DATASETS, MODELS

        size = self.workload["input"]["size"]
        dataset = DATASETS.build(dataset_config(self.job, size, self.uses_masks))
        place = {dataset.get_data_info(i)["img_id"]: i for i in range(len(dataset))}
        images = torch.utils.data.Subset(dataset, [place[i] for i in self.job.dataset["image_ids"]])
        preprocessing = preprocessor_config(size, self.uses_masks)
        if own := self.own_input:
            preprocessing.update(mean=own["mean"], std=own["std"], bgr_to_rgb=not own["bgr"])
        self.preprocessor = MODELS.build(preprocessing).to(self.device)
        loader = DataLoader(
            images,
            batch_sampler=EndlessBatches(
                len(images), self.workload["batch_size"], self.job.rank, self.job.world_size
            ),
            num_workers=self.workload["input"]["workers"],
            collate_fn=pseudo_collate,
        )
        self.batches = (batch for batch in loader)
        return self.batches

    def load(self, data: Samples | dict[str, Any]) -> Samples:
        """Of a batch of its own loader, mmdetection normalises and pads on the device."""
        if isinstance(data, Samples):
            return data.to(self.device)
        prepared = self.preprocessor(data, training=True)  # training: pads the masks and to the full size
        images = prepared["inputs"].contiguous(memory_format=self.memory_format)
        return Samples(images, prepared["data_samples"])

    def close(self) -> None:
        if hasattr(self, "batches"):
            self.batches.close()  # ends the loader processes
        super().close()


# -- model ---------------------------------------------------------------------------------------------------


def uses_masks(model: nn.Module) -> bool:
    """Whether the ground-truth masks take part in the loss."""
    owner = getattr(model, "roi_head", model)
    in_boxes = "Ins" in type(getattr(model, "bbox_head", None)).__name__  # RTMDet-Ins
    return in_boxes or getattr(owner, "mask_head", None) is not None


def backbone_stages(backbone: nn.Module) -> Sequence[Sequence[nn.Module]]:
    if hasattr(backbone, "res_layers"):
        stem = [backbone.stem] if backbone.deep_stem else [backbone.conv1, backbone.norm1]
        layers = [getattr(backbone, name) for name in backbone.res_layers]
        return [[*stem, layers[0]], *([layer] for layer in layers[1:])]
    if type(backbone).__name__ == "SSDVGG":  # five stages between its poolings, as torchvision counts them
        stages: list[list[nn.Module]] = [[]]
        for layer in backbone.features:
            if isinstance(layer, nn.MaxPool2d):
                stages.append([])
            stages[-1].append(layer)
        return stages[:5]
    if hasattr(backbone, "frozen_stages"):
        return [[]] * 5  # freezes them itself, as adapt_config told it
    return ()


def total(value: Tensor | Sequence[Tensor]) -> Tensor:
    """One loss term as mmengine.model.BaseModel.parse_losses reduces it."""
    return value.mean() if isinstance(value, Tensor) else sum(term.mean() for term in value)


def postprocess_settings(model: nn.Module, training: bool) -> dict[str, Any]:
    """Thresholds and limits as the built model holds them."""
    test = model.test_cfg or {}
    final = final_stage(test)
    names = {
        # An RPN alone is given one too and does not look at it.
        "score_threshold": None
        if final is test.get("rpn")
        else final.get("filter_thr", final.get("score_thr")),
        "nms_iou_threshold": (final.get("nms") or {}).get("iou_threshold"),
        "max_detections": final.get("max_per_img"),
        "candidates": final.get("nms_pre"),
    }
    if "rpn" in test:
        proposals = (training and model.train_cfg.get("rpn_proposal")) or test["rpn"]
        names["proposal_candidates"] = proposals["nms_pre"]
        names["proposals"] = proposals["max_per_img"]
        names["proposal_nms_iou_threshold"] = proposals["nms"]["iou_threshold"]
    if "filter_thr" in final:
        names.update(candidate_score_threshold=final["score_thr"], mask_threshold=final["mask_thr"],
                     nms_kernel=final["kernel"], nms_sigma=final["sigma"])  # fmt: skip
    return {name: value for name, value in names.items() if value is not None}


# -- inference, divided where the networks end ---------------------------------------------------------------


def predict_raw(model: nn.Module, data: Samples) -> Callable[[], list[InstanceData]]:
    """Run the network; what is returned does the rest, as mmdetection's own code does it.

    The network is all layers with weights and what must happen between them: in models with a second stage the
    proposals and the final boxes, which their mask branch needs, so that only the pasting of masks is left. Models
    with one stage end before decoding and NMS. A model that cannot be divided is all network.
    """
    from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
    from mmdet.models.dense_heads.base_mask_head import BaseMaskHead

    head = getattr(model, "mask_head", None) or getattr(model, "bbox_head", None)
    if getattr(model, "roi_head", None) is not None and getattr(model, "rpn_head", None) is not None:
        features = model.extract_feat(data.images)
        proposals = model.rpn_head.predict(features, data.samples, rescale=False)
        with deferred_pasting(model.roi_head) as pastings:
            found = model.roi_head.predict(features, proposals, data.samples, rescale=True)
        return lambda: [paste() for paste in pastings][-1] if pastings else found
    if getattr(type(head), "predict", None) in (BaseDenseHead.predict, BaseMaskHead.predict):
        outputs = head(model.extract_feat(data.images))
        metas = [sample.metainfo for sample in data.samples]
        return lambda: head.predict_by_feat(*outputs, batch_img_metas=metas, rescale=True)
    found = [sample.pred_instances for sample in model.predict(data.images, data.samples, rescale=True)]
    return lambda: found


@contextlib.contextmanager
def deferred_pasting(roi_head: nn.Module) -> Iterator[list[Callable[[], list[InstanceData]]]]:
    """Inside, the mask head's last step (resize the masks to the image, cut at 0.5) is put on the list instead."""
    mask_head = getattr(roi_head, "mask_head", None)
    if isinstance(mask_head, nn.ModuleList):
        mask_head = mask_head[-1]
    pastings: list[Callable[[], list[InstanceData]]] = []
    if mask_head is None or not hasattr(mask_head, "_predict_by_feat_single"):
        yield pastings
        return
    paste = mask_head.predict_by_feat

    def later(*args: Any, results_list: list[InstanceData], **kwargs: Any) -> list[InstanceData]:
        pastings.append(functools.partial(paste, *args, results_list=results_list, **kwargs))
        return results_list

    mask_head.predict_by_feat = later
    try:
        yield pastings
    finally:
        del mask_head.predict_by_feat  # the class's own again


# -- input ---------------------------------------------------------------------------------------------------


def to_samples(batch: TensorBatch, fixed_size: bool) -> Samples:
    """A shared batch as DetDataPreprocessor leaves its own: `pad_shape` is each image's extent up to the next
    multiple of 32, whatever the others of the batch need, or the fixed size."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    height, width = batch.images.shape[-2:]
    samples = []
    for i, (size, original) in enumerate(zip(batch.image_sizes, batch.original_sizes)):
        padded = (height, width) if fixed_size else tuple(-(-side // 32) * 32 for side in size)
        objects = InstanceData(bboxes=batch.boxes[i], labels=batch.labels[i])
        if batch.masks:
            objects.masks = BitmapMasks(batch.masks[i].numpy(), height, width)
        sample = DetDataSample(
            metainfo={
                "img_id": batch.image_ids[i],
                "ori_shape": original,
                "img_shape": size,
                "pad_shape": padded,
                "batch_input_shape": (height, width),
                "scale_factor": (size[1] / original[1], size[0] / original[0]),
                "flip": False,
            }
        )
        sample.gt_instances = objects
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64)
        )
        samples.append(sample)
    return Samples(batch.images, samples)


def dataset_config(job: Job, size: Any, with_masks: bool) -> dict[str, Any]:
    """CocoDataset on the files of the workload, with the transforms of mmdetection's base config but the flip."""
    resize = (
        {"type": "Resize", "scale": (size["long"], size["short"]), "keep_ratio": True}
        if isinstance(size, Mapping)
        else {"type": "FitInside", "scale": (size[1], size[0])}
    )
    _register_fit_inside()
    return {
        "type": "CocoDataset",
        "ann_file": str(job.dataset["annotations"]),
        "data_prefix": {"img": str(job.dataset["images"])},
        "metainfo": {"classes": tuple(job.classes)},
        "test_mode": True,  # filters no image, so that all codebases get the same ones
        "pipeline": [
            {"type": "LoadImageFromFile"},
            {"type": "LoadAnnotations", "with_bbox": True, "with_mask": with_masks},
            resize,
            {"type": "PackDetInputs"},
        ],
    }


def preprocessor_config(size: Any, with_masks: bool) -> dict[str, Any]:
    """Normalisation and padding of mmdetection's base config, with the workload's fixed size where it has one."""
    config = {
        "type": "DetDataPreprocessor",
        "mean": MEAN,
        "std": STD,
        "bgr_to_rgb": True,
        "pad_mask": with_masks,
        "pad_size_divisor": 32,
    }
    if isinstance(size, Mapping):
        return config
    fixed = {"type": "BatchFixedSizePad", "size": tuple(size), "img_pad_value": 0, "pad_mask": with_masks}
    return {**config, "pad_size_divisor": 1, "batch_augments": [fixed]}


@functools.cache
def _register_fit_inside() -> None:
    from mmdet.datasets.transforms import Resize
    from mmdet.registry import TRANSFORMS

    @TRANSFORMS.register_module()
    class FitInside(Resize):
        """Fit into scale = (width, height) as it stands; mmcv's keep_ratio takes it as long and short side."""

        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            height, width = results["img"].shape[:2]
            factor = min(self.scale[0] / width, self.scale[1] / height)
            results["scale"] = int(width * factor + 0.5), int(height * factor + 0.5)
            self._resize_img(results)
            self._resize_bboxes(results)
            self._resize_masks(results)
            self._record_homography_matrix(results)
            return results
