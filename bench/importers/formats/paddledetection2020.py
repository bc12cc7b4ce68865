"""PaddleDetection 0.x of 2020, static graph (`tools/train.py`, `ppdet/utils/eval_utils.py` of release 0.5).

    2020-12-04 13:22:53,014-INFO: iter: 20, lr: 0.000200, 'loss_ins': '2.592217', 'loss_cate': '1.082973', 'loss': '3.650249', eta: 4 days, 11:00:21, batch_cost: 1.42685 sec, ips: 8.41013 images/sec
    2020-12-04 22:03:53,315-INFO: Total iteration: 5000, inference time: 6.46526465264554 batch/s.
    2020-09-18 13:08:28,833-INFO: Total number of images: 248, inference time: 8.814965413086895 fps.
    2020-09-18 13:08:28,896-INFO: mAP(0.50, 11point) = 1.33                                            (VOC, in percent)
    2020-12-04 22:05:51,340-INFO: Best test box ap: 0.27520791997286925, in iter: 20000

Before, a line ended in `time: 0.412, eta: 5:00:00` or `batch_cost: 0.41200 s, eta: 5:00:00, ips: … images/sec`. Losses are medians of the last 20 iterations, batch_cost is
their mean wall time.
"""  # noqa: E501

import re

from bench.importers.events import BestMetric, Evaluating, Evaluation, Inference
from bench.importers.format import Format

NAME = "paddledetection-2020"

FORMAT = Format(
    name=NAME,
    title="PaddleDetection of 2020",
    marker=b"-INFO: iter: ",
    start=re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})-INFO: iter: ()(\d+)(), "),
    claim=re.compile(rb"-INFO: iter: |\biter: \d{1,20}, lr: [\d.e-]{1,20}, 'loss"),
    keys={"lr": "lr", "batch_cost": "s_per_iter", "time": "s_per_iter", "ips": "images_per_s"},
    once=b"-INFO: ",
    end=re.compile(rb" images/sec$|, time: \d+\.\d+, eta: (?:-?\d+ days?, )?\d+:\d\d:\d\d$"),
    first_times_nothing=True,
    others=(
        (b"Test ", re.compile(rb"-INFO: Test (?:finish )?iter \d+$"), lambda _: (Evaluating(),)),
        (
            b"Total iteration",
            re.compile(rb"-INFO: Total iteration: (\d+), inference time: (\d+\.\d+) batch/s\.?$"),
            lambda m: (Inference(NAME, batches=int(m[1]), batches_per_s=float(m[2])),),
        ),
        (
            b"INFO: mAP(",
            re.compile(rb"-INFO: (mAP\(0\.\d\d, \w{1,20}\)) = (\d+\.\d\d)$"),
            lambda m: (Evaluation("", {m[1].decode(): float(m[2]) / 100}, "line"),),
        ),
        (
            b"Total number of images",
            re.compile(rb"-INFO: Total number of images: (\d+), inference time: (\d+\.\d+) fps\.$"),
            lambda m: (Inference(NAME, images=int(m[1]), fps=float(m[2])),),
        ),
        (
            b"Best test",
            re.compile(rb"-INFO: Best test (box|mask) ap: (\d+\.\d+), in iter: (\d+)$"),
            lambda m: (BestMetric(NAME, f"{m[1].decode()} ap", float(m[2]), int(m[3])),),
        ),
    ),
    caveats=(
        "batch_cost is the mean of the last 20 iterations: the line after an evaluation holds the evaluation's time",
        "losses are medians of the last 20 iterations, ips is images by batch_cost",
        "`Best test box ap` is the mask AP of a model without boxes, and in percent of VOC",
    ),
)
