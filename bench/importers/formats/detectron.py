"""detectron2, text (`detectron2/utils/events.py`, `CommonMetricPrinter`; `detectron2/evaluation/`):

    [10/10 12:00:00 d2.utils.events]:  eta: 1 day, 2:03:04  iter: 19  total_loss: 2.345  loss_cls: 1.2  time: 0.4110  last_time: 0.4090  data_time: 0.0250  last_data_time: 0.0040   lr: 0.00039962  max_mem: 3456M
    [10/10 12:00:00] d2.utils.events INFO:  eta: …                                                     (in log.txt)
    2021-04-29 23:20:27,823 - INFO - detectron2.utils.events  -  eta: N/A  iter: 719  …                (another logger's label)
    INFO:detectron2.utils.events: eta: …
    [10/10 13:00:00 d2.evaluation.evaluator]: Total inference time: 0:04:12.345 (0.050469 s / iter per device, on 8 devices)
    [10/10 13:00:00 d2.evaluation.testing]: copypaste: 40.2,61.0,43.8,24.2,43.5,52.0

Iterations count from 0. time is a mean over the whole run so far, last_time is of the one iteration; both stop before
the hooks. The copypaste line is evaluation in percent.

detectron2, `metrics.json` (`detectron2/utils/events.py`, `JSONWriter`), keys sorted, no time of day:

    {"data_time": 0.0084, "eta_seconds": 1234.5, "iteration": 19, "loss_cls": 0.53, "lr": 0.0072, "time": 0.254, "total_loss": 1.92}
    {"bbox/AP": 40.2, "bbox/AP50": 61.0, …, "iteration": 89999}

Iterations count from 0; values are medians of the last 20 iterations; evaluation is in percent and may share a line
with training.

maskrcnn-benchmark and its descendants (`maskrcnn_benchmark/engine/trainer.py`, `utils/metric_logger.py`):

    2019-09-19 19:32:11,846 maskrcnn_benchmark.trainer INFO: eta: 1 day, 19:40:58  iter: 20  loss: 1.5644 (1.9885)  loss_box_reg: 0.1250 (0.1454)  time: 0.6509 (0.8738)  data: 0.0112 (0.1252)  lr: 0.003600  max mem: 5892
    2019-09-19 20:32:11,846 maskrcnn_benchmark.inference INFO: Total run time: 0:05:09.3 (0.0618 s / img per device, on 8 devices)

Iterations count from 1. Values are medians of the last 20 iterations, in brackets the mean since the start (not read).

Detectron (Caffe2; `detectron/utils/logging.py`, `log_json_stats`), keys sorted, numbers quoted, no time of day:

    json_stats: {"accuracy_cls": "0.666667", "eta": "6:43:21", "iter": 29160, "loss": "5.467151", "lr": "0.002500", "mb_qsize": 64, "mem": 6340, "time": "0.239996"}
    INFO task_evaluation.py: 186: copypaste: 0.4017,0.6205,0.4376,0.2352,0.4380,0.5243

Iterations count from 0. Values are medians of the last 20 iterations, time is the mean since the start.
"""  # noqa: E501

import re

from bench.importers.clock import STAMP_TEXT
from bench.importers.evaluation import json_metrics
from bench.importers.events import Evaluating
from bench.importers.format import DURATION, NO_CLOCK, Format, JsonKeys, evaluating, other, rate

_MEDIANS = "values are medians of the last 20 iterations"

FORMATS = (
    Format(
        name="detectron2",
        title="detectron2, text",
        marker=b".utils.events",
        start=re.compile(
            rb"(?:\[?("
            + STAMP_TEXT
            + rb")\]?[ -]{1,3}|^)(?:INFO[ :-]{1,3})?[\w.]{1,40}\.utils\.events(?:\]| INFO)?[ :-]{1,5}"
            rb"(?:eta: (?:N/A|" + DURATION + rb") {1,9})?iter: ()(\d+)() {1,9}"
        ),
        claim=re.compile(rb"\.utils\.events[ \]].{0,80} iter: "),
        keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "max_mem": "memory_mb"},
        once=b".utils.events",
        end=re.compile(rb" max_mem: \d+M$| lr: (?:[\d.e+-]+|N/A)$"),
        closed=False,
        others=(
            evaluating(b"Inference done", rb"\bInference done \d+/\d+\."),
            # Old versions time an image, newer ones a batch.
            rate(
                b"Total inference time",
                rb"Total inference time: (?P<total_s>(?:\d+ days?, )?[\d:.]+) "
                rb"\((?:(?P<s_per_batch>\d+\.\d+) s / iter|(?P<s_per_image>\d+\.\d+) s / img) per device",
            ),
        ),
        evaluates_first=True,
        caveats=(
            "time is the mean since the run's start, data_time of the last 20 iterations",
            "time stops before the hooks (EMA, evaluation, checkpoints)",
            "losses are medians of the last 20 iterations",
            "max_mem is the peak since the start",
        ),
    ),
    Format(
        name="detectron2-json",
        title="detectron2, metrics.json",
        marker=b'"total_loss": ',
        claim=re.compile(rb'"total_loss": '),
        keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s"},
        json=JsonKeys("iteration", lambda line: "total_loss" in line),
        mixed=b'/AP"',
        others=(other(b'/AP"', rb"\{.*\}$", lambda m: json_metrics(m[0]) or (Evaluating(),)),),
        caveats=(_MEDIANS, NO_CLOCK),
    ),
    Format(
        name="maskrcnn-benchmark",
        title="maskrcnn-benchmark",
        marker=b"INFO: eta: ",
        start=re.compile(
            rb"(?:\[?(" + STAMP_TEXT + rb")\]? [\w.]{1,60} |^)INFO: "
            rb"eta: " + DURATION + rb" {1,9}iter: ()(\d+)() {1,9}"
        ),
        claim=re.compile(rb"\bINFO: eta: .{0,40} iter: "),
        keys={"lr": "lr", "time": "s_per_iter", "data": "data_s", "max mem": "memory_mb"},
        once=b"INFO: ",
        end=re.compile(rb" max mem: \d+$"),
        closed=False,
        others=(
            rate(
                b"Total run time",
                rb"Total run time: (?P<total_s>" + DURATION + rb"(?:\.\d{1,9})?) "
                rb"\((?P<s_per_image>\d+\.\d+) s / img per device",
            ),
        ),
        caveats=(_MEDIANS, "max mem is the peak since the start"),
    ),
    Format(
        name="detectron",
        title="Detectron (Caffe2)",
        marker=b'"mb_qsize": ',
        start=re.compile(rb'(?:json_stats: )?\{"'),
        claim=re.compile(rb'json_stats: (?!\{"_type")|"mb_qsize": '),
        keys={"lr": "lr", "time": "s_per_iter", "mem": "memory_mb"},
        json=JsonKeys("iter", lambda line: "iter" in line),
        others=(evaluating(b"im_detect: range", rb"im_detect: range \["),),
        caveats=(
            "time is the mean since the start, losses are medians of the last 20 iterations",
            "mem is the peak since the start",
            NO_CLOCK,
        ),
    ),
)
