"""What is the same for every codebase written in torch: an adapter says only what differs.

A subclass gives ``build_model``, ``compute_losses``, ``predict_raw`` and ``predict_final``, and may override
any other method where its codebase has a way of its own (optimizer groups, another EMA, a loader).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from adapters.torch_audit import TorchObserver, permutations_in_order
from adapters.torch_device import HALVES, TorchDevice
from adapters.torch_facts import Formulas, describe, describe_optimizer, operator_seconds
from adapters.torch_state import (
    average_of,
    freeze,
    load_weights,
    random_state,
    save_weights,
    seed_everything,
    set_random_state,
    sum_of_squares,
)
from bench.worker.api import Batch, Description, Detections, Job


@dataclass(frozen=True)
class TensorBatch:
    """A batch as tensors; fields as in ``bench.worker.api.Batch``, sizes as plain (height, width) tuples.

    pairs: of each image, what `native` finds of SOLOv2's targets when it loads the batch.
    """

    images: Tensor
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor]
    pairs: list[Tensor] = field(default_factory=list)

    def to(self, device: torch.device) -> TensorBatch:
        def move(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]

        images = self.images.to(device, non_blocking=True)
        lists = {name: move(getattr(self, name)) for name in ("boxes", "labels", "masks", "pairs")}
        return replace(self, images=images, **lists)


#: Of the shared batches (bench.recipe.workload): RGB, 0..255.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


def pixels_of(images: Tensor) -> Tensor:
    """Images of a shared batch as they were before normalisation: RGB, 0..255; the padding has the mean."""
    mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return images * std + mean


def renormalised(
    images: Tensor,
    sizes: Sequence[tuple[int, int]],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    bgr: bool = False,
    pad: float = 0.0,
) -> Tensor:
    """Images of a shared batch, normalised as a model of the user's was trained.

    Args:
        images: float32 [B, 3, H, W] of the shared batch.
        sizes: (height, width) of each image inside the padding.
        mean: By channel of the result, of pixels 0..255.
        std: The same.
        bgr: The channels become blue, green, red.
        pad: Value of the padding, after normalisation.

    Returns:
        float32 [B, 3, H, W].
    """
    pixels = pixels_of(images)
    pixels = pixels.flip(1) if bgr else pixels
    shift, scale = (images.new_tensor(list(values)).view(1, 3, 1, 1) for values in (mean, std))
    result = (pixels - shift) / scale
    for image, (height, width) in zip(result, sizes, strict=True):
        image[:, height:] = pad
        image[:, :, width:] = pad
    layout = torch.channels_last if images.is_contiguous(memory_format=torch.channels_last) else None
    return result.contiguous(memory_format=layout or torch.contiguous_format)


class LossModule(nn.Module):
    """The model with its losses as one ``forward``, which is what DistributedDataParallel can wrap."""

    def __init__(self, adapter: TorchAdapter) -> None:
        super().__init__()
        self.model = adapter.model
        self._compute_losses = adapter.compute_losses

    def forward(self, data: Any) -> dict[str, Tensor]:
        return self._compute_losses(data)


class TorchAdapter(TorchDevice):
    """One arm of a torch codebase. ``self.model`` is the plain model, whatever wraps it while training."""

    #: What the codebase adds to the canonical label 0..K-1 (1 where label 0 is the background).
    label_offset: int = 0
    #: Whether ``convert`` keeps the masks (a model without masks should not pay for moving them).
    uses_masks: bool = True
    #: Distributions whose versions are reported beside torch's.
    packages: Sequence[str] = ()
    #: Further arguments of SGD; without any, torch chooses as it does for a codebase that gives none.
    sgd_arguments: dict[str, Any] = {}
    #: Operators that reports account for by themselves, as the profiler calls their forward and backward passes.
    operators: Mapping[str, Sequence[str]] = {
        "deformable convolution": ("torchvision::deform_conv2d", "torchvision::_deform_conv2d_backward")
    }
    #: FLOPs of operators that torch's counter does not know.
    flop_formulas: Formulas = {}
    #: Further arguments of DistributedDataParallel.
    ddp_arguments: dict[str, Any] = {"forward_sync_buffers": False}

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: AveragedModel | None = None

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        channels_last = bool(job.options.get("channels_last", False))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    # -- what a codebase gives -------------------------------------------------------------------------------

    def build_model(self) -> nn.Module:
        """The model on the CPU, initialised with the codebase's own (already seeded) random numbers."""
        raise NotImplementedError

    def compute_losses(self, data: Any) -> dict[str, Tensor]:
        """Loss terms by name, from ``self.model``; their sum is minimised."""
        raise NotImplementedError

    def predict_raw(self, data: Any) -> Any:
        """The network's part of inference."""
        raise NotImplementedError

    def predict_final(self, raw: Any, data: Any) -> Sequence[dict[str, Tensor]]:
        """Per image ``boxes, scores, labels`` (its own labels) and perhaps ``masks`` (bool [N, h, w]), all in
        pixels of the original image."""
        raise NotImplementedError

    def stages(self) -> Sequence[Sequence[nn.Module]]:
        """The backbone's modules by stage, for freezing: the stem and the first stage; the second stage; …"""
        return ()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer."""
        return [{"params": [parameter for parameter in self.model.parameters() if parameter.requires_grad]}]

    def compiled_modules(self) -> Sequence[nn.Module]:
        """What ``options: {compile: true}`` compiles."""
        return (self.model,)

    def postprocess_settings(self) -> dict[str, Any]:
        """Thresholds and limits as the built model holds them, not as the workload asked for."""
        return {}

    def images(self, data: Any) -> Tensor:
        """The image tensor [B, 3, H, W] of a batch."""
        return data.images

    def objects(self, data: Any) -> int | None:
        """Ground-truth objects of a batch, None where its form does not tell."""
        return sum(len(boxes) for boxes in data.boxes) if hasattr(data, "boxes") else None

    # -- preparing -------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        torch.set_num_threads(self.job.threads)
        self.device = self.chosen_device()
        if self.job.world_size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        seed_everything(self.workload["seed"])
        if self.dtype is torch.float64:
            torch.set_default_dtype(self.dtype)
        self.model = self.build_model()
        if self.job.weights:
            load_weights(self.model, self.job.weights)
        self.model.to(self.device, memory_format=self.memory_format)
        self.model.train(self.job.training)
        frozen_stages = max(0, self.workload["frozen_stages"] or 0)  # None: as the model has it
        if frozen_stages and not self.stages():
            raise ValueError("the stages of this model's backbone are not known; set frozen_stages: 0")
        for stage in self.stages()[:frozen_stages]:
            freeze(stage)
        if self.job.training:
            self._prepare_training()
        self._switch(self.job.options)
        # Sampling in the heads starts from the same numbers however many the initialisation drew.
        seed_everything(self.workload["seed"] + self.job.rank)

    def _switch(self, options: Mapping[str, Any]) -> None:
        """How the device computes, as the workload's fields of these names say."""
        if "tf32" in options:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options["tf32"]
        if "cudnn_benchmark" in options:
            torch.backends.cudnn.benchmark = options["cudnn_benchmark"]
        if options.get("compile", False):
            for module in self.compiled_modules():
                module.compile(mode="reduce-overhead" if options.get("cuda_graphs", False) else None)

    def _prepare_training(self) -> None:
        settings = self.workload["optimizer"]
        self.optimizer = torch.optim.SGD(
            self.parameter_groups(),
            lr=settings["lr"],
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            **self.sgd_arguments,
        )
        # float16 gradients underflow without scaling; disabled, the scaler passes everything through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)
        if self.workload["ema"]:
            self._prepare_ema(self.workload["ema_decay"])
        self.loss_module: nn.Module = LossModule(self)
        if self.job.world_size > 1:
            self.loss_module = nn.parallel.DistributedDataParallel(self.loss_module, **self.ddp_arguments)

    def _prepare_ema(self, decay: float) -> None:
        self.ema = average_of(self.model, decay)

    # -- input -----------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> Any:
        digits = np.float64 if self.dtype is torch.float64 else np.float32

        def tensors(arrays: Iterable[np.ndarray], dtype: Any = None) -> list[Tensor]:
            return [torch.from_numpy(np.array(array, dtype)) for array in arrays]

        return TensorBatch(
            images=torch.from_numpy(np.array(batch.images, digits)).contiguous(
                memory_format=self.memory_format
            ),
            image_sizes=[(int(h), int(w)) for h, w in batch.image_sizes],
            original_sizes=[(int(h), int(w)) for h, w in batch.original_sizes],
            image_ids=[int(image_id) for image_id in batch.image_ids],
            boxes=tensors(batch.boxes, digits),
            labels=[labels + self.label_offset for labels in tensors(batch.labels)],
            masks=tensors(batch.masks) if self.uses_masks else [],
        )

    def load(self, data: Any) -> Any:
        return data.to(self.device)

    # -- training --------------------------------------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype in HALVES.values())

    def forward(self, data: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            return self.loss_module(data)

    def backward(self, losses: Any) -> None:
        self.scaler.scale(sum(losses.values())).backward()

    def unaveraged(self) -> contextlib.AbstractContextManager[None] | None:
        parallel = isinstance(self.loss_module, nn.parallel.DistributedDataParallel)
        return self.loss_module.no_sync() if parallel else None

    def optimizer_step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def ema_update(self) -> None:
        assert self.ema is not None
        self.ema.update_parameters(self.model)

    def squares(self) -> dict[str, float]:
        models = {"weights": self.model, "average": self.averaged_model()}
        values = {name: [*model.parameters()] for name, model in models.items() if model is not None}
        states = self.optimizer.state.values()
        values["momentum"] = [
            one["momentum_buffer"] for one in states if one.get("momentum_buffer") is not None
        ]
        return {name: sum_of_squares(one) for name, one in values.items() if one}

    def scale_learning_rate(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor

    def loss_values(self, losses: Any) -> dict[str, float]:
        """Every term, and their sum as ``loss``, as mmengine and PaddleDetection log it."""
        terms = {name: float(value.detach()) for name, value in losses.items()}
        return {**terms, "loss": sum(terms.values())}

    # -- inference -------------------------------------------------------------------------------------------

    def network(self, data: Any) -> Any:
        with self.inference(), self.autocast():
            return self.predict_raw(data)

    def postprocess(self, raw: Any, data: Any) -> Sequence[Any]:
        with self.inference(), self.autocast():
            return self.predict_final(raw, data)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients. A training arm predicts in between, with the averaged weights if it keeps any."""
        if not self.job.training:
            with torch.inference_mode():
                yield
            return
        trained = self.model
        flags = [(module, module.training) for module in trained.modules()]
        self.model = self.averaged_model() or trained
        self.model.eval()
        try:
            # Tensors that a codebase caches in inference mode could not take part in a later training step.
            with torch.no_grad():
                yield
        finally:
            self.model = trained
            for module, training in flags:
                module.training = training

    def averaged_model(self) -> nn.Module | None:
        """The model with averaged weights, None without an EMA."""
        return self.ema.module if self.ema is not None else None

    def detections(self, processed: Sequence[Any], data: Any) -> list[Detections]:
        def array(tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
            return tensor.detach().to("cpu", dtype).numpy()

        return [
            Detections(
                image_id=image_id,
                boxes=array(found["boxes"], torch.float32),
                scores=array(found["scores"], torch.float32),
                labels=array(found["labels"], torch.int64) - self.label_offset,
                masks=array(found["masks"], torch.bool) if "masks" in found else None,
            )
            for image_id, found in zip(data.image_ids, processed, strict=True)
        ]

    # -- facts and state -------------------------------------------------------------------------------------

    def describe(self, data: Any) -> Description:
        return describe(self, data)

    def observer(self) -> TorchObserver:
        return TorchObserver(self)

    def first_candidates(self) -> contextlib.AbstractContextManager[None]:
        """Inside, samplers take the first candidates."""
        return permutations_in_order()

    def describe_optimizer(self) -> dict[str, Any]:
        return describe_optimizer(self.optimizer)

    def operator_seconds(self, step: Callable[[], None]) -> dict[str, float]:
        if not any("deform" in type(module).__name__.lower() for module in self.model.modules()):
            return {}
        return operator_seconds(step, self.operators, self.device)

    def save_weights(self, path: str) -> None:
        """The averaged weights when there is an EMA, as mmengine and PaddleDetection write them."""
        save_weights(self.averaged_model() or self.model, path)

    def ema_state(self) -> dict[str, Any]:
        """What `load_ema_state` needs; empty without an EMA."""
        return self.ema.state_dict() if self.ema is not None else {}

    def load_ema_state(self, state: dict[str, Any]) -> None:
        if self.ema is not None:
            self.ema.load_state_dict(state)

    def save_state(self, path: str) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema_state(),
            "random": random_state(self.device),
        }
        torch.save(state, path)

    def load_state(self, path: str) -> None:
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.load_ema_state(state["ema"])
        set_random_state(state["random"], self.device)

    def close(self) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
