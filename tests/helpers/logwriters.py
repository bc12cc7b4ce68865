"""Writers of every log format, for tests: what a tool would print of given values, from the formats' own docstrings."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from bench.importers import ImportResult, import_logs, known_formats
from bench.importers.section import Section

EPOCH_LENGTH = 1000


@dataclass(frozen=True)
class Line:
    """One training line; iterations count from 1, over the whole run."""

    iteration: int
    when: datetime
    s_per_iter: float = 0.5
    data_s: float = 0.01
    lr: float = 0.02
    memory_mb: int = 3803
    images_per_s: float = 24.0
    eta_s: int = 93_784
    losses: dict[str, float] = field(default_factory=lambda: {"loss_cls": 0.25, "loss": 0.75})

    @property
    def epoch(self) -> int:
        """From 0."""
        return (self.iteration - 1) // EPOCH_LENGTH

    @property
    def step(self) -> int:
        """In the epoch, from 0."""
        return (self.iteration - 1) % EPOCH_LENGTH

    @property
    def eta(self) -> str:
        return str(timedelta(seconds=self.eta_s))

    @property
    def comma_time(self) -> str:
        return self.when.strftime("%Y-%m-%d %H:%M:%S,") + f"{self.when.microsecond // 1000:03}"


def solov2_own(line: Line) -> str:
    losses = ", ".join(f"{key}: {value:.6f}" for key, value in line.losses.items())
    return (
        f"{line.comma_time}-INFO: Train iter: {line.iteration}, lr: {line.lr:.9f}, {losses}, eta: {line.eta}"
    )


def paddledetection2020(line: Line) -> str:
    losses = ", ".join(f"'{key}': '{value:.6f}'" for key, value in line.losses.items())
    return (
        f"{line.comma_time}-INFO: iter: {line.iteration}, lr: {line.lr:.6f}, {losses}, eta: {line.eta}, "
        f"batch_cost: {line.s_per_iter:.5f} sec, ips: {line.images_per_s:.5f} images/sec"
    )


def ppdet(line: Line) -> str:
    losses = " ".join(f"{key}: {value:.6f}" for key, value in line.losses.items())
    return (
        f"[{line.when:%m/%d %H:%M:%S}] ppdet.engine INFO: Epoch: [{line.epoch}] [{line.step:>4}/{EPOCH_LENGTH}] "
        f"learning_rate: {line.lr:.6f} {losses} eta: {line.eta} batch_cost: {line.s_per_iter:.4f} "
        f"data_cost: {line.data_s:.4f} ips: {line.images_per_s:.4f} images/s, "
        f"max_mem_reserved: {line.memory_mb + 100} MB, max_mem_allocated: {line.memory_mb} MB"
    )


def mmdet2(line: Line) -> str:
    losses = ", ".join(f"{key}: {value:.4f}" for key, value in line.losses.items())
    return (
        f"{line.comma_time} - mmdet - INFO - Epoch [{line.epoch + 1}][{line.step + 1}/{EPOCH_LENGTH}]\t"
        f"lr: {line.lr:.3e}, eta: {line.eta}, time: {line.s_per_iter:.3f}, data_time: {line.data_s:.3f}, "
        f"memory: {line.memory_mb}, {losses}"
    )


def mmdet2_json(line: Line) -> str:
    values = {
        "mode": "train",
        "epoch": line.epoch + 1,
        "iter": line.step + 1,
        "lr": line.lr,
        "memory": line.memory_mb,
    }
    return json.dumps(values | {"data_time": line.data_s} | line.losses | {"time": line.s_per_iter})


def mmengine(line: Line) -> str:
    losses = "  ".join(f"{key}: {value:.4f}" for key, value in line.losses.items())
    return (
        f"{line.when:%m/%d %H:%M:%S} - mmengine - INFO - Epoch(train)  [{line.epoch + 1}]"
        f"[{line.step + 1:>4}/{EPOCH_LENGTH}]  lr: {line.lr:.4e}  eta: {line.eta}  time: {line.s_per_iter:.4f}  "
        f"data_time: {line.data_s:.4f}  memory: {line.memory_mb}  {losses}"
    )


def mmengine_json(line: Line) -> str:
    values = {"lr": line.lr, "data_time": line.data_s} | line.losses
    tail = {"epoch": line.epoch + 1, "iter": line.iteration, "memory": line.memory_mb, "step": line.iteration}
    return json.dumps(values | {"time": line.s_per_iter} | tail)


def detectron2(line: Line) -> str:
    losses = "  ".join(f"{key}: {value:.4g}" for key, value in line.losses.items())
    return (
        f"[{line.when:%m/%d %H:%M:%S} d2.utils.events]:  eta: {line.eta}  iter: {line.iteration - 1}  "
        f"total_loss: 1.5  {losses}  time: {line.s_per_iter:.4f}  last_time: 0.4090  data_time: {line.data_s:.4f}  "
        f"last_data_time: 0.0040   lr: {line.lr:.5g}  max_mem: {line.memory_mb}M"
    )


def detectron2_json(line: Line) -> str:
    values = {
        "iteration": line.iteration - 1,
        "lr": line.lr,
        "time": line.s_per_iter,
        "data_time": line.data_s,
    }
    return json.dumps(values | line.losses | {"total_loss": 1.5, "eta_seconds": 12.5}, sort_keys=True)


def torchvision(line: Line) -> str:
    losses = "  ".join(f"{key}: {value:.4f} ({value + 1:.4f})" for key, value in line.losses.items())
    return (
        f"Epoch: [{line.epoch}]  [{line.step:>4}/{EPOCH_LENGTH}]  eta: {line.eta}  lr: {line.lr:.6f}  {losses}  "
        f"time: {line.s_per_iter:.4f}  data: {line.data_s:.4f}  max mem: {line.memory_mb}"
    )


def detectors(line: Line) -> str:
    losses = "  ".join(f"{key}: {value:.4g}" for key, value in line.losses.items())
    return (
        f"{line.comma_time} detectors INFO: iter: {line.iteration}/90000  lr: {line.lr:.6g}  {losses}  "
        f"eta: {line.eta}  s/iter: {line.s_per_iter:.4f} (data {line.data_s:.4f})  "
        f"images/s: {line.images_per_s:.2f}  max_mem: {line.memory_mb} MB"
    )


def maskrcnn_benchmark(line: Line) -> str:
    losses = "  ".join(f"{key}: {value:.4f} ({value + 1:.4f})" for key, value in line.losses.items())
    return (
        f"{line.comma_time} maskrcnn_benchmark.trainer INFO: eta: {line.eta}  iter: {line.iteration}  {losses}  "
        f"time: {line.s_per_iter:.4f} (0.8738)  data: {line.data_s:.4f} (0.1252)  lr: {line.lr:.6f}  "
        f"max mem: {line.memory_mb}"
    )


def detectron(line: Line) -> str:
    values = {"eta": line.eta, "iter": line.iteration - 1, "lr": f"{line.lr:.6f}", "mem": line.memory_mb}
    values |= {"time": f"{line.s_per_iter:.6f}"} | {key: f"{loss:.6f}" for key, loss in line.losses.items()}
    return "json_stats: " + json.dumps(values | {"mb_qsize": 64}, sort_keys=True)


def detr(line: Line) -> str:
    losses = {"train_loss": 1.5} | {f"train_{key}": value for key, value in line.losses.items()}
    tail = {"test_coco_eval_bbox": [0.25, -1], "epoch": line.iteration - 1, "n_parameters": 41302368}
    return json.dumps({"train_lr": line.lr} | losses | tail)


def yolox(line: Line) -> str:
    losses = ", ".join(f"{key}: {value:.3f}" for key, value in line.losses.items())
    return (
        f"{line.when:%Y-%m-%d %H:%M:%S} | INFO     | yolox.core.trainer:253 - epoch: {line.epoch + 1}/300, "
        f"iter: {line.step + 1}/{EPOCH_LENGTH}, mem: {line.memory_mb}Mb, iter_time: {line.s_per_iter:.3f}s, "
        f"data_time: {line.data_s:.3f}s, {losses}, lr: {line.lr:.3e}, size: 640, ETA: {line.eta}"
    )


@dataclass(frozen=True)
class Writer:
    """How a format prints a line, and what of it a reader can know."""

    write: Callable[[Line], str]
    stamp: str = "ms"
    """ms, s (whole seconds, no year) or '' (no time)."""
    first_iteration: int = 1
    """The number that it gives to the first iteration."""
    values: tuple[str, ...] = ("s_per_iter", "data_s", "lr", "memory_mb", "eta_s")
    prefix: str = ""
    """Before the name of a loss."""


WRITERS = {
    "solov2-own": Writer(solov2_own, values=("lr", "eta_s")),
    "paddledetection-2020": Writer(paddledetection2020, values=("s_per_iter", "lr", "images_per_s", "eta_s")),
    "ppdet": Writer(
        ppdet, "s", 0, values=("s_per_iter", "data_s", "lr", "images_per_s", "memory_mb", "eta_s")
    ),
    "mmdet2": Writer(mmdet2),
    "mmdet2-json": Writer(mmdet2_json, "", values=("s_per_iter", "data_s", "lr", "memory_mb")),
    "mmengine": Writer(mmengine, "s"),
    "mmengine-json": Writer(mmengine_json, "", values=("s_per_iter", "data_s", "lr", "memory_mb")),
    "detectron2": Writer(detectron2, "s", 0),
    "detectron2-json": Writer(detectron2_json, "", 0, values=("s_per_iter", "data_s", "lr")),
    "torchvision": Writer(torchvision, "", 0),
    "maskrcnn-benchmark": Writer(maskrcnn_benchmark),
    "yolox": Writer(yolox, "s"),
    "detectron": Writer(detectron, "", 0, values=("s_per_iter", "lr", "memory_mb", "eta_s")),
    "detr": Writer(detr, "", 0, values=("lr",), prefix="train_"),
    "detectors": Writer(
        detectors, values=("s_per_iter", "data_s", "lr", "images_per_s", "memory_mb", "eta_s")
    ),
}

START = datetime(2021, 12, 31, 23, 50)
#: Formats that print a time: only these have a wall clock.
TIMED = [name for name, writer in WRITERS.items() if writer.stamp]
TEXT = [name for name in WRITERS if known_formats()[name].json is None]


def read(data: str | bytes, name: str = "auto", **window: Any) -> ImportResult:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.log"
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return import_logs(name, [path], **window)


def text(name: str, lines: Iterable[Line]) -> str:
    return "".join(WRITERS[name].write(line) + "\n" for line in lines)


def run(
    count: int, interval: int = 20, s_per_iter: float = 0.5, first: int = 1, start: datetime = START
) -> list[Line]:
    """A steady run of `count` lines."""
    return [
        Line(first - 1 + n * interval, start + timedelta(seconds=n * interval * s_per_iter), s_per_iter)
        for n in range(1, count + 1)
    ]


def only(result: ImportResult) -> Section:
    (section,) = result.log.sections
    return section


def wall_seconds(name: str, first: Line, last: Line) -> int:
    """Whole seconds between two lines' times."""
    return int(last.when.timestamp()) - int(first.when.timestamp())


COCO_BLOCK = """ Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.275
 Average Precision  (AP) @[ IoU=0.50      | area=   all | maxDets=100 ] = 0.468
 Average Precision  (AP) @[ IoU=0.75      | area=   all | maxDets=100 ] = 0.283
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 0.077
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.287
 Average Precision  (AP) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = -1.000
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = 0.257
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets= 10 ] = 0.387
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.408
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= small | maxDets=100 ] = 0.152
 Average Recall     (AR) @[ IoU=0.50:0.95 | area=medium | maxDets=100 ] = 0.460
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = 0.657
"""

#: A line of each format during an evaluation.
EVALUATIONS = {
    "solov2-own": "2021-12-31 23:55:00,000-INFO: Test iter 100",
    "paddledetection-2020": "2021-12-31 23:55:00,000-INFO: Test iter 100",
    "ppdet": "[12/31 23:55:00] ppdet.engine INFO: Eval iter: 100",
    "mmdet2": "2021-12-31 23:55:00,000 - mmdet - INFO - Epoch(val) [1][5000]\tbbox_mAP: 0.3740, bbox_mAP_50: 0.5810",
    "mmengine": "12/31 23:55:00 - mmengine - INFO - Epoch(val) [1][5000/5000]    coco/bbox_mAP: 0.3740  time: 0.0402",
    "detectron2": "[12/31 23:55:00 d2.evaluation.evaluator]: Inference done 11/5000. Dataloading: 0.0010 s/iter.",
    "detectors": "2021-12-31 23:55:00,000 detectors INFO: evaluating: 100/5000",
    "maskrcnn-benchmark": "2021-12-31 23:55:00,000 maskrcnn_benchmark.inference INFO: Total run time: 0:05:09.3 "
    "(0.0618 s / img per device, on 8 devices)",
    "yolox": "Average forward time: 5.31 ms, Average NMS time: 0.88 ms, Average inference time: 6.19 ms",
}
