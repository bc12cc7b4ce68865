"""`results.csv` of ultralytics and YOLOv5 (`ultralytics/engine/trainer.py`, `save_metrics`): a row for every epoch.

    epoch,time,train/box_loss,train/cls_loss,train/dfl_loss,metrics/precision(B),metrics/recall(B),metrics/mAP50(B),metrics/mAP50-95(B),val/box_loss,lr/pg0
    1,57.5,1.21,1.9,1.2,0.63,0.49,0.53,0.37,1.11,0.0033

`rows` turns a row into JSON with the columns as keys. Epochs count from 1 (YOLOv5: from 0). `time` is the seconds since
the start.
"""

import json
import re
from typing import Any

from bench.importers.events import Evaluation
from bench.importers.format import Format, JsonKeys

NAME = "ultralytics"
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


FORMAT = Format(
    name=NAME,
    title="ultralytics and YOLOv5, results.csv",
    marker=b'"train/',
    start=re.compile(rb'\{"epoch": '),
    claim=re.compile(rb'"train/box_loss": '),
    keys={"lr/pg0": "lr", "x/lr0": "lr"},
    once=b"{",
    end=re.compile(rb"\}$"),
    json=JsonKeys("epoch", lambda line: any(key.startswith("train/") for key in line), time_s="time"),
    unit="epoch",
    mixed=b'"metrics/',
    others=((b'"metrics/', re.compile(rb"\{.*\}$"), lambda m: _metrics(m[0])),),
    caveats=(
        "a line is an epoch: its time holds the validation",
        "mAP50-95 is ultralytics' own AP, not pycocotools'",
    ),
)
