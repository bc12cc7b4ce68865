"""The project's own trainer (`detectors`). The line is the contract between the two:

    2026-11-23 08:00:00,123 detectors INFO: iter: 20/90000  lr: 0.0002  loss: 3.76  loss_cls: 2.68  eta: 1 day, 2:03:04  s/iter: 1.234 (data 0.010)  images/s: 9.72  max_mem: 1234 MB
    2026-11-23 09:00:00,123 detectors INFO: evaluating: 100/5000
    2026-11-23 09:05:00,123 detectors INFO: inference: 5000 images  s/image: 0.0502  FPS: 19.92
    2026-11-23 09:05:01,123 detectors INFO: evaluation: bbox  AP: 0.374  AP50: 0.581  …  ARl: 0.619

- `iter: n/N`, n from 1: the line is written when iteration n has ended, EMA and optimizer included.
- fields are separated by two spaces; `loss` is the total, every other key that holds "loss" a part of it; all are means
  since the line before. Further keys may stand between the losses and `eta`.
- `s/iter` is the wall time since the line before (or the start) divided by its iterations, evaluation taken out;
  `data` is the part of it that was spent waiting for data. `images/s` is of all ranks together.
- `max_mem` is the highest allocated memory of any rank since the start (on a CPU the resident set), in units of
  1024 × 1024 bytes; it ends the line.
- only rank 0 writes.
"""  # noqa: E501

import re

from bench.importers.evaluation import pair_metrics
from bench.importers.format import Format, evaluating, other, rate

FORMATS = (
    Format(
        name="detectors",
        title="detectors (this project)",
        marker=b" detectors INFO: iter: ",
        start=re.compile(
            rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}) detectors INFO: iter: ()(\d+)/(\d+) {1,9}"
        ),
        claim=re.compile(rb"\bdetectors INFO: iter: "),
        keys={
            "lr": "lr",
            "s/iter": "s_per_iter",
            "data": "data_s",
            "images/s": "images_per_s",
            "max_mem": "memory_mb",
        },
        once=b" INFO: ",
        end=re.compile(rb" max_mem: \d+ MB$"),
        others=(
            evaluating(b"evaluating: ", rb" detectors INFO: evaluating: \d+/\d+$"),
            rate(
                b"inference: ",
                rb" detectors INFO: inference: (?P<images>\d+) images +"
                rb"s/image: (?P<s_per_image>\d+\.\d+) +FPS: (?P<fps>\d+\.\d+)$",
            ),
            other(
                b"evaluation: ",
                rb" detectors INFO: evaluation: (\w{1,40}) (.*)$",
                lambda m: (pair_metrics(m[1].decode("ascii", "replace"), m[2]),),
            ),
        ),
        caveats=("s/iter and data are means since the line before; the time of evaluations is left out",),
    ),
)
