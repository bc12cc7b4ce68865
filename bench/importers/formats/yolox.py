"""YOLOX (`yolox/core/trainer.py`, `after_iter`; loguru).

    2021-08-18 10:20:36 | INFO     | yolox.core.trainer:253 - epoch: 1/300, iter: 10/3696, mem: 7250Mb, iter_time: 0.562s, data_time: 0.001s, total_loss: 16.5, iou_loss: 4.7, lr: 1.220e-09, size: 640, ETA: 5 days, 18:23:14
    2021-08-18 10:25:36.123 | INFO     | yolox.core.trainer:after_iter:270 - epoch: 1/300, iter: 10/3696, gpu mem: 7250Mb, mem: 12.1Gb, …
    Average forward time: 5.31 ms, Average NMS time: 0.88 ms, Average inference time: 6.19 ms
    map_5095: 0.5424730153762637                                                                  (VOC, as is map_50)

Epochs and iterations count from 1.
"""  # noqa: E501

import re

from bench.importers.events import Evaluation, Inference
from bench.importers.format import Format

NAME = "yolox"

FORMAT = Format(
    name=NAME,
    title="YOLOX",
    marker=b", iter_time: ",
    start=re.compile(
        rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:\.\d{1,6})?) \| INFO {1,9}\| [\w.:<>]{1,100} - "
        rb"epoch: (\d+)/\d{1,9}, iter: (\d+)/(\d+), "
    ),
    claim=re.compile(rb"epoch: \d{1,20}/\d{1,20}, iter: \d"),
    keys={
        "lr": "lr",
        "iter_time": "s_per_iter",
        "data_time": "data_s",
        "gpu mem": "memory_mb",
        "mem": "memory_mb",
    },
    once=b", iter: ",
    end=re.compile(rb", ETA: (?:-?\d{1,9} days?, )?\d{1,9}:\d\d:\d\d$", re.IGNORECASE),
    first_epoch=1,
    others=(
        (
            b"map_50",
            re.compile(rb"^(map_50(?:95)?): (\d(?:\.\d+)?)$"),
            lambda m: (Evaluation("", {m[1].decode(): float(m[2])}, "line"),),
        ),
        (
            b"Average forward time",
            re.compile(
                rb"Average forward time: [\d.]{1,20} ms, Average NMS time: [\d.]{1,20} ms, "
                rb"Average inference time: (\d+(?:\.\d+)?) ms"
            ),
            lambda m: (Inference(NAME, s_per_image=float(m[1]) / 1000),),
        ),
    ),
    caveats=(
        "times are means of the last 10 iterations (print_interval), losses are of the last one",
        "memory is the peak since the start",
        "iter_time covers the step and its data; EMA is inside",
    ),
)
