"""What the equal-work audit wants to know of a ppdet model."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import paddle
from ppdet_data import Data

from adapters.common import by_module
from bench.worker.api import Description

RCNN = ("FasterRCNN", "MaskRCNN", "CascadeRCNN")


def describe(adapter: Any, data: Data) -> Description:
    image = data.inputs["image"]
    # Paddle counts the running statistics of its normalisation among the parameters; nobody else does.
    sizes = [
        (name, int(parameter.size), not parameter.stop_gradient)
        for name, parameter in adapter.model.named_parameters()
        if not name.endswith(("._mean", "._variance"))
    ]
    loop = "; post-processes one image at a time" if adapter.architecture in (*RCNN, "SOLOv2") else ""
    with unchanged(adapter.model):
        adapter.model.eval()
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        adapter.network(data)
        busy = (time.process_time() - begin_cpu_s) / (time.perf_counter() - begin_s)
    return Description(
        parameters=sum(size for _, size, _ in sizes),
        trainable_parameters=sum(size for _, size, trainable in sizes if trainable),
        parameters_by_module=by_module((name, size) for name, size, _ in sizes),
        trainable_by_module=by_module((name, size) for name, size, trainable in sizes if trainable),
        input_shape=list(image.shape),
        input_dtype=str(image.dtype).rpartition(".")[2],
        input_layout="NCHW",
        objects=count_objects(data) if adapter.job.training else data.objects,
        precision=adapter.workload["precision"],
        optimizer=_optimizer(adapter) if adapter.job.training else None,
        postprocess=_postprocess(adapter),
        threads=adapter.job.threads,
        library=_library(adapter.version),
        kernels=f"PaddlePaddle{loop}",
        extra={
            "frozen_affine_values": 0,  # Paddle's frozen normalisation holds them as parameters without gradient
            "ema": adapter.ema is not None,
            "busy_processors": round(busy, 2),  # CPU seconds per second of one forward pass
            "model": adapter.job.model["name"],
            "conventions": _conventions(adapter),
            "config_changes": dict(adapter.job.options.get("config", {})),
        },
    )  # fmt: skip


def _optimizer(adapter: Any) -> dict[str, Any]:
    parameters = [p for p in adapter.model.parameters() if p.trainable and not p.stop_gradient]
    settings = adapter.workload["optimizer"]
    return {
        "name": type(adapter.optimizer).__name__,
        "lr": adapter.optimizer.get_lr(),
        "momentum": settings["momentum"],
        "weight_decay": settings["weight_decay"],
        "lr_factors": sorted({p.optimize_attr["learning_rate"] for p in parameters}),
        "tensors_without_weight_decay": sum(
            p.regularizer is not None and p.regularizer._coeff == 0.0 for p in parameters
        ),
        "groups": 1,
        "tensors": len(parameters),
        "state_values": sum(int(p.size) for p in parameters) if settings["momentum"] else 0,
    }


def _postprocess(adapter: Any) -> dict[str, Any]:
    """As the built model holds them, not as the workload asked for."""
    model = adapter.model
    if adapter.architecture == "SOLOv2":
        head = model.solov2_head
        return {
            "score_threshold": head.mask_nms.update_threshold,
            "candidate_score_threshold": head.score_threshold,
            "mask_threshold": head.mask_threshold,
            "nms_kernel": head.mask_nms.kernel,
            "nms_sigma": head.mask_nms.sigma,
            "candidates": head.mask_nms.pre_nms_top_n,
            "max_detections": head.mask_nms.post_nms_top_n,
        }
    if adapter.architecture == "DETR":
        most = model.post_process.num_top_queries
        return {"score_threshold": adapter.workload["score_threshold"], "max_detections": most}
    holder = {"RetinaNet": "head", "FCOS": "fcos_head", "SSD": "post_process"}
    nms = getattr(model, holder.get(adapter.architecture, "bbox_post_process")).nms
    settings = {
        "score_threshold": nms.score_threshold,
        "nms_iou_threshold": nms.nms_threshold,
        "candidates": nms.nms_top_k,
        "max_detections": nms.keep_top_k,
    }
    if adapter.architecture in RCNN:
        generate = model.rpn_head.train_proposal if model.training else model.rpn_head.test_proposal
        settings["proposal_candidates"] = generate.pre_nms_top_n
        settings["proposals"] = generate.post_nms_top_n
        settings["proposal_nms_iou_threshold"] = generate.nms_thresh
    return settings


def _conventions(adapter: Any) -> dict[str, Any]:
    """Where detectors of the same name differ by definition; README.md has what each is worth."""
    if adapter.architecture not in RCNN:
        return {}
    align = adapter.model.bbox_head.roi_extractor
    return {
        "anchors": "rounded" if adapter.job.options.get("rounded_anchors", False) else "exact",
        "roi_align_aligned": align.aligned,
        "roi_align_sampling_ratio": align.sampling_ratio,
    }


def _library(version: str) -> dict[str, Any]:
    flags = paddle.get_flags(["FLAGS_use_mkldnn", "FLAGS_paddle_num_threads"])
    return {
        "paddlepaddle": paddle.__version__,
        "paddledet": version,
        "paddle_revision": paddle.version.commit,
        **flags,
        **{name: os.environ[name] for name in ("MKL_DEBUG_CPU_TYPE",) if name in os.environ},
        "cuda": paddle.version.cuda() if paddle.is_compiled_with_cuda() else None,
    }


@contextlib.contextmanager
def unchanged(model: Any) -> Iterator[None]:
    """Put back what a forward pass can change: buffers, training flags, random numbers."""
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    training = model.training
    states = random.getstate(), np.random.get_state(), paddle.get_rng_state()
    yield
    for buffer, value in buffers:
        buffer.set_value(value)
    model.train() if training else model.eval()
    random.setstate(states[0])
    np.random.set_state(states[1])
    paddle.set_rng_state(states[2])


def operator_seconds(step: Callable[[], None], operators: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Seconds, in one ``step``, of each of ``operators`` (name in reports → what the names of its events in the
    profiler begin with), with all that they call."""
    profiler = paddle.profiler.Profiler(targets=[paddle.profiler.ProfilerTarget.CPU], on_trace_ready=None)
    profiler.start()
    step()
    profiler.stop()
    seconds = {}
    for title, beginnings in operators.items():
        spent_ns, open_nodes = 0, list(profiler.profiler_result.get_data().values())
        while open_nodes:
            node = open_nodes.pop()
            if node.name.startswith(tuple(beginnings)):
                spent_ns += node.end_ns - node.start_ns
            else:
                open_nodes.extend(node.children_node)
        seconds[title] = spent_ns / 1e9
    return seconds


def count_objects(data: Data) -> int:
    """Ground-truth objects of a batch, as the losses get them."""
    if data.samples:
        return sum(len(sample["gt_class"]) for sample in data.samples)
    boxes = data.inputs["gt_bbox"]
    if isinstance(boxes, list):
        return sum(box.shape[0] for box in boxes)
    return int((boxes[..., 2] > boxes[..., 0]).sum())  # SSD's are filled up with zeros


def sum_of_squares(values: Iterable[Any]) -> float:
    """Of parameters that may have a gradient."""
    arrays = (value.numpy().ravel() for value in values if not value.stop_gradient)
    return sum(float(np.dot(one.astype(np.float64), one)) for one in arrays)
