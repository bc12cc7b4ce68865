"""PaddleDetection through ppdet, on Paddle 3. README.md says what is patched, what differs and why."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np
import ppdet_patches  # noqa: F401

# isort: split
# After the patches, which decide how paddle loads and how ppdet runs.
import paddle
import ppdet.optimizer
from ppdet.core.workspace import create, merge_config
from ppdet.data.transform.batch_operators import Gt2FCOSTarget, Gt2Solov2Target
from ppdet.data.utils import default_collate_fn
from ppdet.modeling.backbones.hrnet import HRNet
from ppdet.modeling.backbones.resnet import BottleNeck
from ppdet.modeling.backbones.vgg import VGG
from ppdet_models import SSD_MAX_OBJECTS, build_config

from bench.worker import api
from bench.worker.api import Batch, Description, Detections, Job
from bench.worker.batches import image_order

Tensor = paddle.Tensor
Sample = dict[str, Any]

RCNN = ("FasterRCNN", "MaskRCNN", "CascadeRCNN")
# Anything finer than a quarter of a pixel is lost when a mask target is drawn on 28 x 28 cells.
OUTLINE_SUBPIXELS = 4
#: Operators that reports account for by themselves: forward and backward pass.
OPERATORS = {"deformable convolution": ("deformable_conv", "DeformableConvGradNode")}


@dataclass(frozen=True)
class Data:
    """A batch as ppdet's models take it.

    inputs: what the model reads (image, im_shape, scale_factor, ground truth). objects: number in the shared batch.
    samples: ground truth of each image, from which ``load`` computes the targets of SOLOv2 and FCOS; else empty.
    """

    inputs: dict[str, Any]
    image_ids: tuple[int, ...]
    original_sizes: tuple[tuple[int, int], ...]
    objects: int | None = None
    samples: tuple[Sample, ...] = field(default=())


@dataclass(frozen=True)
class Found:
    """Final detections of one image as tensors: rows (label, score, x1, y1, x2, y2), masks [N, height, width]."""

    rows: Tensor | None
    masks: Tensor | None = None


class Adapter(api.Adapter):
    """One arm of PaddleDetection. ``self.model`` is the plain model, whatever wraps it while training."""

    version = importlib.metadata.version("paddledet")
    package = "ppdet"

    model: Any
    optimizer: Any
    ema: Any = None

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.workload = job.workload
        self.config = build_config(
            job.workload["model"], len(job.classes), job.workload, job.options.get("config", {})
        )
        self.architecture: str = self.config["architecture"]
        if self.architecture == "SSD" and list(self.workload["input"]["size"]) != [300, 300]:
            raise ValueError("ssd300_vgg16 is defined for 300x300 images; set input.size: [300, 300]")
        self.with_masks = "MaskPostProcess" in self.config or self.architecture == "SOLOv2"
        self.gpu = self.workload["device"] != "cpu"

    # -- preparing -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        self._set_device()
        paddle.base.core.set_num_threads(self.job.threads)
        if self.job.world_size > 1:
            paddle.distributed.init_parallel_env()
        seed_everything(self.workload["seed"])
        merge_config(self.config)
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
        if self.architecture == "SSD":  # its boxes are fractions of the padded input
            shapes = np.broadcast_to(size, (batch.size, 2))
        elif self.architecture == "SOLOv2":  # it scales both sides by the first factor
            scales = np.array(
                [[common_scale(*pair)] * 2 for pair in zip(batch.original_sizes, shapes, strict=True)]
            )
            shapes = batch.original_sizes * scales
        inputs: dict[str, Any] = {
            "image": paddle.to_tensor(batch.images),
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
        return self.parallel_model(data.inputs)

    def backward(self, losses: dict[str, Tensor]) -> None:
        losses["loss"].backward()

    def optimizer_step(self) -> None:
        self.optimizer.step()

    def ema_update(self) -> None:
        self.ema.update()

    def scale_learning_rate(self, factor: float) -> None:
        self.optimizer.set_lr(self.workload["optimizer"]["lr"] * factor)

    def loss_values(self, losses: dict[str, Tensor]) -> dict[str, float]:
        return {name: float(value) for name, value in losses.items()}

    # -- inference -----------------------------------------------------------------------------------------------
    #
    # The calls of each architecture's own `_forward`, cut where the last layer with weights has run. Up to there
    # is `network` (for the R-CNN family with the box NMS, which the mask head needs), the rest is `postprocess`.

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
        with paddle.no_grad():
            return getattr(self, f"_network_{self.architecture.lower()}")(data.inputs)

    def postprocess(self, raw: Any, data: Data) -> Sequence[Found]:
        with paddle.no_grad():
            return getattr(self, f"_postprocess_{self.architecture.lower()}")(raw, data.inputs)

    def _features(self, inputs: Mapping[str, Any]) -> Any:
        maps = self.model.backbone(inputs)
        return maps if self.model.neck is None else self.model.neck(maps)

    def _network_fasterrcnn(self, inputs: Mapping[str, Any]) -> Any:
        model = self.model
        features = self._features(inputs)
        rois, rois_num, _ = model.rpn_head(features, inputs)
        predictions, feature_layer = model.bbox_head(features, rois, rois_num, inputs)
        if self.architecture == "CascadeRCNN":
            rois = model.bbox_head.get_refined_rois()
        boxes, counts, _ = model.bbox_post_process(
            predictions, (rois, rois_num), inputs["im_shape"], inputs["scale_factor"]
        )
        masks = None
        if self.with_masks and boxes.shape[0]:
            masks = model.mask_head(features, boxes, counts, inputs, feat_func=feature_layer)
        return boxes, counts, masks

    def _postprocess_fasterrcnn(self, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
        """Image by image: ppdet's ``MaskPostProcess`` looks up the size of image i as that of box i, which is right
        for one image only, and its box post-processing invents a box for an image without any."""
        boxes, counts, masks = raw
        found, start = [], 0
        for index, count in enumerate(counts.tolist()):
            if not count:
                found.append(Found(None))
                continue
            one, end = slice(index, index + 1), start + count
            post = self.model.bbox_post_process
            _, rows, number = post.get_pred(
                boxes[start:end], counts[one], inputs["im_shape"][one], inputs["scale_factor"][one]
            )
            pasted = None
            if masks is not None:
                pasted = self.model.mask_post_process(masks[start:end], rows, number, post.get_origin_shape())
            found.append(Found(rows, pasted))
            start = end
        return found

    _network_maskrcnn = _network_cascadercnn = _network_fasterrcnn
    _postprocess_maskrcnn = _postprocess_cascadercnn = _postprocess_fasterrcnn

    def _network_retinanet(self, inputs: Mapping[str, Any]) -> Any:
        return self.model.head(self._features(inputs))

    def _postprocess_retinanet(self, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
        rows, counts, _ = self.model.head.post_process(raw, inputs["im_shape"], inputs["scale_factor"])
        return by_image(rows, counts)

    def _network_fcos(self, inputs: Mapping[str, Any]) -> Any:
        return self.model.fcos_head(self._features(inputs))

    def _postprocess_fcos(self, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
        return by_image(*self.model.fcos_head.post_process(raw, inputs["scale_factor"]))

    def _network_ssd(self, inputs: Mapping[str, Any]) -> Any:
        return self.model.ssd_head(self.model.backbone(inputs), inputs["image"])

    def _postprocess_ssd(self, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
        rows, counts, _ = self.model.post_process(*raw, inputs["im_shape"], inputs["scale_factor"])
        return by_image(rows, counts)

    def _network_solov2(self, inputs: Mapping[str, Any]) -> Any:
        features = self._features(inputs)
        masks = self.model.mask_head(features)
        return (*self.model.solov2_head(features), masks)

    def _postprocess_solov2(self, raw: Any, inputs: Mapping[str, Any]) -> list[Found]:
        """Image by image: ppdet's ``get_prediction`` answers for the first image of a batch only."""
        categories, kernels, features = raw
        found = []
        for index in range(features.shape[0]):
            one = slice(index, index + 1)
            masks, labels, scores, _ = self.model.solov2_head.get_prediction(
                [level[one] for level in categories],
                [level[one] for level in kernels],
                features[one],
                inputs["im_shape"][one],
                inputs["scale_factor"][one],
            )
            rows = paddle.stack([labels.astype("float32"), scores], axis=1)
            found.append(Found(rows, masks.reshape([-1, *masks.shape[-2:]])))
        return found

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
        return operator_seconds(step, OPERATORS)

    # -- facts ---------------------------------------------------------------------------------------------------

    def describe(self, data: Data) -> Description:
        image = data.inputs["image"]
        # Paddle counts the running statistics of its normalisation among the parameters; nobody else does.
        sizes = [
            (name, int(parameter.size), not parameter.stop_gradient)
            for name, parameter in self.model.named_parameters()
            if not name.endswith(("._mean", "._variance"))
        ]
        loop = "; post-processes one image at a time" if self.architecture in (*RCNN, "SOLOv2") else ""
        with unchanged(self.model):
            loss_terms: list[str] = []
            flops = None
            if self.job.training:
                training = layer_facts(self.model, lambda: loss_terms.extend(self.model(data.inputs)))
                flops = training.flops + training.gradient_flops
            self.model.eval()
            begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
            facts = layer_facts(self.model, lambda: self.network(data))
            busy = (time.process_time() - begin_cpu_s) / (time.perf_counter() - begin_s)
        return Description(
            parameters=sum(size for _, size, _ in sizes),
            trainable_parameters=sum(size for _, size, trainable in sizes if trainable),
            parameters_by_module=by_module((name, size) for name, size, _ in sizes),
            trainable_by_module=by_module((name, size) for name, size, trainable in sizes if trainable),
            forward_flops=facts.flops,
            training_flops=flops,
            input_shape=list(image.shape),
            input_dtype=str(image.dtype).rpartition(".")[2],
            input_layout="NCHW",
            input_mean=facts.input_mean,
            input_std=facts.input_std,
            objects=count_objects(data) if self.job.training else data.objects,
            precision=self.workload["precision"],
            optimizer=self._describe_optimizer() if self.job.training else None,
            postprocess=self._describe_postprocess(),
            loss_terms=[term for term in loss_terms if term != "loss"],
            threads=self.job.threads,
            library=self._describe_library(),
            kernels=f"PaddlePaddle{loop}",
            extra={
                "frozen_affine_values": 0,  # Paddle's frozen normalisation holds them as parameters without gradient
                "ema": self.ema is not None,
                "busy_processors": round(busy, 2),  # CPU seconds per second of one forward pass
                "model": self.job.model["name"],
                "conventions": self._describe_conventions(),
                "config_changes": dict(self.job.options.get("config", {})),
            },
        )  # fmt: skip

    def _describe_optimizer(self) -> dict[str, Any]:
        parameters = [p for p in self.model.parameters() if p.trainable and not p.stop_gradient]
        settings = self.workload["optimizer"]
        return {
            "name": type(self.optimizer).__name__,
            "lr": self.optimizer.get_lr(),
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

    def _describe_postprocess(self) -> dict[str, Any]:
        """As the built model holds them, not as the workload asked for."""
        model = self.model
        if self.architecture == "SOLOv2":
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
        holder = {"RetinaNet": "head", "FCOS": "fcos_head", "SSD": "post_process"}
        nms = getattr(model, holder.get(self.architecture, "bbox_post_process")).nms
        settings = {
            "score_threshold": nms.score_threshold,
            "nms_iou_threshold": nms.nms_threshold,
            "candidates": nms.nms_top_k,
            "max_detections": nms.keep_top_k,
        }
        if self.architecture in RCNN:
            generate = model.rpn_head.train_proposal if model.training else model.rpn_head.test_proposal
            settings["proposal_candidates"] = generate.pre_nms_top_n
            settings["proposals"] = generate.post_nms_top_n
            settings["proposal_nms_iou_threshold"] = generate.nms_thresh
        return settings

    def _describe_conventions(self) -> dict[str, Any]:
        """Where detectors of the same name differ by definition; README.md has what each is worth."""
        if self.architecture not in RCNN:
            return {}
        align = self.model.bbox_head.roi_extractor
        return {
            "anchors": "rounded" if self.job.options.get("rounded_anchors", False) else "exact",
            "roi_align_aligned": align.aligned,
            "roi_align_sampling_ratio": align.sampling_ratio,
        }

    def _describe_library(self) -> dict[str, Any]:
        flags = paddle.get_flags(["FLAGS_use_mkldnn", "FLAGS_paddle_num_threads"])
        return {
            "paddlepaddle": paddle.__version__,
            "paddledet": self.version,
            "paddle_revision": paddle.version.commit,
            **flags,
            **{name: os.environ[name] for name in ("MKL_DEBUG_CPU_TYPE",) if name in os.environ},
            "cuda": paddle.version.cuda() if paddle.is_compiled_with_cuda() else None,
        }

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
        """Paddle's generator cannot be written without a pickle, so it is seeded anew, here as after `load_state`."""
        arrays = {f"model/{name}": value.numpy() for name, value in self.model.state_dict().items()}
        momentum = self.optimizer.state_dict()
        for place, name in enumerate(self._momentum_names()):
            if name in momentum:
                arrays[f"velocity/{place}"] = momentum[name].numpy()
        if self.ema is not None:
            arrays |= {f"ema/{name}": value.numpy() for name, value in self.ema.state_dict.items()}
            arrays["ema_step"] = np.array(self.ema.step)
        version, words, gauss = random.getstate()
        arrays["python"] = np.array(words, np.int64)
        _, keys, *place_and_gauss = np.random.get_state()
        arrays |= {"numpy_keys": keys, "numpy_rest": np.array(place_and_gauss, np.float64)}
        arrays["python_rest"] = np.array([version, np.nan if gauss is None else gauss], np.float64)
        seed = random.getrandbits(31)
        arrays["seed"] = np.array(seed)
        paddle.seed(seed)
        random.setstate((version, words, gauss))
        with open(path, "wb") as file:  # a name would get the suffix .npz
            np.savez(file, **arrays)

    def load_state(self, path: str) -> None:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        for name, value in self.model.state_dict().items():
            value.set_value(arrays[f"model/{name}"])
        momentum = {
            name: paddle.to_tensor(arrays[f"velocity/{place}"])
            for place, name in enumerate(self._momentum_names())
            if f"velocity/{place}" in arrays
        }
        self.optimizer.set_state_dict(momentum)  # which uses it when the first step makes its accumulators
        if self.ema is not None:
            averaged = {
                name: paddle.to_tensor(arrays[f"ema/{name}"], place=value.place)
                for name, value in self.ema.state_dict.items()
            }
            self.ema.resume(averaged, step=int(arrays["ema_step"]))
            self.ema._decay = min(self.ema.decay, self.ema.step / (9 + self.ema.step))  # of the last update
        version, gauss = arrays["python_rest"].tolist()
        random.setstate((int(version), tuple(arrays["python"].tolist()), None if gauss != gauss else gauss))
        place, has_gauss, cached = arrays["numpy_rest"].tolist()
        np.random.set_state(("MT19937", arrays["numpy_keys"], int(place), int(has_gauss), cached))
        paddle.seed(int(arrays["seed"]))

    def _momentum_names(self) -> list[str]:
        """What the optimizer calls its values, parameter by parameter."""
        trained = (p for p in self.model.parameters() if p.trainable and not p.stop_gradient)
        return [f"{parameter.name}_velocity_0" for parameter in trained]

    def close(self) -> None:
        if self.job.world_size > 1 and paddle.distributed.is_initialized():
            paddle.distributed.destroy_process_group()


# -- ground truth ------------------------------------------------------------------------------------------------


def target_operator(config: Mapping[str, Any]) -> Callable[[list[Sample]], list[Sample]] | None:
    """The operator of ppdet's readers that makes a model's targets from a batch of samples, if it has one."""
    if config["architecture"] == "SOLOv2":
        return Gt2Solov2Target(**config["bench_targets"])
    if config["architecture"] == "FCOS":
        head = config["FCOSHead"]
        return Gt2FCOSTarget(
            object_sizes_boundary=[64, 128, 256, 512],
            center_sampling_radius=1.5,
            downsample_ratios=head["fpn_stride"],
            norm_reg_targets=head["norm_reg_targets"],
        )
    return None


def ground_truth(batch: Batch, index: int, masks: bool) -> Sample:
    """One image of a batch as ppdet's reader hands it to a batch operator."""
    labels = batch.labels[index].astype(np.int32)[:, None]
    sample = {
        "image": batch.images[index],
        "gt_bbox": batch.boxes[index],
        "gt_class": labels,
        "is_crowd": np.zeros_like(labels),
    }
    return {**sample, "gt_poly": [], "gt_segm": batch.masks[index]} if masks else sample


def common_scale(original: np.ndarray, resized: np.ndarray) -> float:
    """The factor before rounding that took ``original`` (height, width) to ``resized``, which ppdet's own resize
    hands on; one of the two sides fixed it, and the other was rounded."""
    factors = resized / original
    errors = [np.abs(original * factor - resized).max() for factor in factors]
    return float(factors[int(np.argmin(errors))])


def ssd_ground_truth(batch: Batch) -> dict[str, Tensor]:
    """Boxes as fractions of the input, filled up with zeros to a fixed number, as ``NormalizeBox`` and ``PadBox``."""
    height, width = batch.images.shape[2:]
    boxes = np.zeros((batch.size, SSD_MAX_OBJECTS, 4), np.float32)
    labels = np.zeros((batch.size, SSD_MAX_OBJECTS), np.int32)
    for index, (box, label) in enumerate(zip(batch.boxes, batch.labels, strict=True)):
        count = min(len(label), SSD_MAX_OBJECTS)
        boxes[index, :count] = box[:count] / np.array([width, height, width, height], np.float32)
        labels[index, :count] = label[:count]
    return {"gt_bbox": paddle.to_tensor(boxes), "gt_class": paddle.to_tensor(labels)}


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """A mask [H, W] as polygons (x, y, x, y, …) around its pixels, which are what ppdet draws its mask targets from.

    float32, since ppdet shifts an array of float64 in place. Holes are filled, as in COCO's polygons.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = rows[0], columns[0]
    window = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    fine = window.repeat(OUTLINE_SUBPIXELS, 0).repeat(OUTLINE_SUBPIXELS, 1)
    contours, _ = cv2.findContours(np.ascontiguousarray(fine), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 1.0, closed=True).reshape(-1, 2)
        if len(points) >= 3:  # contours go through the centres of the fine pixels
            polygons.append(((points + 0.5) / OUTLINE_SUBPIXELS + [left, top]).astype(np.float32).ravel())
    if not polygons:
        x1, y1, x2, y2 = left, top, columns[-1] + 1, rows[-1] + 1
        polygons.append(np.array([x1, y1, x2, y1, x2, y2, x1, y2], np.float32))
    return polygons


def tight_boxes(masks: np.ndarray) -> np.ndarray:
    """float32 [N, 4] (x1, y1, x2, y2) around masks [N, H, W]; zeros for an empty mask."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            box[:] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def by_image(rows: Tensor, counts: Tensor) -> list[Found]:
    ends = np.cumsum(counts.numpy())
    starts = [0, *ends[:-1]]
    return [Found(rows[int(a) : int(b)] if b > a else None) for a, b in zip(starts, ends, strict=True)]


def to_gpu(value: Any) -> Any:
    if isinstance(value, list):
        return [to_gpu(item) for item in value]
    return value.cuda(blocking=False) if isinstance(value, Tensor) else value


# -- state and facts ---------------------------------------------------------------------------------------------


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    paddle.seed(seed)


def damp_residual_branches(model: Any) -> None:
    """For random weights without batch statistics, where each of the 16 blocks would double the variance until
    training ends in NaN: a factor of 1/4 on every residual branch keeps the scale (as in adapters/torchvision)."""
    for layer in model.sublayers():
        if isinstance(layer, BottleNeck):
            layer.branch2c.norm.weight.set_value(paddle.full_like(layer.branch2c.norm.weight, 0.25))


def freeze_stages(backbone: Any, count: int) -> None:
    """No gradient in the first stages of VGG and HRNet, which have no setting for it as ppdet's ResNet has."""
    if isinstance(backbone, VGG):
        stages = [[getattr(backbone, f"conv_block_{index}")] for index in range(5)]
    elif isinstance(backbone, HRNet):
        stages = [[backbone.conv_layer1_1, backbone.conv_layer1_2, backbone.la1], [backbone.tr1, backbone.st2],
                  [backbone.tr2, backbone.st3], [backbone.tr3, backbone.st4]]  # fmt: skip
    else:
        return
    for layer in (layer for stage in stages[: max(count, 0)] for layer in stage):
        for parameter in layer.parameters():
            parameter.stop_gradient = True


def round_anchors(model: Any) -> None:
    """Whole pixels, as torchvision's anchors have them. Raises ValueError for a model without an RPN."""
    if not hasattr(model, "rpn_head"):
        raise ValueError(f"option rounded_anchors: {type(model).__name__} has no RPN")
    generator = model.rpn_head.anchor_generator
    generator.cell_anchors = [paddle.round(anchors) for anchors in generator.cell_anchors]


def load_weights(model: Any, path: str) -> None:
    """Load an ``.npz`` by name, strictly: every name and shape has to agree. Raises ValueError that names those that
    do not."""
    state = model.state_dict()
    with np.load(path, allow_pickle=False) as file:
        given = {name: file[name] for name in file.files}
    problems = [
        f"{kind} {len(names)}: {', '.join(sorted(names)[:8])}{', …' if len(names) > 8 else ''}"
        for kind, names in (
            ("missing", set(state) - set(given)),
            ("unexpected", set(given) - set(state)),
            (
                "of another shape",
                {n for n in set(state) & set(given) if tuple(state[n].shape) != given[n].shape},
            ),
        )
        if names
    ]
    if problems:
        raise ValueError(f"{path} does not fit {type(model).__name__}: " + "; ".join(problems))
    for name, value in state.items():
        value.set_value(given[name].astype(np.float32))


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


@dataclass(frozen=True)
class LayerFacts:
    """Of one forward pass. ``flops``: of convolutions (deformable ones too) and linear layers; a multiply-add counts as
    two, biases and everything else as none: the rule of ``adapters/torch_facts.py``. ``gradient_flops``: what a
    backward pass adds, as many for each of input and weight that wants a gradient. Mean and standard deviation are of
    what enters the first convolution, whatever normalised it before."""

    flops: int
    gradient_flops: int
    input_mean: float
    input_std: float


def layer_facts(model: Any, run: Callable[[], Any]) -> LayerFacts:
    """Watch the layers while ``run()`` uses the model."""
    flops = gradient_flops = 0
    first: list[tuple[float, float]] = []

    def watch(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops, gradient_flops
        if not first:
            first.append((float(inputs[0].mean()), float(inputs[0].std())))
        shape = (
            layer.weight.shape
        )  # of a convolution [out, in / groups, …], transposed: [in, out / groups, …]
        if isinstance(layer, paddle.nn.Linear):  # [in, out]
            work = output.size * shape[0]
        else:  # a transposed convolution spreads every input value, any other layer gathers every output value
            values = inputs[0] if isinstance(layer, paddle.nn.Conv2DTranspose) else output
            work = values.size * np.prod(shape[1:])
        flops += 2 * int(work)
        gradients = (not layer.weight.stop_gradient) + any(not value.stop_gradient for value in inputs)
        gradient_flops += 2 * int(work) * gradients

    layers = (paddle.nn.Conv2D, paddle.nn.Conv2DTranspose, paddle.nn.Linear, paddle.vision.ops.DeformConv2D)
    handles = [
        layer.register_forward_post_hook(watch) for layer in model.sublayers() if isinstance(layer, layers)
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return LayerFacts(flops, gradient_flops, *first[0])


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


def by_module(sizes: Iterable[tuple[str, int]], depth: int = 2) -> dict[str, int]:
    """Sums by the first ``depth`` parts of the parameter's name."""
    sums: dict[str, int] = {}
    for name, size in sizes:
        key = ".".join(name.split(".")[:-1][:depth]) or name
        sums[key] = sums.get(key, 0) + size
    return sums
