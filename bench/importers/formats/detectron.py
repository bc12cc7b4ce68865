"""Detectron (`detectron/utils/logging.py`, `log_json_stats`): keys sorted, numbers quoted, no time of day.

    json_stats: {"accuracy_cls": "0.666667", "eta": "6:43:21", "iter": 29160, "loss": "5.467151", "lr": "0.002500", "mb_qsize": 64, "mem": 6340, "time": "0.239996"}
    INFO task_evaluation.py: 186: copypaste: 0.4017,0.6205,0.4376,0.2352,0.4380,0.5243

Iterations count from 0. Values are medians of the last 20 iterations, time is the mean since the start.
"""  # noqa: E501

import re

from bench.importers.events import Evaluating
from bench.importers.format import Format, JsonKeys

FORMAT = Format(
    name="detectron",
    title="Detectron (Caffe2)",
    marker=b'"mb_qsize": ',
    start=re.compile(rb'(?:json_stats: )?\{"'),
    claim=re.compile(rb'json_stats: (?!\{"_type")|"mb_qsize": '),
    keys={"lr": "lr", "time": "s_per_iter", "mem": "memory_mb"},
    once=b"{",
    end=re.compile(rb"\}$"),
    json=JsonKeys("iter", lambda line: "iter" in line),
    others=((b"im_detect: range", re.compile(rb"im_detect: range \["), lambda _: (Evaluating(),)),),
    caveats=(
        "time is the mean since the start, losses are medians of the last 20 iterations",
        "mem is the peak since the start",
        "prints no time of day: the wall clock is unknown",
    ),
)
