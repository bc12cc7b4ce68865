"""maskrcnn-benchmark and its descendants (`maskrcnn_benchmark/engine/trainer.py`, `utils/metric_logger.py`).

    2019-09-19 19:32:11,846 maskrcnn_benchmark.trainer INFO: eta: 1 day, 19:40:58  iter: 20  loss: 1.5644 (1.9885)  loss_box_reg: 0.1250 (0.1454)  time: 0.6509 (0.8738)  data: 0.0112 (0.1252)  lr: 0.003600  max mem: 5892
    2019-09-19 20:32:11,846 maskrcnn_benchmark.inference INFO: Total run time: 0:05:09.3 (0.0618 s / img per device, on 8 devices)

Iterations count from 1. Values are medians of the last 20 iterations, in brackets the mean since the start (not read).
"""  # noqa: E501

import re

from bench.importers.clock import STAMP_TEXT
from bench.importers.events import Inference
from bench.importers.format import Format, duration_s

NAME = "maskrcnn-benchmark"

FORMAT = Format(
    name=NAME,
    title="maskrcnn-benchmark",
    marker=b"INFO: eta: ",
    start=re.compile(
        rb"(?:\[?(" + STAMP_TEXT + rb")\]? [\w.]{1,60} |^)INFO: "
        rb"eta: (?:-?\d{1,9} days?, )?\d{1,9}:\d\d:\d\d {1,9}iter: ()(\d+)() {1,9}"
    ),
    claim=re.compile(rb"\bINFO: eta: .{0,40} iter: "),
    keys={"lr": "lr", "time": "s_per_iter", "data": "data_s", "max mem": "memory_mb"},
    once=b"INFO: ",
    end=re.compile(rb" max mem: \d+$"),
    closed=False,
    others=(
        (
            b"Total run time",
            re.compile(
                rb"Total run time: ((?:\d{1,9} days?, )?\d{1,9}:\d\d:[\d.]{2,20}) \((\d+\.\d+) s / img per device"
            ),
            lambda m: (Inference(NAME, total_s=duration_s(m[1]), s_per_image=float(m[2])),),
        ),
    ),
    caveats=(
        "values are medians of the last 20 iterations",
        "max mem is the peak since the start",
    ),
)
