"""mmengine (mmdetection 3.x) `vis_data/scalars.json` (`mmengine/visualization/vis_backend.py`, `LocalVisBackend`).

    {"lr": 0.00198, "data_time": 0.0709, "loss": 1.9228, "time": 0.7171, "epoch": 1, "iter": 50, "memory": 3803, "step": 50}
    {"coco/bbox_mAP": 0.374, "coco/bbox_mAP_50": 0.581, "data_time": 0.0021, "time": 0.0402, "step": 1}

`step` counts iterations over the whole run in training lines, epochs (or iterations) in evaluation lines. No time.
"""  # noqa: E501

import re

from bench.importers.evaluation import json_metrics
from bench.importers.events import Evaluating
from bench.importers.format import Format, JsonKeys

FORMAT = Format(
    name="mmengine-json",
    title="mmengine (mmdetection 3.x), scalars.json",
    marker=b'"step": ',
    start=re.compile(rb'\{"(?!mode")'),
    claim=re.compile(rb'"step": '),
    keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "memory": "memory_mb"},
    once=b"{",
    end=re.compile(rb"\}$"),
    json=JsonKeys("step", lambda line: "step" in line and any("loss" in key for key in line)),
    others=(
        (
            b'"step": ',
            re.compile(rb'\{"(?!mode").*\}$'),
            lambda m: json_metrics(m[0]) or (Evaluating(),),
        ),
    ),
    caveats=(
        "values are means of the last 10 iterations by default, of the last 50 in mmdetection 3.x, whatever the "
        "logging interval",
        "prints no time of day: the wall clock is unknown",
    ),
)
