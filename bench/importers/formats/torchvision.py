"""torchvision's reference scripts (`references/detection/utils.py`, `MetricLogger.log_every`):

    Epoch: [0]  [   0/7329]  eta: 1:23:45  lr: 0.000040  loss: 5.1234 (5.1234)  loss_classifier: 4.4 (4.4)  time: 0.6857  data: 0.2345  max mem: 3456
    Epoch: [0] Total time: 0:50:12 (0.4111 s / it)
    Test: Total time: 0:04:00 (0.0480 s / it)

DETR's descendants print `Epoch: [0/20]`. Epochs and iterations count from 0; values are the median of the last 20 iterations, in brackets the mean since the
epoch began (not read); time and data are means of the last 20. No time of day.

`log.txt` of DETR and its descendants (`main.py`), one line of JSON for every epoch:

    {"train_lr": 0.0001, "train_class_error": 98.9, "train_loss": 43.4, "test_loss": 56.3, "test_coco_eval_bbox": [0.0, …], "epoch": 0, "n_parameters": 41302368}

Epochs count from 0; the log that DETR publishes has none of them. Values are means over the epoch.
"""  # noqa: E501

import re

from bench.importers.evaluation import coco_lists
from bench.importers.events import EpochTotal
from bench.importers.format import DURATION, Format, JsonKeys, duration_s, evaluating, other, rate

FORMATS = (
    Format(
        name="torchvision",
        title="torchvision reference scripts",
        marker=b"Epoch: [",
        start=re.compile(rb"()Epoch: \[(\d+)(?:/\d{1,9})?\] {1,9}\[ {0,9}(\d+)/(\d+)\] {1,9}(?=eta: )"),
        claim=re.compile(rb"Epoch: \[\d{0,20}(?:/\d{1,20})?\]? {1,9}\["),
        keys={"lr": "lr", "time": "s_per_iter", "data": "data_s", "max mem": "memory_mb"},
        once=b"Epoch: [",
        end=re.compile(rb" (?:max mem: \d+|data: \d+\.\d{4})$"),
        closed=False,
        others=(
            evaluating(b"Test: ", rb"Test: {1,9}\[ {0,9}\d"),
            rate(
                b"Test: Total",
                rb"Test: Total time: (?P<total_s>" + DURATION + rb") \((?P<s_per_batch>\d+\.\d+) s / it\)",
            ),
            other(
                b"Total time",
                rb"Epoch: \[(\d{1,9})(?:/\d{1,9})?\] Total time: (" + DURATION + rb") \((\d+\.\d+) s / it\)",
                lambda m: (EpochTotal(int(m[1]), int(duration_s(m[2])), float(m[3])),),
            ),
        ),
        caveats=(
            "losses are medians of the last 20 iterations, time and data their means",
            "max mem is the peak since the start",
            "prints no time of day: the rate is that of the epochs' total times",
        ),
    ),
    Format(
        name="detr",
        title="DETR and its descendants, log.txt",
        marker=b'"train_loss": ',
        claim=re.compile(rb'"train_loss": '),
        keys={"train_lr": "lr"},
        json=JsonKeys("epoch", lambda line: {"train_loss", "train_lr"} <= line.keys(), by_order=True),
        unit="epoch",
        mixed=b"test_coco_eval_",
        others=(other(b"test_coco_eval_", rb"\{.*\}$", lambda m: coco_lists(m[0])),),
        caveats=(
            "a line is an epoch; its values are means over the epoch",
            "prints no time: there is no rate",
            "lines that print no epoch are counted from 0",
        ),
    ),
)
