"""YOLOX (`yolox/core/trainer.py`, `after_iter`; loguru):

    2021-08-18 10:20:36 | INFO     | yolox.core.trainer:253 - epoch: 1/300, iter: 10/3696, mem: 7250Mb, iter_time: 0.562s, data_time: 0.001s, total_loss: 16.5, iou_loss: 4.7, lr: 1.220e-09, size: 640, ETA: 5 days, 18:23:14
    2021-08-18 10:25:36.123 | INFO     | yolox.core.trainer:after_iter:270 - epoch: 1/300, iter: 10/3696, gpu mem: 7250Mb, mem: 12.1Gb, …
    Average forward time: 5.31 ms, Average NMS time: 0.88 ms, Average inference time: 6.19 ms
    map_5095: 0.5424730153762637                                                                  (VOC, as is map_50)

Epochs and iterations count from 1.

`results.csv` of ultralytics and YOLOv5 (`ultralytics/engine/trainer.py`, `save_metrics`), a row for every epoch:

    epoch,time,train/box_loss,train/cls_loss,train/dfl_loss,metrics/precision(B),metrics/recall(B),metrics/mAP50(B),metrics/mAP50-95(B),val/box_loss,lr/pg0
    1,57.5,1.21,1.9,1.2,0.63,0.49,0.53,0.37,1.11,0.0033

`rows` turns a row into JSON with the columns as keys. Epochs count from 1 (YOLOv5: from 0). `time` is the seconds since
the start.
"""  # noqa: E501

import json
import re
from typing import Any

from bench.importers.events import Evaluation
from bench.importers.format import DURATION, Format, JsonKeys, other, rate

#: Of boxes (B) and masks (M); YOLOv5 writes mAP_0.5 and mAP_0.5:0.95.
_METRIC = re.compile(r"metrics/(mAP50-95|mAP50|mAP_0\.5:0\.95|mAP_0\.5|precision|recall)(?:\(([BMP])\))?")
_NAMES = {"mAP50-95": "AP", "mAP50": "AP50", "mAP_0.5:0.95": "AP", "mAP_0.5": "AP50"}
_TASKS = {None: "bbox", "B": "bbox", "M": "segm", "P": "keypoints"}


def _metrics(line: bytes) -> tuple[Evaluation, ...]:
    content: dict[str, Any] = json.loads(line)
    found: dict[str, dict[str, float | None]] = {}
    for key, value in content.items():
        if (match := _METRIC.fullmatch(key)) is not None:
            found.setdefault(_TASKS[match[2]], {})[_NAMES.get(match[1], match[1])] = value
    return tuple(Evaluation(task, metrics, "line", int(content["epoch"])) for task, metrics in found.items())


FORMATS = (
    Format(
        name="yolox",
        title="YOLOX",
        marker=b", iter_time: ",
        start=re.compile(
            rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?) \| INFO {1,9}\| [\w.:<>]{1,100} - "
            rb"epoch: (\d+)/\d{1,9}, iter: (\d+)/(\d+), "
        ),
        claim=re.compile(rb"epoch: \d{1,20}/\d{1,20}, iter: \d"),
        keys={
            "lr": "lr",
            "iter_time": "s_per_iter",
            "data_time": "data_s",
            "gpu mem": "memory_mb",
            "mem": "memory_mb",
        },
        once=b", iter: ",
        end=re.compile(rb", ETA: " + DURATION + rb"$", re.IGNORECASE),
        first_epoch=1,
        others=(
            other(
                b"map_50",
                rb"^(map_50(?:95)?): (\d(?:\.\d+)?)$",
                lambda m: (Evaluation("", {m[1].decode(): float(m[2])}, "line"),),
            ),
            rate(
                b"Average forward time",
                rb"Average forward time: [\d.]{1,20} ms, Average NMS time: [\d.]{1,20} ms, "
                rb"Average inference time: (?P<ms_per_image>\d+(?:\.\d+)?) ms",
            ),
        ),
        caveats=(
            "times are means of the last 10 iterations (print_interval), losses are of the last one",
            "memory is the peak since the start",
            "iter_time covers the step and its data; EMA is inside",
        ),
    ),
    Format(
        name="ultralytics",
        title="ultralytics and YOLOv5, results.csv",
        marker=b'"train/',
        start=re.compile(rb'\{"epoch": '),
        claim=re.compile(rb'"train/box_loss": '),
        keys={"lr/pg0": "lr", "x/lr0": "lr"},
        json=JsonKeys("epoch", lambda line: any(key.startswith("train/") for key in line), time_s="time"),
        unit="epoch",
        mixed=b'"metrics/',
        others=(other(b'"metrics/', rb"\{.*\}$", lambda m: _metrics(m[0])),),
        caveats=(
            "a line is an epoch: its time holds the validation",
            "mAP50-95 is ultralytics' own AP, not pycocotools'",
        ),
    ),
)
