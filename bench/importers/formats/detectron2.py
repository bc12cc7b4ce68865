"""detectron2 text logs (`detectron2/utils/events.py`, `CommonMetricPrinter`; `detectron2/evaluation/`).

    [10/10 12:00:00 d2.utils.events]:  eta: 1 day, 2:03:04  iter: 19  total_loss: 2.345  loss_cls: 1.2  time: 0.4110  last_time: 0.4090  data_time: 0.0250  last_data_time: 0.0040   lr: 0.00039962  max_mem: 3456M
    [10/10 12:00:00] d2.utils.events INFO:  eta: …                                                     (in log.txt)
    2021-04-29 23:20:27,823 - INFO - detectron2.utils.events  -  eta: N/A  iter: 719  …                (another logger's label)
    INFO:detectron2.utils.events: eta: …
    [10/10 13:00:00 d2.evaluation.evaluator]: Total inference time: 0:04:12.345 (0.050469 s / iter per device, on 8 devices)
    [10/10 13:00:00 d2.evaluation.testing]: copypaste: 40.2,61.0,43.8,24.2,43.5,52.0

Iterations count from 0. time is a mean over the whole run so far, last_time is of the one iteration; both stop before
the hooks. The copypaste line is evaluation in percent.
"""  # noqa: E501

import re

from bench.importers.clock import STAMP_TEXT
from bench.importers.events import Evaluating, Inference
from bench.importers.format import Format, duration_s

NAME = "detectron2"


def _rate(total_s: float, seconds: float, *, images: bool) -> Inference:
    """Old versions time an image, newer ones a batch."""
    if images:
        return Inference(NAME, total_s=total_s, s_per_image=seconds)
    return Inference(NAME, total_s=total_s, s_per_batch=seconds)


FORMAT = Format(
    name=NAME,
    title="detectron2, text",
    marker=b".utils.events",
    start=re.compile(
        rb"(?:\[?("
        + STAMP_TEXT
        + rb")\]?[ -]{1,3}|^)(?:INFO[ :-]{1,3})?[\w.]{1,40}\.utils\.events(?:\]| INFO)?[ :-]{1,5}"
        rb"(?:eta: (?:N/A|(?:-?\d{1,9} days?, )?\d{1,9}:\d\d:\d\d) {1,9})?iter: ()(\d+)() {1,9}"
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
                rb"Total inference time: ((?:\d+ days?, )?[\d:.]+) \((\d+\.\d+) s / (?:iter|(img)) per device"
            ),
            lambda m: (_rate(duration_s(m[1]), float(m[2]), images=m[3] is not None),),
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
