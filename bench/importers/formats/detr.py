"""`log.txt` of DETR and its descendants (`main.py`): one line of JSON for every epoch.

    {"train_lr": 0.0001, "train_class_error": 98.9, "train_loss": 43.4, "test_loss": 56.3, "test_coco_eval_bbox": [0.0, …], "epoch": 0, "n_parameters": 41302368}

Epochs count from 0; the log that DETR publishes has none of them. Values are means over the epoch.
"""  # noqa: E501

import re

from bench.importers.evaluation import coco_lists
from bench.importers.format import Format, JsonKeys

FORMAT = Format(
    name="detr",
    title="DETR and its descendants, log.txt",
    marker=b'"train_loss": ',
    start=re.compile(rb'\{"'),
    claim=re.compile(rb'"train_loss": '),
    keys={"train_lr": "lr"},
    once=b"{",
    end=re.compile(rb"\}$"),
    json=JsonKeys("epoch", lambda line: {"train_loss", "train_lr"} <= line.keys(), by_order=True),
    unit="epoch",
    mixed=b"test_coco_eval_",
    others=((b"test_coco_eval_", re.compile(rb"\{.*\}$"), lambda m: coco_lists(m[0])),),
    caveats=(
        "a line is an epoch; its values are means over the epoch",
        "prints no time: there is no rate",
        "lines that print no epoch are counted from 0",
    ),
)
