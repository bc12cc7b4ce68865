"""mmdetection 3.x, text (mmengine, `mmengine/runner/log_processor.py`):

    11/22 03:28:49 - mmengine - INFO - Epoch(train) [1][1/2]  lr: 1.0000e-07  eta: 0:00:20  time: 20.3237  data_time: 0.0336  loss: 2.8950  loss_rpn_cls: 0.6944
    2022/11/22 03:28:49 - mmengine - INFO - Iter(train) [   50/90000]  base_lr: 2.0000e-02 lr: 1.9e-03  eta: …  memory: 3803  …
    11/22 03:40:49 - mmengine - INFO - Epoch(test) [5000/5000]    coco/bbox_mAP: 0.3740  …
    11/22 03:40:49 - mmengine - INFO - Epoch(val) [1][5000/5000]    coco/bbox_mAP: 0.3740  …  data_time: 0.0021  time: 0.0402

Epochs and iterations count from 1. The log file prints the year, the console does not. Values are means over
the last 10 iterations by default, over the last 50 in mmdetection 3.x, whatever the logging interval.

mmdetection 3.x, `vis_data/scalars.json` (`mmengine/visualization/vis_backend.py`, `LocalVisBackend`):

    {"lr": 0.00198, "data_time": 0.0709, "loss": 1.9228, "time": 0.7171, "epoch": 1, "iter": 50, "memory": 3803, "step": 50}
    {"coco/bbox_mAP": 0.374, "coco/bbox_mAP_50": 0.581, "data_time": 0.0021, "time": 0.0402, "step": 1}

`step` counts iterations over the whole run in training lines, epochs (or iterations) in evaluation lines. No time.

mmdetection 1.x and 2.x, text (mmcv 0.x and 1.x, `mmcv/runner/hooks/logger/text.py`, `TextLoggerHook`):

    2021-06-01 12:00:00,123 - mmdet - INFO - Epoch [1][50/7330]\tlr: 1.978e-03, eta: 17:30:00, time: 0.717, data_time: 0.071, memory: 3803, loss_rpn_cls: 0.6310, loss: 1.9229
    2021-06-01 12:00:00,123 - mmdet - INFO - Iter [50/90000]\tlr: …
    2018-10-23 10:51:07,015 - INFO - Epoch [3][50/2500]\tlr: …                     (before loggers had a name)
    2021-06-01 13:00:00,123 - mmdet - INFO - Epoch(val) [1][5000]\tbbox_mAP: 0.3740, bbox_mAP_50: 0.5810, …
    Overall fps: 12.4 img / s, times per image: 80.6 ms / img                      (tools/analysis_tools/benchmark.py)

A tab follows the bracket; copies of logs have spaces there. Epochs and iterations count from 1. time is the mean over the interval, data_time is part of it.

mmdetection 1.x and 2.x, `*.log.json` (`TextLoggerHook._dump_log`):

    {"env_info": "…", "seed": null, "exp_name": "…"}
    {"mode": "train", "epoch": 1, "iter": 50, "lr": 0.00198, "memory": 3803, "data_time": 0.07094, "loss": 1.92284, "time": 0.71713}
    {"mode": "val", "epoch": 1, "iter": 5000, "lr": 0.02, "bbox_mAP": 0.374, "bbox_mAP_50": 0.581}

It prints neither a time nor the length of an epoch, and iterations are of the epoch. `iter` of a validation line is the
epoch's length, or the number of validation batches.
"""  # noqa: E501

import re

from bench.importers.evaluation import json_metrics, mm_metrics
from bench.importers.events import Evaluating
from bench.importers.format import NO_CLOCK, Format, JsonKeys, other, rate

_KEYS = {"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "memory": "memory_mb"}
_TEXT_END = re.compile(rb"(?:\d|nan|inf)$")
_WINDOW = (
    "values are means of the last 10 iterations by default, of the last 50 in mmdetection 3.x, whatever the "
    "logging interval"
)
_HOOKS = "EMA and other hooks count as the next iteration's data_time"

FORMATS = (
    Format(
        name="mmengine",
        title="mmengine (mmdetection 3.x), text",
        marker=b"(train) ",
        start=re.compile(
            rb"(?:((?:\d{4}/)?\d\d/\d\d \d\d:\d\d:\d\d) - \S{1,100} - INFO - |^)"
            rb"(?:Epoch\(train\) {0,9}\[ {0,9}(\d+)\]\[ {0,9}|Iter\(train\) {0,9}\[ {0,9})(\d+)/ {0,9}(\d+)\] {1,9}"
        ),
        claim=re.compile(rb"^(?!\d{4}-).{0,200}\(train\) {0,9}\["),
        keys=_KEYS,
        once=b" [",
        end=_TEXT_END,
        closed=False,
        first_epoch=1,
        others=(
            other(
                b" - INFO - ",
                rb"/\d\d \d\d:\d\d:\d\d - \S{1,100} - INFO - "
                rb"(?:Epoch|Iter)\((?:val|test)\) {0,9}\[[\d\]\[/ ]{1,60}\] {1,9}(?=\S)(.*)",
                lambda m: mm_metrics(m[1]) or (Evaluating(),),
            ),
            # tools/analysis_tools/benchmark.py times images of a model, or batches of a data loader
            rate(
                b"Overall fps",
                rb"Overall fps: (?P<fps>\d+(?:\.\d+)?) img/s"
                rb"(?:, times per image: (?P<ms_per_image>\d+(?:\.\d+)?) ms/img)?",
            ),
            rate(
                b"Overall fps",
                rb"Overall fps: (?P<batches_per_s>\d+(?:\.\d+)?) batch/s"
                rb"(?:, times per batch: (?P<ms_per_batch>\d+(?:\.\d+)?) ms/batch)?",
                what="data loader",
            ),
        ),
        caveats=(
            _WINDOW,
            _HOOKS,
            "the CUDA memory peak is reset at every line: memory is the interval's",
        ),
    ),
    Format(
        name="mmdet2",
        title="mmdetection 1.x/2.x, text",
        marker=b", data_time: ",
        start=re.compile(
            rb"(?:(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) - (?:\S{1,100} - )?INFO - |^)"
            rb"(?:Epoch(?:\(train\))? \[(\d+)\]\[|Iter(?:\(train\))? \[)(\d+)/(\d+)\][\t ]{1,20}"
        ),
        claim=re.compile(
            rb"(?:Epoch|Iter)(?:\(train\))? \[\d[\d\]\[]{0,40}/?\d{0,20}(?:\][\t ]|$)|/\d{1,20}\][\t ]{1,20}lr: "
        ),
        keys=_KEYS,
        once=b" [",
        end=_TEXT_END,
        closed=False,
        first_epoch=1,
        others=(
            other(
                b"(val) [",
                rb"(?:Epoch|Iter)\(val\) \[[\d\]\[/ ]{1,60}\][\t ]{1,20}(?=\S)(.*)",
                lambda m: mm_metrics(m[1]) or (Evaluating(),),
            ),
            rate(
                b"Overall fps",
                rb"Overall fps: (?P<fps>\d+(?:\.\d+)?) img / s"
                rb"(?:, times per image: (?P<ms_per_image>\d+(?:\.\d+)?) ms / img)?",
            ),
        ),
        caveats=(
            "values are means over the logging interval",
            _HOOKS,
            "memory is the peak since the start, the highest of all ranks",
        ),
    ),
    Format(
        name="mmdet2-json",
        title="mmdetection 1.x/2.x, JSON",
        marker=b'"mode": "train"',
        start=re.compile(rb'\{"mode": "train"'),
        claim=re.compile(rb'"mode": "train"'),
        keys=_KEYS,
        first_epoch=1,
        per_epoch=True,
        json=JsonKeys("iter", lambda line: line.get("mode") == "train", epoch="epoch"),
        others=(
            other(
                b'"mode": "val"',
                rb'\{"mode": "val"(?:, "epoch": \d{1,9}, "iter": (\d{1,9}))?.*\}$',
                lambda m: (*json_metrics(m[0]), Evaluating(int(m[1] or 0) or None)),
            ),
        ),
        caveats=(
            "values are means over the logging interval",
            "iterations start again in every epoch; its length is learned from the validation lines, or is the "
            "highest iteration",
            NO_CLOCK,
        ),
    ),
    Format(
        name="mmengine-json",
        title="mmengine (mmdetection 3.x), scalars.json",
        marker=b'"step": ',
        start=re.compile(rb'\{"(?!mode")'),
        claim=re.compile(rb'"step": '),
        keys=_KEYS,
        json=JsonKeys("step", lambda line: "step" in line and any("loss" in key for key in line)),
        others=(other(b'"step": ', rb'\{"(?!mode").*\}$', lambda m: json_metrics(m[0]) or (Evaluating(),)),),
        caveats=(_WINDOW, NO_CLOCK),
    ),
)
