"""ONNX files in a deployment runtime; see README.md for what is supported and what is not."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import decoders
import numpy as np
import onnx
import pixels
import runtimes

from adapters.common import by_module
from bench.worker.api import Adapter as BaseAdapter
from bench.worker.api import Batch, Description, Detections, Job

CALIBRATION_IMAGES = 32


@dataclass(frozen=True)
class Prepared:
    """A batch as the graph takes it, float32 [B, 3, H, W]; sizes as (height, width)."""

    images: np.ndarray
    image_sizes: list[tuple[int, int]]
    original_sizes: list[tuple[int, int]]
    image_ids: list[int]
    objects: int


class Adapter(BaseAdapter):
    version = importlib.metadata.version("onnxruntime")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.options = job.options
        self.runtime_name = chosen(job.options, "runtime", "onnxruntime", tuple(runtimes.RUNTIMES))
        self.version = importlib.metadata.version(self.runtime_name)

    @staticmethod
    def find_model(name: str) -> None:
        if not Path(name).is_file():
            raise ValueError(f"no ONNX file at {name}")

    def prepare(self) -> None:
        path = Path(self.job.model["name"])
        self.find_model(self.job.model["name"])
        if self.job.training:
            raise ValueError("an ONNX file is only run, not trained; set task: infer or eval")
        cv2.setNumThreads(self.job.threads)
        self.graph = onnx.load(str(path))
        self.told = {one.key: one.value for one in self.graph.metadata_props}
        path = self.shaped(path)
        self.family = self.chosen_family()
        preparation = self.told.get("bench.input", self.family.input)
        preparation = chosen(self.options, "input", preparation, tuple(pixels.PREPARATIONS))
        self.preparation = pixels.PREPARATIONS[preparation]
        self.label_of = self.labels()
        if self.options.get("int8", False):
            path = runtimes.quantised(self.runtime_name, path, self.calibration(), Path(self.job.scratch))
        self.runtime = runtimes.RUNTIMES[self.runtime_name](
            path, self.job.threads, self.job.workload["device"]
        )

    # -- the file --------------------------------------------------------------------------------------------

    def shaped(self, path: Path) -> Path:
        """The file, or a copy with the shape that `options.shapes` asks for."""
        shape = self.input_shape()
        with_batch = len(shape) == 4
        wanted: list[int | None] = [self.job.workload["batch_size"], 3, *self.size()]
        wanted = wanted if with_batch else wanted[1:]
        how = chosen(self.options, "shapes", "static", ("static", "dynamic"))
        if not with_batch and self.job.workload["batch_size"] != 1:
            raise ValueError(f"{path.name} takes one image without a batch; set batch_size: 1")
        for name, size, asked in zip(
            ("batch_size", "channels", "height", "width")[-len(shape) :], shape, wanted
        ):
            if size is not None and size != asked:
                fix = f"batch_size: {size}" if name == "batch_size" else "input.size to what the file takes"
                raise ValueError(
                    f"{path.name} takes images {text(shape)}, the workload has {text(wanted)}; set {fix}"
                )
        if how == "dynamic":
            if None not in shape:
                raise ValueError(f"{path.name} has the fixed shape {text(shape)}; set options.shapes: static")
            return path
        if None not in shape:
            return path
        target = Path(self.job.scratch) / f"static-{self.runtime_name}-{time.time_ns()}.onnx"
        return runtimes.with_shape(self.graph, wanted, target)

    def input_shape(self) -> list[int | None]:
        """Sizes of the graph's image input."""
        constants = {one.name for one in self.graph.graph.initializer}
        inputs = [one for one in self.graph.graph.input if one.name not in constants]
        if len(inputs) != 1:
            names = ", ".join(one.name for one in inputs)
            raise ValueError(f"a graph with one input is needed, this one has {len(inputs)}: {names}")
        self.input_name = inputs[0].name
        return runtimes.shape_of(inputs[0])

    def size(self) -> tuple[int, int]:
        """Height and width of all batches."""
        size = self.job.workload["input"]["size"]
        if isinstance(size, dict):
            raise ValueError("a graph has images of one size; set input.size: [height, width]")
        return int(size[0]), int(size[1])

    def chosen_family(self) -> decoders.Family:
        """The decoder: of `options.decoder`, of the file's metadata, or by the shapes of the outputs."""
        known = tuple(decoders.FAMILIES)
        outputs = {one.name: runtimes.shape_of(one) for one in self.graph.graph.output}
        guessed = self.told.get("bench.decoder") or decoders.family_of(outputs, len(self.job.classes))
        if guessed is None and "decoder" not in self.options:
            shapes = ", ".join(f"{name} {text(shape)}" for name, shape in outputs.items())
            raise ValueError(
                f"outputs {shapes} are of no family that is known for {len(self.job.classes)} classes; "
                f"set options.decoder to one of {', '.join(known)}"
            )
        return decoders.FAMILIES[chosen(self.options, "decoder", guessed or "", known)]

    def labels(self) -> list[int]:
        """The data set's label of each class of the file, -1 for one that it lacks; by the names in the file's metadata
        where it has any, else the same classes in the same order."""
        names, classes = self.told.get("names", "").split("\n"), list(self.job.classes)
        if names == [""]:
            return list(range(len(classes)))
        found = [classes.index(name) if name in classes else -1 for name in names]
        if max(found) < 0:
            raise ValueError(f"the file's classes ({', '.join(names[:5])}, …) are none of the data set's")
        return found

    def calibration(self) -> list[dict[str, np.ndarray]]:
        """Images to calibrate int8 on: the first of the shared batches."""
        from bench.worker.batches import each_batch

        feeds: list[dict[str, np.ndarray]] = []
        folder = self.job.batches
        for batch in each_batch(folder, 0, 1):
            feeds.append(self.feed(self.convert(batch)))
            if len(feeds) * batch.size >= CALIBRATION_IMAGES:
                break
        return feeds

    # -- step ------------------------------------------------------------------------------------------------

    def convert(self, batch: Batch) -> Prepared:
        sizes = [(int(height), int(width)) for height, width in batch.image_sizes]
        return Prepared(
            images=pixels.prepare(batch.images, sizes, self.preparation),
            image_sizes=sizes,
            original_sizes=[(int(height), int(width)) for height, width in batch.original_sizes],
            image_ids=[int(number) for number in batch.image_ids],
            objects=sum(len(labels) for labels in batch.labels),
        )

    def feed(self, data: Prepared) -> dict[str, np.ndarray]:
        """Inputs of the graph by name."""
        return {self.input_name: data.images if len(self.input_shape()) == 4 else data.images[0]}

    def network(self, data: Prepared) -> dict[str, np.ndarray]:
        return self.runtime.run(self.feed(data))

    def postprocess(self, raw: dict[str, np.ndarray], data: Prepared) -> Sequence[Detections]:
        workload = self.job.workload
        settings = decoders.Settings(self.size(), workload["score_threshold"])
        found = self.family.decode(raw, settings)
        return [self.detected(one, place, data) for place, one in enumerate(found[: len(data.image_ids)])]

    def detected(self, found: decoders.Found, place: int, data: Prepared) -> Detections:
        """Detections of one image in pixels of its file."""
        threshold = self.options.get("nms", self.family.suppressed)
        boxes, scores, classes = found
        classes = classes.astype(np.int64) - self.family.offset
        table = np.array(self.label_of)
        known = (scores > self.job.workload["score_threshold"]) & (classes >= 0) & (classes < len(table))
        labels = np.where(known, table[np.clip(classes, 0, len(table) - 1)], -1)
        kept = (boxes[labels >= 0], scores[labels >= 0], labels[labels >= 0])
        boxes, scores, labels = decoders.suppress(kept, threshold, self.job.workload["max_detections"])
        (height, width), (old_height, old_width) = data.image_sizes[place], data.original_sizes[place]
        scale = np.array([old_width / width, old_height / height] * 2, np.float32)
        limit = np.array([old_width, old_height] * 2, np.float32)
        return Detections(
            image_id=data.image_ids[place],
            boxes=np.clip(boxes.astype(np.float32) * scale, 0, limit),
            scores=scores.astype(np.float32),
            labels=labels,
        )

    def detections(self, processed: Sequence[Detections], data: Prepared) -> list[Detections]:  # noqa: ARG002
        return list(processed)

    # -- facts -----------------------------------------------------------------------------------------------

    def describe(self, data: Prepared) -> Description:
        sizes = [(one.name, int(np.prod(one.dims))) for one in self.graph.graph.initializer]
        return Description(
            parameters=runtimes.parameters(self.graph),
            parameters_by_module=by_module(sizes, depth=1) if len(sizes) < 200 else {},
            forward_flops=runtimes.flops(self.graph),
            input_shape=list(data.images.shape),
            input_dtype=str(data.images.dtype),
            input_layout="NCHW",
            objects=data.objects,
            precision=self.job.workload["precision"],
            postprocess={
                "score_threshold": self.job.workload["score_threshold"],
                "nms_iou_threshold": self.options.get("nms", self.family.suppressed),
                "max_detections": self.job.workload["max_detections"],
            },
            threads=self.job.threads,
            library={**self.runtime.library, "onnx": onnx.__version__, "opencv": cv2.__version__},
            kernels=f"{self.runtime_name}{', int8' if self.options.get('int8') else ''}",
            extra={
                "int8": bool(self.options.get("int8", False)),
                "opset": self.graph.opset_import[0].version,
            },
        )


def chosen(options: Any, name: str, default: str, known: Sequence[str]) -> str:
    """An option that is one of a few words."""
    value = options.get(name, default)
    if value not in known:
        raise ValueError(f"options.{name} must be one of {', '.join(known)}, got {value}")
    return str(value)


def text(shape: Sequence[int | None]) -> str:
    """A shape in words: [1, 3, any, any]."""
    return f"[{', '.join('any' if size is None else str(size) for size in shape)}]"
