"""What is the same for every codebase written in torch: an adapter says only what differs.

A subclass gives ``build_model``, ``compute_losses``, ``predict_raw`` and ``predict_final``, and may override
any other method where its codebase has a way of its own (optimizer groups, another EMA, a loader).
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from adapters.torch_facts import (
    Formulas,
    by_module,
    forward_facts,
    library,
    operator_seconds,
    peak_flops_per_s,
    training_flops,
    unchanged,
)
from bench.worker.api import Adapter, Batch, Description, Detections, Job

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class TensorBatch:
    """A batch as tensors; fields as in ``bench.worker.api.Batch``, sizes as plain (height, width) tuples."""

    images: Tensor
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    boxes: list[Tensor]
    labels: list[Tensor]
    masks: list[Tensor]

    def to(self, device: torch.device) -> TensorBatch:
        def move(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]

        images = self.images.to(device, non_blocking=True)
        return replace(
            self, images=images, boxes=move(self.boxes), labels=move(self.labels), masks=move(self.masks)
        )


class LossModule(nn.Module):
    """The model with its losses as one ``forward``, which is what DistributedDataParallel can wrap."""

    def __init__(self, adapter: TorchAdapter) -> None:
        super().__init__()
        self.model = adapter.model
        self._compute_losses = adapter.compute_losses

    def forward(self, data: Any) -> dict[str, Tensor]:
        return self._compute_losses(data)


class TorchAdapter(Adapter):
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
        self.workload = job.workload
        self.dtype = DTYPES[self.workload["precision"]]
        channels_last = bool(job.options.get("channels_last", False))
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device("cpu")

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
        self.device = self._device()
        if self.job.world_size > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        seed_everything(self.workload["seed"])
        self.model = self.build_model()
        if self.job.weights:
            load_weights(self.model, self.job.weights)
        self.model.to(self.device, memory_format=self.memory_format)
        self.model.train(self.job.training)
        frozen_stages = max(0, self.workload["frozen_stages"])
        if frozen_stages and not self.stages():
            raise ValueError("the stages of this model's backbone are not known; set frozen_stages: 0")
        for stage in self.stages()[:frozen_stages]:
            freeze(stage)
        if self.job.training:
            self._prepare_training()
        if self.job.options.get("compile", False):
            for module in self.compiled_modules():
                module.compile()
        # Sampling in the heads starts from the same numbers however many the initialisation drew.
        seed_everything(self.workload["seed"] + self.job.rank)

    def _device(self) -> torch.device:
        if self.workload["device"] == "cpu":
            return torch.device("cpu")
        if not torch.cuda.is_available():
            raise RuntimeError("the workload asks for device: cuda, but torch sees no CUDA device")
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", self.job.rank)))
        torch.cuda.set_device(device)
        return device

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
        self.ema = AveragedModel(self.model, multi_avg_fn=ema_average(decay), use_buffers=True)

    # -- input -----------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> Any:
        def tensors(arrays: Iterable[np.ndarray]) -> list[Tensor]:
            return [torch.from_numpy(np.array(array)) for array in arrays]

        return TensorBatch(
            images=torch.from_numpy(np.array(batch.images)).contiguous(memory_format=self.memory_format),
            image_sizes=[(int(h), int(w)) for h, w in batch.image_sizes],
            original_sizes=[(int(h), int(w)) for h, w in batch.original_sizes],
            image_ids=[int(image_id) for image_id in batch.image_ids],
            boxes=tensors(batch.boxes),
            labels=[labels + self.label_offset for labels in tensors(batch.labels)],
            masks=tensors(batch.masks) if self.uses_masks else [],
        )

    def load(self, data: Any) -> Any:
        return data.to(self.device)

    # -- training --------------------------------------------------------------------------------------------

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    def forward(self, data: Any) -> Any:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            return self.loss_module(data)

    def backward(self, losses: Any) -> None:
        self.scaler.scale(sum(losses.values())).backward()

    def optimizer_step(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def ema_update(self) -> None:
        assert self.ema is not None
        self.ema.update_parameters(self.model)

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

    # -- facts -----------------------------------------------------------------------------------------------

    def describe(self, data: Any) -> Description:
        images = self.images(data)
        parameters = [(name, p.numel(), p.requires_grad) for name, p in self.model.named_parameters()]
        channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        # Hooks do not see into compiled code; the work is the same without it.
        with unchanged(self.model), torch.compiler.set_stance("force_eager"):
            loss_terms: list[str] = []
            flops = None
            if self.job.training:
                with self.autocast():
                    flops, loss_terms = training_flops(
                        self.model, lambda: self.compute_losses(data), self.flop_formulas
                    )
            with torch.no_grad(), self.autocast():
                facts = forward_facts(self.model, lambda: self.predict_raw(data), self.flop_formulas)
        return Description(
            parameters=sum(size for _, size, _ in parameters),
            trainable_parameters=sum(size for _, size, trainable in parameters if trainable),
            parameters_by_module=by_module((name, size) for name, size, _ in parameters),
            trainable_by_module=by_module((name, size) for name, size, trainable in parameters if trainable),
            forward_flops=facts.flops,
            training_flops=flops,
            input_shape=list(images.shape),
            input_dtype=str(images.dtype).removeprefix("torch."),
            input_layout="NHWC" if channels_last else "NCHW",
            input_mean=facts.input_mean,
            input_std=facts.input_std,
            objects=self.objects(data),
            precision=self.workload["precision"],
            optimizer=self.describe_optimizer() if self.job.training else None,
            postprocess=self.postprocess_settings(),
            loss_terms=loss_terms,
            threads=torch.get_num_threads(),
            library=library(self.packages),
            extra={
                # Affine values that a frozen normalisation holds as buffers; another codebase counts them as
                # parameters without gradient.
                "frozen_affine_values": sum(
                    b.numel() for n, b in self.model.named_buffers() if n.endswith((".weight", ".bias"))
                ),
                "ema": self.ema is not None,
                "compiled": bool(self.job.options.get("compile", False)),
            },
        )

    def describe_optimizer(self) -> dict[str, Any]:
        """``state_values``: numbers kept per step for SGD's momentum, which exist from the first step on."""
        groups = self.optimizer.param_groups
        return {
            "name": type(self.optimizer).__name__,
            "lr": groups[0]["lr"],
            "momentum": groups[0].get("momentum", 0),
            "weight_decay": groups[0]["weight_decay"],
            "groups": len(groups),
            "tensors": sum(len(group["params"]) for group in groups),
            "state_values": sum(
                p.numel() for group in groups if group.get("momentum") for p in group["params"]
            ),
        }

    # -- device and state ------------------------------------------------------------------------------------

    def mark(self) -> Any:
        if self.device.type != "cuda":
            return super().mark()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def marks_ns(self, marks: Sequence[Any]) -> list[int]:
        if self.device.type != "cuda":
            return super().marks_ns(marks)
        return [round(marks[0].elapsed_time(mark) * 1e6) for mark in marks]

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_device_memory_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def device_memory(self) -> dict[str, int]:
        if self.device.type != "cuda":
            return {}
        return {
            "allocated": torch.cuda.max_memory_allocated(self.device),
            "reserved": torch.cuda.max_memory_reserved(self.device),
        }

    def peak_flops_per_s(self) -> dict[str, float]:
        return peak_flops_per_s(self.device, self.dtype, self.synchronize)

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


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all generators, in types that are loaded without unpickling objects."""
    kind, keys, *place = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *place),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    kind, keys, *place = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *place))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def freeze(modules: Iterable[nn.Module]) -> None:
    """No gradient, fixed normalisation statistics: how mmdetection and detectron2 treat frozen stages."""
    for module in modules:
        module.requires_grad_(False)
        module.eval()


def ema_average(decay: float) -> Any:
    """``multi_avg_fn`` of AveragedModel: ``e += (1 - d)(w - e)`` with the warm-up of PaddleDetection and
    TensorFlow, ``d = min(decay, (1 + t) / (10 + t))``. ``t`` counts the updates before this one, the first of
    which copies the weights."""

    @torch.no_grad()
    def average(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        if averaged[0].is_floating_point():
            t = int(updates)  # lives on the CPU: no synchronisation
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + t) / (10 + t)))
        else:  # counters, such as num_batches_tracked
            torch._foreach_copy_(averaged, current)

    return average


def save_weights(model: nn.Module, path: str) -> None:
    np.savez(path, **{name: value.detach().cpu().numpy() for name, value in model.state_dict().items()})


def load_weights(model: nn.Module, path: str) -> None:
    """Load an ``.npz`` strictly: every name and shape has to agree; ValueError names those that do not.
    ``num_batches_tracked`` counts steps and is no weight; a model with frozen statistics has none."""
    counter = ".num_batches_tracked"
    state = model.state_dict()
    with np.load(path, allow_pickle=False) as file:
        given = {name: torch.from_numpy(file[name]) for name in file.files}
    wanted = {name for name in state if not name.endswith(counter)}
    found = {name for name in given if not name.endswith(counter)}
    shapes = {name for name in wanted & found if state[name].shape != given[name].shape}
    problems = [
        f"{kind} {len(names)}: {', '.join(sorted(names)[:8])}{', …' if len(names) > 8 else ''}"
        for kind, names in (
            ("missing", wanted - found),
            ("unexpected", found - wanted),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}: " + "; ".join(problems))
    with torch.no_grad():
        for name, value in state.items():
            if name in given:
                value.copy_(given[name])
