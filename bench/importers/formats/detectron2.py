"""detectron2 text logs (`detectron2/utils/events.py`, `CommonMetricPrinter`; `detectron2/evaluation/`).

    [10/10 12:00:00 d2.utils.events]:  eta: 1 day, 2:03:04  iter: 19  total_loss: 2.345  loss_cls: 1.2  time: 0.4110  last_time: 0.4090  data_time: 0.0250  last_data_time: 0.0040   lr: 0.00039962  max_mem: 3456M
    [10/10 12:00:00] d2.utils.events INFO:  eta: …                                                     (in log.txt)
    [10/10 13:00:00 d2.evaluation.evaluator]: Total inference time: 0:04:12.345 (0.050469 s / iter per device, on 8 devices)
    [10/10 13:00:00 d2.evaluation.testing]: copypaste: 40.2,61.0,43.8,24.2,43.5,52.0

Iterations count from 0. time is a mean over the whole run so far, last_time is of the one iteration; both stop before
the hooks. The copypaste line is evaluation in percent.
"""  # noqa: E501

import re

from bench.importers.events import Evaluating, Inference
from bench.importers.format import Format, duration_s

NAME = "detectron2"

FORMAT = Format(
    name=NAME,
    title="detectron2, text",
    marker=b".utils.events",
    start=re.compile(
        rb"\[(\d\d/\d\d \d\d:\d\d:\d\d)(?: [\w.]{1,40}\.utils\.events\]|\] [\w.]{1,40}\.utils\.events INFO)"
        rb": {0,9}(?:eta: (?:-?\d{1,9} days?, )?\d{1,9}:\d\d:\d\d {1,9})?iter: ()(\d+)() {1,9}"
    ),
    claim=re.compile(rb"\.utils\.events[ \]].{0,80} iter: "),
    keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "max_mem": "memory_mb"},
    once=b".utils.events",
    end=re.compile(rb" max_mem: \d+M$| lr: (?:[\d.e+-]+|N/A)$"),
    closed=False,
    others=(
        (b"Inference done", re.compile(rb"\bInference done \d+/\d+\."), lambda _: (Evaluating(),)),
        (
            b"Total inference time",
            re.compile(
                rb"Total inference time: ((?:\d+ days?, )?[\d:.]+) \((\d+\.\d+) s / (?:iter|img) per device"
            ),
            lambda m: (Inference(NAME, total_s=duration_s(m[1]), s_per_batch=float(m[2])),),
        ),
    ),
    evaluates_first=True,
    caveats=(
        "time is the mean since the run's start, data_time of the last 20 iterations",
        "time stops before the hooks (EMA, evaluation, checkpoints)",
        "losses are medians of the last 20 iterations",
        "max_mem is the peak since the start",
    ),
)
