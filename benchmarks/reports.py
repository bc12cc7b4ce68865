"""What `bench report` costs by number of arms: processor seconds, seconds, memory, and the size of its files.

    python -m benchmarks.reports --arms 32 300

The runs are simulated. `--old` leaves out the ids of baselines, as records of earlier versions do.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.record.run import Run
from benchmarks.stored import measured
from tests.helpers.report_runs import arm, samples, write_run

CODEBASES = ("torchvision", "native", "mmdet", "paddledet")
MODELS = ("faster_rcnn_r50_fpn", "mask_rcnn_r50_fpn", "retinanet_r50_fpn", "fcos_r50_fpn", "solov2_r50_fpn")
#: Arms → processor seconds of `bench report`, bytes of the page.
BUDGETS = {32: (5, 250_000), 300: (20, 400_000), 5000: (120, 1_500_000)}
MARKDOWN_BYTES = 100_000


def make_run(folder: Path, arms: int, *, old: bool) -> Run:
    """So many arms of 12 steps, four codebases in each cell."""
    found = []
    for number in range(arms):
        cell, codebase = divmod(number, len(CODEBASES))
        levels = {"model": MODELS[cell % len(MODELS)], "seed": cell // len(MODELS)}
        frame = samples(1 + 0.2 * codebase, launches=3, rounds=2, steps=2, warmup=1, noise=0.05, seed=number)
        found.append((arm(CODEBASES[codebase], levels), frame))
    run = write_run(folder, found)
    if old:
        for record, frame in found:
            run.write_arm(record, frame)
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--arms", type=int, nargs="*", default=list(BUDGETS))
    parser.add_argument("--old", action="store_true")
    options = parser.parse_args()
    over = 0
    for arms in options.arms:
        with tempfile.TemporaryDirectory() as folder:
            run = make_run(Path(folder) / "run", arms, old=options.old)
            output = Path(folder) / "report"
            wall, cpu, memory, _ = measured(["report", str(run.folder), "-o", str(output)], None)
            page, markdown = ((output / name).stat().st_size for name in ("index.html", "report.md"))
            budget_s, budget_bytes = BUDGETS.get(arms, (float("inf"), sys.maxsize))
            over += cpu > budget_s or page > budget_bytes or markdown > MARKDOWN_BYTES
            print(
                f"{arms} arms: {cpu:.1f} CPU-s, {wall:.1f} s, {memory:.0f} MiB; page {page} bytes, report.md "
                f"{markdown} bytes; budget {budget_s} CPU-s, {budget_bytes} bytes"
            )
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
