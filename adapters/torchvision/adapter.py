"""The models of ``torchvision.models.detection``, driven as torchvision's reference scripts drive them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models import get_model_builder, list_models
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.ssd import SSDFeatureExtractorVGG
from torchvision.models.detection.transform import resize_boxes
from torchvision.models.resnet import Bottleneck
from torchvision.ops.misc import FrozenBatchNorm2d
from torchvision.transforms.v2 import functional as F

from adapters.common import EndlessBatches, near, padded_size, resized_size
from adapters.torch_common import TensorBatch, TorchAdapter
from adapters.torch_export import image_size, mark

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of bench.workload, RGB, 0..255


class Adapter(TorchAdapter):
    version = torchvision.__version__
    package = "torchvision"
    packages = ("torchvision",)

    # -- model -----------------------------------------------------------------------------------------------

    @staticmethod
    def find_model(name: str) -> None:
        if name.lower() not in (known := list_models(torchvision.models.detection)):
            raise ValueError(f"torchvision has no detector {name}{near(name, known)}")

    def build_model(self) -> nn.Module:
        name = self.job.model["name"]
        if name.startswith("ssd300") and list(self.workload["input"]["size"]) != [300, 300]:
            raise ValueError(f"{name} is defined for 300x300 images; set input.size: [300, 300]")
        limits = {
            "score_thresh": self.workload["score_threshold"],
            "detections_per_img": self.workload["max_detections"],
        }
        if "rcnn" in name:
            limits = {f"box_{key}": value for key, value in limits.items()}
        # A softmax needs a class for the background, torchvision's class 0. RetinaNet and FCOS score each class
        # by itself: theirs would only be one class more to compute, and could be predicted.
        self.label_offset = 0 if name.startswith(("retinanet", "fcos")) else 1
        self.find_model(name)
        model = get_model_builder(name)(
            weights=None,
            weights_backbone=None,
            num_classes=len(self.job.classes) + self.label_offset,
            **limits,
        )
        model.transform = AlreadyPrepared()
        if not isinstance(model, GeneralizedRCNN):
            # Ends `network` before box decoding and NMS, which `predict_final` does; see README.
            model.postprocess_detections = _hand_over
        self.uses_masks = isinstance(model, MaskRCNN)
        if self.workload["frozen_bn"]:
            model = freeze_batch_norm(model)
        if not self.job.weights and (self.workload["frozen_bn"] or not self.job.training):
            damp_residual_branches(model)
        return model

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        backbone = self.model.backbone
        if isinstance(backbone, SSDFeatureExtractorVGG):
            return vgg_stages(backbone)
        return resnet_stages(backbone.body) if hasattr(getattr(backbone, "body", None), "layer4") else ()

    def compiled_modules(self) -> Sequence[nn.Module]:
        return (self.model.backbone,)  # what comes after has shapes that depend on the predictions

    def postprocess_settings(self) -> dict[str, Any]:
        rcnn = isinstance(self.model, GeneralizedRCNN)
        owner = self.model.roi_heads if rcnn else self.model
        settings = {
            "score_threshold": owner.score_thresh,
            "nms_iou_threshold": owner.nms_thresh,
            "max_detections": owner.detections_per_img,
        }
        if not rcnn:
            return {**settings, "candidates": self.model.topk_candidates}
        rpn = self.model.rpn  # its limits are others while training
        return {
            **settings,
            "proposal_candidates": rpn.pre_nms_top_n(),
            "proposals": rpn.post_nms_top_n(),
            "proposal_nms_iou_threshold": rpn.nms_thresh,
        }

    # -- step ------------------------------------------------------------------------------------------------

    def compute_losses(self, data: TensorBatch) -> dict[str, Tensor]:
        targets = [
            {"boxes": boxes, "labels": labels} for boxes, labels in zip(data.boxes, data.labels, strict=True)
        ]
        for target, masks in zip(targets, data.masks):  # none for models without masks
            target["masks"] = masks
        return self.model(PreparedImages(data.images, data.image_sizes), targets)

    def predict_raw(self, data: TensorBatch) -> Any:
        return self.model(PreparedImages(data.images, data.image_sizes))

    def predict_final(self, raw: Any, data: TensorBatch) -> list[dict[str, Tensor]]:
        found = raw
        if not isinstance(self.model, GeneralizedRCNN):
            found = type(self.model).postprocess_detections(self.model, *raw)
        return [
            to_original(one, size, original)
            for one, size, original in zip(found, data.image_sizes, data.original_sizes, strict=True)
        ]

    def export(self, path: str) -> None:
        """By torch's exporter of traces: the other one cannot follow shapes that depend on what is found."""
        if self.uses_masks:
            raise ValueError("masks are not exported; choose a model that predicts boxes")
        height, width = image_size(self.workload)
        graph = Exportable(self, (height, width)).eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                graph,
                (torch.zeros(1, 3, height, width),),
                path,
                dynamo=False,
                input_names=["images"],
                output_names=["boxes", "scores", "labels"],
            )
        mark(path, self.job.classes)

    # -- torchvision's own input -----------------------------------------------------------------------------

    def pipeline(self) -> Iterator[TensorBatch]:
        dataset = CocoImages(self.job.dataset, self.job.category_ids, self.workload["input"]["size"],
                             with_masks=self.uses_masks)  # fmt: skip
        loader = DataLoader(
            dataset,
            batch_sampler=EndlessBatches(
                len(dataset), self.workload["batch_size"], self.job.rank, self.job.world_size
            ),
            num_workers=self.workload["input"]["workers"],
            collate_fn=self.collate,
        )
        self.batches = (batch for batch in loader)
        return self.batches

    def collate(self, samples: Sequence[tuple[Any, ...]]) -> TensorBatch:
        images, original_sizes, image_ids, boxes, labels, masks = map(list, zip(*samples, strict=True))
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = padded_size(sizes, self.workload["input"]["size"])

        def pad(tensor: Tensor) -> Tensor:
            return F.pad(tensor, [0, 0, width - tensor.shape[-1], height - tensor.shape[-2]])

        return TensorBatch(
            images=torch.stack([pad(image) for image in images]).contiguous(memory_format=self.memory_format),
            image_sizes=sizes,
            original_sizes=original_sizes,
            image_ids=image_ids,
            boxes=boxes,
            labels=[one + self.label_offset for one in labels],
            masks=[pad(one) for one in masks] if self.uses_masks else [],
        )

    def close(self) -> None:
        if hasattr(self, "batches"):
            self.batches.close()  # ends the loader processes
        super().close()


# -- the model without its transform -------------------------------------------------------------------------


class PreparedImages(ImageList):
    """A padded batch and the sizes in it; torchvision's models also iterate over their input."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.tensors)


class AlreadyPrepared(nn.Module):
    """In place of GeneralizedRCNNTransform: the batch is normalised, resized and padded already, and results
    stay in input pixels until `predict_final`."""

    def forward(self, images: PreparedImages, targets: Any = None) -> tuple[PreparedImages, Any]:
        return images, targets

    def postprocess(self, result: Any, image_sizes: Any, original_sizes: Any) -> Any:  # noqa: ARG002
        return result


class Exportable(nn.Module):
    """A model with its post-processing for one image of one size, as `bench.worker.api.Adapter.export` says."""

    def __init__(self, adapter: Adapter, size: tuple[int, int]) -> None:
        super().__init__()
        self.model, self.size, self.offset = adapter.model, size, adapter.label_offset

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        found = self.model(PreparedImages(images, [self.size]))
        if not isinstance(self.model, GeneralizedRCNN):
            found = type(self.model).postprocess_detections(self.model, *found)
        return found[0]["boxes"], found[0]["scores"], found[0]["labels"] - self.offset


def _hand_over(*raw: Any) -> tuple[Any, ...]:
    return raw


def to_original(
    found: Mapping[str, Tensor], size: tuple[int, int], original: tuple[int, int]
) -> dict[str, Tensor]:
    """Detections of one image from input pixels to the file's, masks pasted, as
    GeneralizedRCNNTransform.postprocess does it, and cut at 0.5, which torchvision leaves to its user."""
    result = {**found, "boxes": resize_boxes(found["boxes"], size, original)}
    if "masks" in found:
        result["masks"] = paste_masks_in_image(found["masks"], result["boxes"], original)[:, 0] > 0.5
    return result


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Replace every BatchNorm2d by a FrozenBatchNorm2d of the same values and names; torchvision itself does
    so only for pretrained backbones."""
    if isinstance(module, nn.BatchNorm2d):
        frozen = FrozenBatchNorm2d(module.num_features, eps=module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


def damp_residual_branches(model: nn.Module) -> None:
    """For random weights without batch statistics, where each of the 16 blocks would double the variance until
    training ends in NaN: a factor of 1/4 on every residual branch (1 + 1/16 per block) keeps the scale."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Bottleneck):
                module.bn3.weight.fill_(0.25)


def resnet_stages(body: nn.Module) -> list[list[nn.Module]]:
    return [[body.conv1, body.bn1, body.layer1], [body.layer2], [body.layer3], [body.layer4]]


def vgg_stages(backbone: nn.Module) -> list[list[nn.Module]]:
    """The convolutions of SSD's VGG between its poolings; the last of the five stages begins `extra`."""
    stages: list[list[nn.Module]] = [[]]
    for layer in [*backbone.features, *list(backbone.extra[0])[:-1]]:
        if isinstance(layer, nn.MaxPool2d):
            stages.append([])
        stages[-1].append(layer)
    return stages


# -- files to batches ----------------------------------------------------------------------------------------


class CocoImages(Dataset):  # type: ignore[type-arg]
    """(image, original size, id, boxes, labels, masks) of the images of the workload, resized and normalised.

    Objects are chosen as for the shared batches: no crowds, no box under a pixel, no mask without a pixel.
    """

    def __init__(
        self, dataset: Mapping[str, Any], category_ids: Sequence[int], size: Any, with_masks: bool
    ) -> None:
        content = json.loads(Path(dataset["annotations"]).read_text())
        files = {image["id"]: image["file_name"] for image in content["images"]}
        self.folder = Path(dataset["images"])
        self.size = size
        self.with_masks = with_masks
        self.images = [(image_id, files[image_id]) for image_id in dataset["image_ids"]]
        self.label_of = {category: label for label, category in enumerate(category_ids)}
        self.objects: dict[int, list[dict[str, Any]]] = {image_id: [] for image_id in dataset["image_ids"]}
        for annotation in content["annotations"]:
            if annotation["image_id"] in self.objects and not annotation.get("iscrowd"):
                self.objects[annotation["image_id"]].append(annotation)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image_id, file = self.images[index]
        with Image.open(self.folder / file) as opened:
            pixels = F.pil_to_tensor(opened.convert("RGB"))
        old = height, width = tuple(pixels.shape[-2:])
        new = resized_size(old, self.size)
        objects = self.objects[image_id]
        corners = torch.tensor([one["bbox"] for one in objects], dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        corners = corners.clamp(torch.zeros(4), torch.tensor([width, height, width, height]))
        keep = (corners[:, 2:] - corners[:, :2]).amin(dim=1) >= 1
        labels = torch.tensor([self.label_of[one["category_id"]] for one in objects], dtype=torch.int64)
        masks = torch.zeros(len(objects), 0, 0, dtype=torch.uint8)
        if self.with_masks:
            masks = torch.zeros(len(objects), *new, dtype=torch.uint8)
            for mask, one in zip(masks, objects, strict=True):
                mask[:] = F.resize(object_mask(one["segmentation"], old), list(new),
                                   interpolation=F.InterpolationMode.NEAREST_EXACT)[0]  # fmt: skip
            keep &= masks.flatten(1).bool().any(dim=1)
        pixels = F.resize(pixels, list(new), antialias=True).float()
        image = F.normalize(pixels, MEAN, STD, inplace=True)
        scale = torch.tensor([new[1] / width, new[0] / height] * 2, dtype=torch.float64)
        boxes = (corners * scale).float()
        return image, old, image_id, boxes[keep], labels[keep], masks[keep]


def object_mask(outline: Any, size: tuple[int, int]) -> Tensor:
    """uint8 [1, H, W] from COCO's polygons or run lengths."""
    if isinstance(outline, list):
        outline = coco_mask.merge(coco_mask.frPyObjects(outline, *size))
    elif isinstance(outline["counts"], list):
        outline = coco_mask.frPyObjects(outline, *size)
    return torch.from_numpy(coco_mask.decode(outline))[None]
