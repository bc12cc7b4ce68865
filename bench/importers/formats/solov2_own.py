"""The own SOLOv2 implementation whose log of December 2020 is the reference (`../shared/reference`).

    2020-12-04 11:44:20,089-INFO: Train iter: 20, lr: 0.000200000, all_loss: 3.760885, loss_ins: 2.685804, loss_cate: 1.075081, eta: 5 days, 5:23:49
    2020-12-04 23:33:00,303-INFO: total time: 1018.726801s
    2020-12-04 23:33:00,303-INFO: Speed: 0.205720s per image,  4.9 FPS.

Iterations count from 1; losses are those of one iteration; no rate is printed.
"""  # noqa: E501

import re

from bench.importers.events import Evaluating, Inference
from bench.importers.format import Format

NAME = "solov2-own"

FORMAT = Format(
    name=NAME,
    title="the reference log's own SOLOv2",
    marker=b"-INFO: Train iter: ",
    start=re.compile(rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})-INFO: Train iter: ()(\d+)(), "),
    claim=re.compile(rb"Train iter: "),
    keys={"lr": "lr"},
    once=b"-INFO: ",
    end=re.compile(rb" eta: (?:-?\d+ days?, )?\d+:\d\d:\d\d$"),
    others=(
        (b"Test iter", re.compile(rb"-INFO: Test iter \d+$"), lambda _: (Evaluating(),)),
        (
            b"total time",
            re.compile(rb"-INFO: total time: (\d+\.\d+)s$"),
            lambda m: (Inference(NAME, total_s=float(m[1])),),
        ),
        (
            b"Speed: ",
            re.compile(rb"-INFO: Speed: (\d+\.\d+)s per image, {1,9}(\d+\.\d+) FPS\.$"),
            lambda m: (Inference(NAME, s_per_image=float(m[1]), fps=float(m[2])),),
        ),
    ),
    caveats=("prints no rate: only the wall clock gives one", "losses are of one iteration, not of a window"),
)
