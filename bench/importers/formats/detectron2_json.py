"""detectron2 `metrics.json` (`detectron2/utils/events.py`, `JSONWriter`): keys sorted, no time of day.

    {"data_time": 0.0084, "eta_seconds": 1234.5, "iteration": 19, "loss_cls": 0.53, "lr": 0.0072, "time": 0.254, "total_loss": 1.92}
    {"bbox/AP": 40.2, "bbox/AP50": 61.0, …, "iteration": 89999}

Iterations count from 0; values are medians of the last 20 iterations; evaluation is in percent and may share a line
with training.
"""  # noqa: E501

import re

from bench.importers.evaluation import json_metrics
from bench.importers.events import Evaluating
from bench.importers.format import Format, JsonKeys

FORMAT = Format(
    name="detectron2-json",
    title="detectron2, metrics.json",
    marker=b'"total_loss": ',
    start=re.compile(rb'\{"'),
    claim=re.compile(rb'"total_loss": '),
    keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s"},
    once=b"{",
    end=re.compile(rb"\}$"),
    json=JsonKeys("iteration", lambda line: "total_loss" in line),
    mixed=b'/AP"',
    others=(
        (
            b'/AP"',
            re.compile(rb"\{.*\}$"),
            lambda m: json_metrics(m[0]) or (Evaluating(),),
        ),
    ),
    caveats=(
        "values are medians of the last 20 iterations",
        "prints no time of day: the wall clock is unknown",
    ),
)
