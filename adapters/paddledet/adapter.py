"""PaddleDetection through ppdet, on Paddle 3. README.md says what is patched, what differs and why."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import ppdet_patches

# isort: split
# After the patches, which decide how paddle loads and how ppdet runs.
import paddle
import ppdet.optimizer
import ppdet_detr
import ppdet_facts
import ppdet_networks
import ppdet_state
from ppdet.core.workspace import create, global_config, merge_config
from ppdet.data.utils import default_collate_fn
from ppdet_audit import PaddleObserver
from ppdet_data import (
    Data,
    Found,
    Sample,
    Tensor,
    common_scale,
    ground_truth,
    outlines,
    ssd_ground_truth,
    target_operator,
    tight_boxes,
    to_gpu,
)
from ppdet_models import build_config
from ppdet_own import own_config, read_config
from ppdet_state import damp_residual_branches, freeze_stages, load_weights, round_anchors, seed_everything

from bench.worker import api
from bench.worker.api import Batch, Description, Detections, Job
from bench.worker.batches import image_order

#: Operators that reports account for by themselves: forward and backward pass.
OPERATORS = {"deformable convolution": ("deformable_conv", "DeformableConvGradNode")}
#: Operators that stay in float32 when others do not: those that choose and cut out boxes.
CHOOSING = (
    "generate_proposals",
    "distribute_fpn_proposals",
    "roi_align",
    "multiclass_nms3",
    "matrix_nms",
    "nms",
)


class Adapter(api.Adapter):
    """One arm of PaddleDetection. ``self.model`` is the plain model, whatever wraps it while training."""

    version = getattr(ppdet, "__version__", "of a checkout")  # which has no version without its setup.py
    package = "ppdet"

    model: Any
    optimizer: Any
    ema: Any = None

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.workload = job.workload
        own = "://" in job.workload["model"]
        build, name = (own_config, job.model["name"]) if own else (build_config, job.workload["model"])
        self.config = build(name, len(job.classes), job.workload, job.options.get("config", {}))
        self.architecture: str = self.config["architecture"]
        if self.architecture == "SSD" and list(self.workload["input"]["size"]) != [300, 300]:
            raise ValueError("ssd300_vgg16 is defined for 300x300 images; set input.size: [300, 300]")
        if self.architecture == "DETR" and "RTDETRTransformer" not in global_config:
            raise ValueError(ppdet_detr.MISSING)
        self.with_masks = "MaskPostProcess" in self.config or self.architecture == "SOLOv2"
        self.gpu = self.workload["device"] != "cpu"

    @staticmethod
    def find_model(name: str) -> None:
        read_config(name)

    # -- preparing -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._set_device()
        paddle.base.core.set_num_threads(self.job.threads)
        if self.job.world_size > 1:
            paddle.distributed.init_parallel_env()
        seed_everything(self.workload["seed"])
        merge_config(self.config)
        if self.workload["precision"] == "float64":
            ppdet_patches.float32_becomes_float64()
        self.model = create(self.architecture)
        freeze_stages(self.model.backbone, self.workload["frozen_stages"])
        self.make_targets = target_operator(self.config)
        if self.job.options.get("rounded_anchors", False):
            round_anchors(self.model)
        if self.job.weights:
            load_weights(self.model, self.job.weights)
        elif self.workload["frozen_bn"] or not self.job.training:
            damp_residual_branches(self.model)
        if self.job.training:
            self._prepare_training()
        else:
            self.model.eval()
        seed_everything(self.workload["seed"] + self.job.rank)

    def _set_device(self) -> None:
        if not self.gpu:
            paddle.set_device("cpu")
            return
        if not paddle.is_compiled_with_cuda():
            raise RuntimeError(
                "the workload asks for device: cuda, but this paddlepaddle is built for the CPU; "
                "see adapters/paddledet/README.md"
            )
        local = os.environ.get("PADDLE_LOCAL_RANK") or os.environ.get("LOCAL_RANK") or self.job.rank
        paddle.set_device(f"gpu:{local}")

    def _prepare_training(self) -> None:
        """Optimizer, EMA and data parallelism, in the order of ``ppdet.engine.Trainer``."""
        settings = self.workload["optimizer"]
        build = ppdet.optimizer.OptimizerBuilder(
            regularizer={"type": "L2", "factor": settings["weight_decay"]},
            optimizer={"type": "Momentum", "momentum": settings["momentum"]},
        )
        self.optimizer = build(settings["lr"], self.model)
        if self.workload["ema"]:
            self.ema = ppdet.optimizer.ModelEMA(self.model, decay=self.workload["ema_decay"])
        self.model.train()
        self.parallel_model = paddle.DataParallel(self.model) if self.job.world_size > 1 else self.model

    # -- input ---------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> Data:
        size = batch.images.shape[2:]
        if self.config.keys() & {"FPN", "HRFPN"} and (size[0] % 32 or size[1] % 32):
            raise ValueError(f"PaddleDetection's FPN needs sides that 32 divides, not {size[0]} x {size[1]}")
        shapes, scales = batch.image_sizes, batch.image_sizes / batch.original_sizes
        images = ppdet_detr.unit_pixels(batch) if self.architecture == "DETR" else batch.images
        if self.architecture in ("SSD", "DETR"):  # their boxes are fractions of the padded input
            shapes = np.broadcast_to(size, (batch.size, 2))
        elif self.architecture == "SOLOv2":  # it scales both sides by the first factor
            scales = np.array(
                [[common_scale(*pair)] * 2 for pair in zip(batch.original_sizes, shapes, strict=True)]
            )
            shapes = batch.original_sizes * scales
        inputs: dict[str, Any] = {
            "image": paddle.to_tensor(images),
            "im_shape": paddle.to_tensor(shapes.astype(np.float32)),
            "scale_factor": paddle.to_tensor(scales.astype(np.float32)),
        }
        samples: tuple[Sample, ...] = ()
        if self.job.training:
            if self.make_targets is not None:
                samples = tuple(ground_truth(batch, index, self.with_masks) for index in range(batch.size))
            elif self.architecture == "SSD":
                inputs.update(ssd_ground_truth(batch))
            else:
                inputs.update(self._ground_truth_lists(batch))
        return Data(
            inputs=inputs,
            image_ids=tuple(int(image_id) for image_id in batch.image_ids),
            original_sizes=tuple((int(h), int(w)) for h, w in batch.original_sizes),
            objects=sum(len(labels) for labels in batch.labels),
            samples=samples,
        )

    def _ground_truth_lists(self, batch: Batch) -> dict[str, Any]:
        lists: dict[str, Any] = {
            "gt_bbox": [paddle.to_tensor(boxes) for boxes in batch.boxes],
            "gt_class": [paddle.to_tensor(labels.astype(np.int32)[:, None]) for labels in batch.labels],
            "is_crowd": [paddle.zeros([len(labels), 1], "int32") for labels in batch.labels],
        }
        if self.architecture == "DETR":
            lists["gt_bbox"] = list(map(paddle.to_tensor, ppdet_detr.relative_boxes(batch)))
        if self.with_masks:
            lists["gt_poly"] = [[outlines(mask) for mask in masks] for masks in batch.masks]
        return lists

    def load(self, data: Data) -> Data:
        """To the device; and what ppdet's loader computes for SOLOv2 and FCOS, since no step can do without it."""
        inputs = dict(data.inputs)
        if data.samples and self.make_targets is not None:
            targets = self.make_targets([dict(sample) for sample in data.samples])
            for sample in targets:
                sample.pop("image")
            inputs.update(
                {key: paddle.to_tensor(value) for key, value in default_collate_fn(targets).items()}
            )
        if self.gpu:
            inputs = {key: to_gpu(value) for key, value in inputs.items()}
        return replace(data, inputs=inputs)

    def pipeline(self) -> Iterator[Data]:
        from ppdet_pipeline import endless_batches

        size = self.workload["input"]["size"]
        batches = endless_batches(
            self.job,
            self.config,
            size,
            image_order(self.job.batches)[self.job.rank :: self.job.world_size],
            masks=self.with_masks,
        )
        for inputs in batches:
            image_ids = tuple(int(image_id) for image_id in inputs.pop("im_id").flatten().tolist())
            sizes = inputs.pop("original_size").numpy()
            yield Data(inputs, image_ids, tuple((int(h), int(w)) for h, w in sizes))

    # -- training ------------------------------------------------------------------------------------------------

    def forward(self, data: Data) -> dict[str, Tensor]:
        if not self.model.training:
            self.model.train()
        self.optimizer.clear_grad()
        with self._autocast():
            return self.parallel_model(data.inputs)

    def backward(self, losses: dict[str, Tensor]) -> None:
        losses["loss"].backward()

    def unaveraged(self) -> Any:
        return self.parallel_model.no_sync() if self.parallel_model is not self.model else None

    def optimizer_step(self) -> None:
        self.optimizer.step()

    def ema_update(self) -> None:
        self.ema.update()

    def squares(self) -> dict[str, float]:
        """Of the weights; the average begins with zeros, so that its way is another than that of other averages."""
        return {"weights": ppdet_facts.sum_of_squares(self.model.parameters())}

    def scale_learning_rate(self, factor: float) -> None:
        self.optimizer.set_lr(self.workload["optimizer"]["lr"] * factor)

    def loss_values(self, losses: dict[str, Tensor]) -> dict[str, float]:
        values = {name: float(value) for name, value in losses.items()}
        return ppdet_detr.terms(values) if self.architecture == "DETR" else values

    # -- inference -----------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """As ``ppdet.engine.Trainer``: the averaged weights take the place of the model's, and are taken back. An
        average that was never updated is the zeros it starts from."""
        if self.ema is None or not self.ema.step:
            yield
            return
        values = self.model.state_dict()
        trained = {name: value.clone() for name, value in values.items()}
        try:
            self._set_values(self.ema.apply())
            yield
        finally:
            self._set_values(trained)

    def _set_values(self, given: Mapping[str, Tensor]) -> None:
        for name, value in self.model.state_dict().items():
            value.set_value(given[name])

    def network(self, data: Data) -> Any:
        if self.model.training:
            self.model.eval()
        with paddle.no_grad(), self._autocast():
            return ppdet_networks.network(self.architecture, self.model, data.inputs)

    def _autocast(self) -> Any:
        """Products in half precision, where the workload asks for it; what chooses boxes stays in float32."""
        kind = self.workload["precision"]
        if kind not in ("bfloat16", "float16"):
            return contextlib.nullcontext()
        return paddle.amp.auto_cast(dtype=kind, level="O1", custom_black_list=CHOOSING)

    def postprocess(self, raw: Any, data: Data) -> Sequence[Found]:
        with paddle.no_grad(), self._autocast():
            return ppdet_networks.postprocess(self.architecture, self.model, raw, data.inputs)

    def detections(self, processed: Sequence[Found], data: Data) -> list[Detections]:
        sizes = zip(processed, data.image_ids, data.original_sizes, strict=True)
        return [self._detections(found, image_id, size) for found, image_id, size in sizes]

    def _detections(self, found: Found, image_id: int, size: tuple[int, int]) -> Detections:
        """A label of -1 marks a box without area; SOLOv2 always ends with a mask of its own making, of score 0."""
        rows = np.zeros((0, 6), np.float32) if found.rows is None else found.rows.numpy()
        masks = None if found.masks is None else found.masks.numpy() > 0
        if self.with_masks and masks is None:
            masks = np.zeros((0, *size), np.bool_)
        if self.architecture == "SOLOv2":
            assert masks is not None
            rows = np.concatenate([rows, tight_boxes(masks)], axis=1)
            keep = (rows[:, 1] >= self.workload["score_threshold"]) & masks.any((1, 2))
        else:
            keep = rows[:, 0] >= 0
            if self.architecture == "DETR":  # which has no threshold, and lets boxes leave the image
                keep &= rows[:, 1] >= self.workload["score_threshold"]
                rows[:, 2:6] = rows[:, 2:6].clip(0, [size[1], size[0]] * 2)
        return Detections(
            image_id=image_id,
            boxes=rows[keep, 2:6],
            scores=rows[keep, 1],
            labels=rows[keep, 0].astype(np.int64),
            masks=None if masks is None else masks[keep],
        )

    def operator_seconds(self, step: Callable[[], None]) -> dict[str, float]:
        if self.gpu or not any("deform" in type(layer).__name__.lower() for layer in self.model.sublayers()):
            return {}
        return ppdet_facts.operator_seconds(step, OPERATORS)

    # -- facts ---------------------------------------------------------------------------------------------------

    def observer(self) -> PaddleObserver:
        return PaddleObserver(self)

    def describe(self, data: Data) -> Description:
        return ppdet_facts.describe(self, data)

    # -- device --------------------------------------------------------------------------------------------------

    def mark(self) -> Any:
        if not self.gpu:
            return time.perf_counter_ns()
        event = paddle.device.cuda.Event(enable_timing=True)
        event.record()
        return event

    def marks_ns(self, marks: Sequence[Any]) -> list[int]:
        if not self.gpu:
            return list(marks)
        return [int(marks[0].elapsed_time(mark) * 1e6) for mark in marks]

    def synchronize(self) -> None:
        if self.gpu:
            paddle.device.synchronize()

    def reset_device_memory_peak(self) -> None:
        if self.gpu:
            paddle.device.cuda.reset_max_memory_allocated()
            paddle.device.cuda.reset_max_memory_reserved()
        else:
            for kind in ("Allocated", "Reserved"):
                paddle.base.core.host_memory_stat_reset_peak_value(kind, 0)

    def device_memory(self) -> dict[str, int]:
        """On the CPU what Paddle's host allocator gave out, under names of its own: no other codebase counts that, and
        tables compare the resident set, which the worker measures."""
        if self.gpu:
            return {
                "allocated": paddle.device.cuda.max_memory_allocated(),
                "reserved": paddle.device.cuda.max_memory_reserved(),
            }
        peak = paddle.base.core.host_memory_stat_peak_value
        return {"host_allocated": peak("Allocated", 0), "host_reserved": peak("Reserved", 0)}

    # -- state ---------------------------------------------------------------------------------------------------

    def save_weights(self, path: str) -> None:
        """The averaged weights when there is an EMA, as PaddleDetection writes them. Before its first update they are
        the zeros it starts from, so the model's own are written."""
        averaged = self.ema is not None and self.ema.step > 0
        state = self.ema.apply() if averaged else self.model.state_dict()
        np.savez(path, **{name: value.numpy() for name, value in state.items()})

    def save_state(self, path: str) -> None:
        ppdet_state.save_state(path, self.model, self.optimizer, self.ema)

    def load_state(self, path: str) -> None:
        ppdet_state.load_state(path, self.model, self.optimizer, self.ema)

    def close(self) -> None:
        if self.job.world_size > 1 and paddle.distributed.is_initialized():
            paddle.distributed.destroy_process_group()
