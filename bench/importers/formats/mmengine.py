"""mmengine (mmdetection 3.x) text logs (`mmengine/runner/log_processor.py`, `LogProcessor`).

    11/22 03:28:49 - mmengine - INFO - Epoch(train) [1][1/2]  lr: 1.0000e-07  eta: 0:00:20  time: 20.3237  data_time: 0.0336  loss: 2.8950  loss_rpn_cls: 0.6944
    2022/11/22 03:28:49 - mmengine - INFO - Iter(train) [   50/90000]  base_lr: 2.0000e-02 lr: 1.9e-03  eta: …  memory: 3803  …
    11/22 03:40:49 - mmengine - INFO - Epoch(test) [5000/5000]    coco/bbox_mAP: 0.3740  …
    11/22 03:40:49 - mmengine - INFO - Epoch(val) [1][5000/5000]    coco/bbox_mAP: 0.3740  …  data_time: 0.0021  time: 0.0402

Epochs and iterations count from 1. The log file prints the year, the console does not. Values are means over
the last 10 iterations by default, over the last 50 in mmdetection 3.x, whatever the logging interval.
"""  # noqa: E501

import re

from bench.importers.evaluation import mm_metrics
from bench.importers.events import Evaluating, Inference
from bench.importers.format import Format

NAME = "mmengine"


def _rate(images: bool, per_s: float, seconds: float | None) -> Inference:
    """`tools/analysis_tools/benchmark.py` times images of a model, or batches of a data loader."""
    if images:
        return Inference(NAME, fps=per_s, s_per_image=seconds)
    return Inference(NAME, batches_per_s=per_s, s_per_batch=seconds, what="data loader")


FORMAT = Format(
    name=NAME,
    title="mmengine (mmdetection 3.x), text",
    marker=b"(train) ",
    start=re.compile(
        rb"(?:((?:\d{4}/)?\d\d/\d\d \d\d:\d\d:\d\d) - \S{1,100} - INFO - |^)"
        rb"(?:Epoch\(train\) {0,9}\[ {0,9}(\d+)\]\[ {0,9}|Iter\(train\) {0,9}\[ {0,9})(\d+)/ {0,9}(\d+)\] {1,9}"
    ),
    claim=re.compile(rb"^(?!\d{4}-).{0,200}\(train\) {0,9}\["),
    keys={"lr": "lr", "time": "s_per_iter", "data_time": "data_s", "memory": "memory_mb"},
    once=b" [",
    end=re.compile(rb"(?:\d|nan|inf)$"),
    closed=False,
    first_epoch=1,
    others=(
        (
            b" - INFO - ",
            re.compile(
                rb"/\d\d \d\d:\d\d:\d\d - \S{1,100} - INFO - "
                rb"(?:Epoch|Iter)\((?:val|test)\) {0,9}\[[\d\]\[/ ]{1,60}\] {1,9}(?=\S)(.*)"
            ),
            lambda m: mm_metrics(m[1]) or (Evaluating(),),
        ),
        (
            b"Overall fps",
            re.compile(
                rb"Overall fps: (\d+(?:\.\d+)?) (img|batch)/s"
                rb"(?:, times per (?:image|batch): (\d+(?:\.\d+)?) ms/(?:img|batch))?"
            ),
            lambda m: (_rate(m[2] == b"img", float(m[1]), float(m[3]) / 1000 if m[3] else None),),
        ),
    ),
    caveats=(
        "values are means of the last 10 iterations by default, of the last 50 in mmdetection 3.x, whatever the "
        "logging interval",
        "EMA and other hooks count as the next iteration's data_time",
        "the CUDA memory peak is reset at every line: memory is the interval's",
    ),
)
