"""mmengine (mmdetection 3.x) text logs (`mmengine/runner/log_processor.py`, `LogProcessor`).

    11/22 03:28:49 - mmengine - INFO - Epoch(train) [1][1/2]  lr: 1.0000e-07  eta: 0:00:20  time: 20.3237  data_time: 0.0336  loss: 2.8950  loss_rpn_cls: 0.6944
    2022/11/22 03:28:49 - mmengine - INFO - Iter(train) [   50/90000]  base_lr: 2.0000e-02 lr: 1.9e-03  eta: …  memory: 3803  …
    11/22 03:40:49 - mmengine - INFO - Epoch(val) [1][5000/5000]    coco/bbox_mAP: 0.3740  …  data_time: 0.0021  time: 0.0402

Epochs and iterations count from 1. The log file prints the year, the console does not. time is the mean over the last
10 iterations by default, whatever the logging interval.
"""  # noqa: E501

import re

from bench.importers.evaluation import mm_metrics
from bench.importers.events import Evaluating
from bench.importers.format import Format

FORMAT = Format(
    name="mmengine",
    title="mmengine (mmdetection 3.x), text",
    marker=b"(train) ",
    start=re.compile(
        rb"((?:\d{4}/)?\d\d/\d\d \d\d:\d\d:\d\d) - \S+ - INFO - "
        rb"(?:Epoch\(train\) *\[ *(\d+)\]\[ *|Iter\(train\) \[ *)(\d+)/ *(\d+)\]  "
    ),
    claim=re.compile(rb"^(?!\d{4}-).*\((?:train)\) *\[(?! *\d[\d\]\[/ ]*\]\t)"),
    keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "memory": "memory_mb"},
    once=b" - INFO - ",
    end=re.compile(rb"(?:\d|nan|inf) *$"),
    closed=False,
    first_epoch=1,
    others=(
        (
            b"(val)",
            re.compile(rb" - INFO - (?:Epoch|Iter)\(val\) *\[.*?\]  (.*)"),
            lambda m: mm_metrics(m[1]) or (Evaluating(),),
        ),
    ),
    caveats=(
        "time is the mean of the last 10 iterations by default, not of the logging interval",
        "EMA and other hooks count as the next iteration's data_time",
        "the CUDA memory peak is reset at every line: memory is the interval's",
    ),
)
