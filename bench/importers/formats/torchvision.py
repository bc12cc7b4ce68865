"""torchvision's reference scripts (`references/detection/utils.py`, `MetricLogger.log_every`).

    Epoch: [0]  [   0/7329]  eta: 1:23:45  lr: 0.000040  loss: 5.1234 (5.1234)  loss_classifier: 4.4 (4.4)  time: 0.6857  data: 0.2345  max mem: 3456
    Epoch: [0] Total time: 0:50:12 (0.4111 s / it)
    Test: Total time: 0:04:00 (0.0480 s / it)

DETR's descendants print `Epoch: [0/20]`. Epochs and iterations count from 0; values are the median of the last 20 iterations, in brackets the mean since the
epoch began (not read); time and data are means of the last 20. No time of day.
"""  # noqa: E501

import re

from bench.importers.events import EpochTotal, Evaluating, Inference
from bench.importers.format import Format, duration_s

NAME = "torchvision"

FORMAT = Format(
    name=NAME,
    title="torchvision reference scripts",
    marker=b"Epoch: [",
    start=re.compile(rb"()Epoch: \[(\d+)(?:/\d{1,9})?\] {1,9}\[ {0,9}(\d+)/(\d+)\] {1,9}(?=eta: )"),
    claim=re.compile(rb"Epoch: \[\d{0,20}(?:/\d{1,20})?\]? {1,9}\["),
    keys={"lr": "lr", "time": "s_per_iter", "data": "data_s", "max mem": "memory_mb"},
    once=b"Epoch: [",
    end=re.compile(rb" (?:max mem: \d+|data: \d+\.\d{4})$"),
    closed=False,
    others=(
        (b"Test: ", re.compile(rb"Test: {1,9}\[ {0,9}\d"), lambda _: (Evaluating(),)),
        (
            b"Test: Total",
            re.compile(rb"Test: Total time: ((?:\d{1,9} days?, )?\d{1,9}:\d\d:\d\d) \((\d+\.\d+) s / it\)"),
            lambda m: (Inference(NAME, total_s=duration_s(m[1]), s_per_batch=float(m[2])),),
        ),
        (
            b"Total time",
            re.compile(
                rb"Epoch: \[(\d{1,9})(?:/\d{1,9})?\] Total time: "
                rb"((?:\d{1,9} days?, )?\d{1,9}:\d\d:\d\d) \((\d+\.\d+) s / it\)"
            ),
            lambda m: (EpochTotal(int(m[1]), int(duration_s(m[2])), float(m[3])),),
        ),
    ),
    caveats=(
        "losses are medians of the last 20 iterations, time and data their means",
        "max mem is the peak since the start",
        "prints no time of day: the rate is that of the epochs' total times",
    ),
)
