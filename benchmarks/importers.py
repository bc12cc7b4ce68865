"""How fast `bench import` reads a long log, and in how much memory.

    python benchmarks/importers.py                      # 1 GB of mmdet2 text
    python benchmarks/importers.py --format ppdet --size-mb 200
    python benchmarks/importers.py --format all --size-mb 100

Writes a log of training lines (the worst case: every line counts), an evaluation every 5,000 lines and 2 % of other
lines, reads it in a fresh process and prints MB/s by the wall clock and by the CPU time, and the peak resident set of
that process. The file is read once before, so that the disk is not what is measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.importers import import_logs

_LOSSES = (
    ("loss_rpn_cls", 0.0312),
    ("loss_rpn_bbox", 0.0498),
    ("loss_cls", 0.2461),
    ("acc", 92.1387),
    ("loss_bbox", 0.2688),
    ("loss_mask", 0.2771),
    ("loss", 0.8731),
)
_NOISE = "2021-06-01 12:00:00,123 - mmdet - INFO - Saving checkpoint at 12 epochs, deleting the one before it"
_COCO = """Evaluate annotation type *bbox*
 Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = 0.275
 Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = 0.657"""


def _mmdet2(n: int, now: datetime) -> str:
    stamp = now.strftime("%Y-%m-%d %H:%M:%S,123")
    losses = ", ".join(f"{key}: {value:.4f}" for key, value in _LOSSES)
    return (
        f"{stamp} - mmdet - INFO - Iter [{n * 50}/900000000]\tlr: 2.000e-02, eta: 2 days, 17:30:00, time: 0.717, "
        f"data_time: 0.071, memory: 3803, {losses}"
    )


def _mmengine(n: int, now: datetime) -> str:
    losses = "  ".join(f"{key}: {value:.4f}" for key, value in _LOSSES)
    return (
        f"{now:%Y/%m/%d %H:%M:%S} - mmengine - INFO - Iter(train) [{n * 50:>9}/900000000]  base_lr: 2.0000e-02 lr: "
        f"2.0000e-02  eta: 2 days, 17:30:00  time: 0.7171  data_time: 0.0711  memory: 3803  {losses}"
    )


def _ppdet(n: int, now: datetime) -> str:
    losses = " ".join(f"{key}: {value:.6f}" for key, value in _LOSSES)
    return (
        f"[{now:%m/%d %H:%M:%S}] ppdet.engine INFO: Epoch: [{n // 10000}] [{n % 10000 * 20:>6}/200000] learning_rate: "
        f"0.020000 {losses} eta: 2 days, 17:30:00 batch_cost: 0.7171 data_cost: 0.0003 ips: 11.1561 images/s"
    )


def _detectron2(n: int, now: datetime) -> str:
    losses = "  ".join(f"{key}: {value:.4g}" for key, value in _LOSSES if key.startswith("loss_"))
    return (
        f"[{now:%m/%d %H:%M:%S} d2.utils.events]:  eta: 2 days, 17:30:00  iter: {n * 20 - 1}  total_loss: 0.8731  "
        f"{losses}  time: 0.4110  last_time: 0.4090  data_time: 0.0250  last_data_time: 0.0040   lr: 0.02  "
        "max_mem: 3456M"
    )


def _torchvision(n: int, _: datetime) -> str:
    losses = "  ".join(
        f"{key}: {value:.4f} ({value:.4f})" for key, value in _LOSSES if key.startswith("loss")
    )
    return (
        f"Epoch: [{n // 10000}]  [{n % 10000 * 20:>6}/200000]  eta: 2 days, 17:30:00  lr: 0.020000  {losses}  "
        "time: 0.4567  data: 0.0123  max mem: 3456"
    )


def _mmdet2_json(n: int, _: datetime) -> str:
    values = {
        "mode": "train",
        "epoch": (n - 1) // 10000 + 1,
        "iter": ((n - 1) % 10000 + 1) * 50,
        "lr": 0.02,
        "memory": 3803,
    }
    return json.dumps(values | {"data_time": 0.07094} | dict(_LOSSES) | {"time": 0.71713})


WRITERS = {
    "mmdet2": _mmdet2,
    "mmengine": _mmengine,
    "ppdet": _ppdet,
    "detectron2": _detectron2,
    "torchvision": _torchvision,
    "mmdet2-json": _mmdet2_json,
}


def log_lines(format: str) -> Iterator[str]:
    """An endless log."""
    write, now = WRITERS[format], datetime(2021, 1, 1)
    n = 0
    while True:
        n += 1
        now += timedelta(seconds=7)
        yield write(n, now)
        if n % 50 == 0:
            yield _NOISE
        if n % 5000 == 0:
            yield _COCO


def write_log(path: Path, format: str, size_bytes: int) -> None:
    with path.open("wb") as file:
        left = size_bytes
        for line in log_lines(format):
            data = line.encode() + b"\n"
            file.write(data)
            left -= len(data)
            if left <= 0:
                return


def measure(path: str) -> None:
    """In a process of its own: its peak is the import's."""
    with open(path, "rb") as file:
        while file.read(1 << 24):
            pass
    start, start_cpu = time.perf_counter(), time.process_time()
    result = import_logs("auto", [Path(path)])
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    section = result.log.sections[0]
    size_mb = result.size_bytes / 1e6
    print(
        f"{section.format:12} {size_mb:5.0f} MB  {result.lines:8} lines  "
        f"{seconds:6.2f} s = {size_mb / seconds:5.1f} MB/s  (CPU {cpu_s:6.2f} s = {size_mb / cpu_s:5.1f} MB/s)  "
        f"peak {peak_mb:4.0f} MB  {section.lines} training lines in {len(result.log.sections)} section(s)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", choices=[*WRITERS, "all"], default="mmdet2")
    parser.add_argument("--size-mb", type=int, default=1000)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.measure)
        return
    for format in WRITERS if arguments.format == "all" else [arguments.format]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "train.log"
            write_log(path, format, arguments.size_mb * 1_000_000)
            subprocess.run([sys.executable, __file__, "--measure", str(path)], check=True)


if __name__ == "__main__":
    main()
