"""PaddleDetection 2.x, dynamic graph (`ppdet/engine/callbacks.py`, `LogPrinter`):

    [11/22 03:13:27] ppdet.engine INFO: Epoch: [0] [1/4] learning_rate: 0.000100 loss_ins: 2.546529 loss_cate: 1.098202 loss: 3.644730 eta: 0:00:42 batch_cost: 10.6161 data_cost: 0.0003 ips: 0.1884 images/s
    [11/22 03:15:27] ppdet.engine INFO: Total sample number: 8, average FPS: 1.64

Semi-supervised training prints `INFO:      1/130860 iters Epoch: [0] [     0/727] learning_rate: …`. Newer versions name the logger `ppdet.engine.callbacks`. Epochs and steps count from 0; newer versions add `, max_mem_reserved: 1234 MB, max_mem_allocated: 1200 MB`; versions
until 2.4 wrote `averge FPS`.

PaddleDetection 0.x of 2020, static graph (`tools/train.py`, `ppdet/utils/eval_utils.py` of release 0.5):

    2020-12-04 13:22:53,014-INFO: iter: 20, lr: 0.000200, 'loss_ins': '2.592217', 'loss_cate': '1.082973', 'loss': '3.650249', eta: 4 days, 11:00:21, batch_cost: 1.42685 sec, ips: 8.41013 images/sec
    2020-12-04 22:03:53,315-INFO: Total iteration: 5000, inference time: 6.46526465264554 batch/s.
    2020-09-18 13:08:28,833-INFO: Total number of images: 248, inference time: 8.814965413086895 fps.
    2020-09-18 13:08:28,896-INFO: mAP(0.50, 11point) = 1.33                                            (VOC, in percent)
    2020-12-04 22:05:51,340-INFO: Best test box ap: 0.27520791997286925, in iter: 20000

Before, a line ended in `time: 0.412, eta: 5:00:00` or `batch_cost: 0.41200 s, eta: 5:00:00, ips: … images/sec`. Losses are medians of the last 20 iterations, batch_cost is
their mean wall time.

The own SOLOv2 implementation whose log of December 2020 is the reference (`../shared/reference`):

    2020-12-04 11:44:20,089-INFO: Train iter: 20, lr: 0.000200000, all_loss: 3.760885, loss_ins: 2.685804, loss_cate: 1.075081, eta: 5 days, 5:23:49
    2020-12-04 23:33:00,303-INFO: total time: 1018.726801s
    2020-12-04 23:33:00,303-INFO: Speed: 0.205720s per image,  4.9 FPS.

Iterations count from 1; losses are those of one iteration; no rate is printed.
"""  # noqa: E501

import re

from bench.importers.events import BestMetric, Evaluation
from bench.importers.format import DURATION, Format, evaluating, other, rate

PADDLE_2020, OWN = "paddledetection-2020", "solov2-own"


def _voc(match: re.Match[bytes]) -> tuple[Evaluation]:
    """`mAP(0.50, 11point) = 1.33`, in percent."""
    return (Evaluation("", {match[1].decode(): float(match[2]) / 100}, "line"),)


FORMATS = (
    Format(
        name="ppdet",
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
            other(b"INFO: mAP(", rb"INFO: (mAP\(0\.\d\d, \w{1,20}\)) = (\d+(?:\.\d+)?)%", _voc),
            evaluating(b"Eval iter", rb"INFO: Eval iter: \d+$"),
            rate(
                b"Total sample",
                rb"INFO: Total sample number: (?P<images>\d+), aver(?:a)?ge FPS: (?P<fps>\d+(?:\.\d+)?)$",
            ),
            other(
                b"INFO: Best ",
                rb"INFO: Best (?:(\w{1,40}) )?test ([\w +]{1,60}?) ap is (\d+\.\d+)\.$",
                lambda m: (BestMetric(b" ".join(filter(None, (m[1], m[2], b"ap"))).decode(), float(m[3])),),
            ),
        ),
        caveats=(
            "batch_cost, data_cost and ips are means of the last 20 iterations (log_iter), losses their medians",
            "ips is of one process, not of all cards",
            "EMA runs between batch_time.update and the reset of the timer: its time is in neither batch_cost nor ips",
            "the line of an epoch's first iteration holds values of the epoch before",
        ),
    ),
    Format(
        name=PADDLE_2020,
        title="PaddleDetection of 2020",
        marker=b"-INFO: iter: ",
        start=re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})-INFO: iter: ()(\d+)(), "),
        claim=re.compile(rb"-INFO: iter: |\biter: \d{1,20}, lr: [\d.e-]{1,20}, 'loss"),
        keys={"lr": "lr", "batch_cost": "s_per_iter", "time": "s_per_iter", "ips": "images_per_s"},
        once=b"-INFO: ",
        end=re.compile(rb" images/sec$|, time: \d+\.\d+, eta: " + DURATION + rb"$"),
        first_times_nothing=True,
        others=(
            evaluating(b"Test ", rb"-INFO: Test (?:finish )?iter \d+$"),
            rate(
                b"Total iteration",
                rb"-INFO: Total iteration: (?P<batches>\d+), "
                rb"inference time: (?P<batches_per_s>\d+\.\d+) batch/s\.?$",
            ),
            other(b"INFO: mAP(", rb"-INFO: (mAP\(0\.\d\d, \w{1,20}\)) = (\d+\.\d\d)$", _voc),
            rate(
                b"Total number of images",
                rb"-INFO: Total number of images: (?P<images>\d+), inference time: (?P<fps>\d+\.\d+) fps\.$",
            ),
            other(
                b"Best test",
                rb"-INFO: Best test (box|mask) ap: (\d+\.\d+), in iter: (\d+)$",
                lambda m: (BestMetric(f"{m[1].decode()} ap", float(m[2]), int(m[3])),),
            ),
        ),
        caveats=(
            "batch_cost is the mean of the last 20 iterations: "
            "the line after an evaluation holds the evaluation's time",
            "losses are medians of the last 20 iterations, ips is images by batch_cost",
            "`Best test box ap` is the mask AP of a model without boxes, and in percent of VOC",
        ),
    ),
    Format(
        name=OWN,
        title="the reference log's own SOLOv2",
        marker=b"-INFO: Train iter: ",
        start=re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})-INFO: Train iter: ()(\d+)(), "),
        claim=re.compile(rb"Train iter: "),
        keys={"lr": "lr"},
        once=b"-INFO: ",
        end=re.compile(rb" eta: " + DURATION + rb"$"),
        others=(
            evaluating(b"Test iter", rb"-INFO: Test iter \d+$"),
            rate(b"total time", rb"-INFO: total time: (?P<total_s>\d+\.\d+)s$"),
            rate(
                b"Speed: ",
                rb"-INFO: Speed: (?P<s_per_image>\d+\.\d+)s per image, {1,9}(?P<fps>\d+\.\d+) FPS\.$",
            ),
        ),
        caveats=(
            "prints no rate: only the wall clock gives one",
            "losses are of one iteration, not of a window",
        ),
    ),
)
