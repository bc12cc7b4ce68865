"""mmdetection 1.x and 2.x text logs (mmcv 0.x and 1.x, `mmcv/runner/hooks/logger/text.py`, `TextLoggerHook`).

    2021-06-01 12:00:00,123 - mmdet - INFO - Epoch [1][50/7330]\tlr: 1.978e-03, eta: 17:30:00, time: 0.717, data_time: 0.071, memory: 3803, loss_rpn_cls: 0.6310, loss: 1.9229
    2021-06-01 12:00:00,123 - mmdet - INFO - Iter [50/90000]\tlr: …
    2018-10-23 10:51:07,015 - INFO - Epoch [3][50/2500]\tlr: …                     (before loggers had a name)
    2021-06-01 13:00:00,123 - mmdet - INFO - Epoch(val) [1][5000]\tbbox_mAP: 0.3740, bbox_mAP_50: 0.5810, …
    Overall fps: 12.4 img / s, times per image: 80.6 ms / img                      (tools/analysis_tools/benchmark.py)

A tab follows the bracket; copies of logs have spaces there. Epochs and iterations count from 1. time is the mean over the interval, data_time is part of it.
"""  # noqa: E501

import re

from bench.importers.evaluation import mm_metrics
from bench.importers.events import Evaluating, Inference
from bench.importers.format import Format

NAME = "mmdet2"

FORMAT = Format(
    name=NAME,
    title="mmdetection 1.x/2.x, text",
    marker=b", data_time: ",
    start=re.compile(
        rb"(?:(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - (?:\S{1,100} - )?INFO - |^)"
        rb"(?:Epoch(?:\(train\))? \[(\d+)\]\[|Iter(?:\(train\))? \[)(\d+)/(\d+)\][\t ]{1,20}"
    ),
    claim=re.compile(
        rb"(?:Epoch|Iter)(?:\(train\))? \[\d[\d\]\[]{0,40}/?\d{0,20}(?:\][\t ]|$)|/\d{1,20}\][\t ]{1,20}lr: "
    ),
    keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "memory": "memory_mb"},
    once=b" [",
    end=re.compile(rb"(?:\d|nan|inf)$"),
    closed=False,
    first_epoch=1,
    others=(
        (
            b"(val) [",
            re.compile(rb"(?:Epoch|Iter)\(val\) \[[\d\]\[/ ]{1,60}\][\t ]{1,20}(?=\S)(.*)"),
            lambda m: mm_metrics(m[1]) or (Evaluating(),),
        ),
        (
            b"Overall fps",
            re.compile(
                rb"Overall fps: (\d+(?:\.\d+)?) img / s(?:, times per image: (\d+(?:\.\d+)?) ms / img)?"
            ),
            lambda m: (Inference(NAME, fps=float(m[1]), s_per_image=float(m[2]) / 1000 if m[2] else None),),
        ),
    ),
    caveats=(
        "values are means over the logging interval",
        "EMA and other hooks count as the next iteration's data_time",
        "memory is the peak since the start, the highest of all ranks",
    ),
)
