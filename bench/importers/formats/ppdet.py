"""PaddleDetection 2.x, dynamic graph (`ppdet/engine/callbacks.py`, `LogPrinter`).

    [11/22 03:13:27] ppdet.engine INFO: Epoch: [0] [1/4] learning_rate: 0.000100 loss_ins: 2.546529 loss_cate: 1.098202 loss: 3.644730 eta: 0:00:42 batch_cost: 10.6161 data_cost: 0.0003 ips: 0.1884 images/s
    [11/22 03:15:27] ppdet.engine INFO: Total sample number: 8, average FPS: 1.64

Semi-supervised training prints `INFO:      1/130860 iters Epoch: [0] [     0/727] learning_rate: …`. Newer versions name the logger `ppdet.engine.callbacks`. Epochs and steps count from 0; newer versions add `, max_mem_reserved: 1234 MB, max_mem_allocated: 1200 MB`; versions
until 2.4 wrote `averge FPS`.
"""  # noqa: E501

import re

from bench.importers.events import BestMetric, Evaluating, Evaluation, Inference
from bench.importers.format import Format

NAME = "ppdet"


def _words(*words: bytes | None) -> str:
    return " ".join(word.decode() for word in words if word)


FORMAT = Format(
    name=NAME,
    title="PaddleDetection 2.x",
    marker=b" learning_rate: ",
    start=re.compile(
        rb"(?:\[(\d\d/\d\d \d\d:\d\d:\d\d)\] |^)ppdet\.\S{1,100} INFO: {1,20}"
        rb"(?:\d{1,9}/\d{1,9} iters )?Epoch: \[(\d+)\] "
        rb"\[ {0,9}(\d+)/(\d+)\] (?=learning_rate: )"
    ),
    claim=re.compile(rb"Epoch: \[\d{1,20}\] \[ {0,9}\d{1,20}/\d{1,20}\] |\] learning_rate: "),
    keys={
        "learning_rate": "lr",
        "batch_cost": "s_per_iter",
        "data_cost": "data_s",
        "ips": "images_per_s",
        "max_mem_allocated": "memory_mb",
    },
    once=b"INFO: ",
    end=re.compile(rb" images/s(?:, max_mem_reserved: \d+ MB, max_mem_allocated: \d+ MB)?$"),
    per_card=True,
    others=(
        (
            b"INFO: mAP(",
            re.compile(rb"INFO: (mAP\(0\.\d\d, \w{1,20}\)) = (\d+(?:\.\d+)?)%"),
            lambda m: (Evaluation("", {m[1].decode(): float(m[2]) / 100}, "line"),),
        ),
        (b"Eval iter", re.compile(rb"INFO: Eval iter: \d+$"), lambda _: (Evaluating(),)),
        (
            b"Total sample",
            re.compile(rb"INFO: Total sample number: (\d+), aver(?:a)?ge FPS: (\d+(?:\.\d+)?)$"),
            lambda m: (Inference(NAME, images=int(m[1]), fps=float(m[2])),),
        ),
        (
            b"INFO: Best ",
            re.compile(rb"INFO: Best (?:(\w{1,40}) )?test ([\w +]{1,60}?) ap is (\d+\.\d+)\.$"),
            lambda m: (BestMetric(NAME, f"{_words(m[1], m[2])} ap", float(m[3])),),
        ),
    ),
    caveats=(
        "batch_cost, data_cost and ips are means of the last 20 iterations (log_iter), losses their medians",
        "ips is of one process, not of all cards",
        "EMA runs between batch_time.update and the reset of the timer: its time is in neither batch_cost nor ips",
        "the line of an epoch's first iteration holds values of the epoch before",
    ),
)
