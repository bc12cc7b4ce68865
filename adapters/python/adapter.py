"""A torch module of the user's, called as torchvision's detectors are: losses, or detections, of a list of images."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adapters.common import near
from adapters.torch_common import TensorBatch, TorchAdapter, pixels_of
from bench.worker.api import Batch, Job


class Adapter(TorchAdapter):
    packages = ("torchvision",)

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.function, self.package = find_function(job.model["name"])
        self.version = str(getattr(importlib.import_module(self.package), "__version__", ""))
        self.label_offset = int(job.options.get("label_offset", 1))

    # -- model -----------------------------------------------------------------------------------------------

    @staticmethod
    def find_model(name: str) -> None:
        find_function(name)

    def build_model(self) -> nn.Module:
        arguments = dict(self.job.options.get("arguments", {}))
        if "num_classes" in inspect.signature(self.function).parameters:
            arguments.setdefault("num_classes", len(self.job.classes) + self.label_offset)
        model = self.function(**arguments)
        if not isinstance(model, nn.Module):
            name, kind = self.job.model["name"], type(model).__name__
            raise ValueError(f"{name} must return a torch.nn.Module, and returned a {kind}")
        return model

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> TensorBatch:
        """Pixels from 0 to 1, as torchvision's own models take them."""
        data = super().convert(batch)
        data.images.copy_(pixels_of(data.images) / 255)
        return data

    def compute_losses(self, data: TensorBatch) -> dict[str, Tensor]:
        targets = [
            {"boxes": boxes, "labels": labels} for boxes, labels in zip(data.boxes, data.labels, strict=True)
        ]
        for target, masks, size in zip(targets, data.masks, data.image_sizes):
            target["masks"] = masks[:, : size[0], : size[1]]
        losses = self.model(unpadded(data), targets)
        if not isinstance(losses, Mapping):
            kind = type(losses).__name__
            raise ValueError(f"in training the model must return its losses by name, and returned a {kind}")
        return dict(losses)

    def predict_raw(self, data: TensorBatch) -> Any:
        return self.model(unpadded(data))

    def predict_final(self, raw: Any, data: TensorBatch) -> list[dict[str, Tensor]]:
        """Boxes and masks come in pixels of the images that the model was given."""
        limit, threshold = self.workload["max_detections"], self.workload["score_threshold"]
        results = []
        for found, size, original in zip(raw, data.image_sizes, data.original_sizes, strict=True):
            best = torch.argsort(found["scores"], descending=True)[:limit]
            best = best[found["scores"][best] >= threshold]
            scale = found["boxes"].new_tensor([original[1] / size[1], original[0] / size[0]] * 2)
            one = {"boxes": found["boxes"][best] * scale}
            one.update(scores=found["scores"][best], labels=found["labels"][best])
            if "masks" in found:
                one["masks"] = original_masks(found["masks"][best], original)
            results.append(one)
        return results


def find_function(name: str) -> tuple[Callable[..., Any], str]:
    """The function that `package.module:function` names, and the package it is of. Raises ValueError."""
    module, colon, function = name.partition(":")
    if not colon or not function or "/" in name or module.endswith(".py"):
        raise ValueError(
            f"{name}: expected package.module:function; the arm's `source` is the folder of a file"
        )
    try:
        imported = importlib.import_module(module)
        found = getattr(imported, function)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{name}: {error}; the arm's `source` is the folder to import from, `python` its interpreter"
        ) from error
    except AttributeError:
        raise ValueError(f"the module {module} has no {function}{near(function, vars(imported))}") from None
    if not callable(found):
        raise ValueError(f"{name} is no function: {type(found).__name__}")
    return found, module.partition(".")[0]


def unpadded(data: TensorBatch) -> list[Tensor]:
    """The images of a batch, [3, h, w] each, without their padding."""
    pairs: Sequence[Any] = list(zip(data.images, data.image_sizes, strict=True))
    return [image[:, :height, :width] for image, (height, width) in pairs]


def original_masks(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks of any size as bool [N, h, w] of the file."""
    masks = masks if masks.dim() == 4 else masks[:, None]
    if not len(masks):
        return masks.new_zeros((0, *size), dtype=torch.bool)
    resized = nn.functional.interpolate(masks.float(), size, mode="bilinear", align_corners=False)
    return resized[:, 0] > 0.5
