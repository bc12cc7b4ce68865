"""mmdetection 1.x and 2.x `*.log.json` (mmcv 0.x and 1.x, `TextLoggerHook._dump_log`).

    {"env_info": "…", "seed": null, "exp_name": "…"}
    {"mode": "train", "epoch": 1, "iter": 50, "lr": 0.00198, "memory": 3803, "data_time": 0.07094, "loss": 1.92284, "time": 0.71713}
    {"mode": "val", "epoch": 1, "iter": 5000, "lr": 0.02, "bbox_mAP": 0.374, "bbox_mAP_50": 0.581}

It prints neither a time nor the length of an epoch, and iterations are of the epoch. `iter` of a validation line is the
epoch's length, or the number of validation batches.
"""  # noqa: E501

import re

from bench.importers.evaluation import json_metrics
from bench.importers.events import Evaluating
from bench.importers.format import Format, JsonKeys

FORMAT = Format(
    name="mmdet2-json",
    title="mmdetection 1.x/2.x, JSON",
    marker=b'"mode": "train"',
    start=re.compile(rb'\{"mode": "train"'),
    claim=re.compile(rb'"mode": "train"'),
    keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "memory": "memory_mb"},
    once=b"{",
    end=re.compile(rb"\}$"),
    first_epoch=1,
    per_epoch=True,
    json=JsonKeys("iter", lambda line: line.get("mode") == "train", epoch="epoch"),
    others=(
        (
            b'"mode": "val"',
            re.compile(rb'\{"mode": "val"(?:, "epoch": \d{1,9}, "iter": (\d{1,9}))?.*\}$'),
            lambda m: (*json_metrics(m[0]), Evaluating(int(m[1] or 0) or None)),
        ),
    ),
    caveats=(
        "values are means over the logging interval",
        "iterations start again in every epoch; its length is learned from the validation lines, or is the highest "
        "iteration",
        "prints no time of day: the wall clock is unknown",
    ),
)
