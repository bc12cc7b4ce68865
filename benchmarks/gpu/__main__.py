"""`python -m benchmarks.gpu --minutes 8`: smoke test, equal work and the reference table, in the time there is.

What is finished stays in the output folder, and the next call goes on: two short runs make one table.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.adopt import ROOT, complete, restart
from benchmarks.gpu.stages import Budget, recipes

#: Seconds for the table at the end, and at most for the smoke test as a share of all.
RESERVE_S, SMOKE = 20.0, 0.4


class Driver:
    """Runs `bench` and the smoke test as processes of their own, none longer than there is time."""

    def __init__(self, device: str, output: Path, minutes: float) -> None:
        self.device, self.output = device, output.absolute()
        self.budget = Budget(60 * minutes, RESERVE_S)
        self.environment = {**os.environ, "BENCH_CACHE": str(self.output / "cache")}
        self.output.mkdir(parents=True, exist_ok=True)

    def call(
        self, *arguments: str, module: str = "bench", limit_s: float | None = None
    ) -> tuple[int | None, str]:
        """Exit code (None: no time was left) and standard output of a module."""
        command = [sys.executable, "-m", module, *arguments]
        options: dict[str, Any] = {
            "cwd": ROOT,
            "env": self.environment,
            "stdout": subprocess.PIPE,
            "text": True,
        }
        with subprocess.Popen(command, **options) as process:
            try:
                out, _ = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.communicate()
                return None, ""
        return process.returncode, out

    def smoke(self) -> None:
        began, limit_s = time.monotonic(), SMOKE * self.budget.left_s
        self.call(self.device, str(self.output / "smoke.jsonl"), str(limit_s), module="benchmarks.gpu.smoke")
        self.budget.spend(time.monotonic() - began)

    def codebases(self) -> list[str]:
        """Those of native, torchvision and mmdet that this interpreter can run."""
        code, _ = self.call("env", "adopt", "mmdet", "--python", sys.executable)
        return ["native", "torchvision", *(["mmdet"] if code == 0 else [])]

    def measure(self, recipe: dict[str, Any]) -> None:
        """Every cell of a recipe that is not finished and fits into the time."""
        path = self.output / "recipes" / f"{recipe['name']}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(recipe, indent=1))
        began = time.monotonic()
        common = ["run", str(path), "--store", str(self.output / "store"), "--results", str(self.output)]
        code, out = self.call(*common, "--dry-run", "--json")
        self.budget.spend(time.monotonic() - began)
        if code:
            say(f"{recipe['name']}: cannot be planned (exit code {code})")
            return
        for cell in json.loads(out)["cells"]:
            name, estimate_s = f"{recipe['name']} {cell['cell']}", cell["estimate_s"]
            if cell["finished"]:
                say(f"{name}: finished before")
            elif not self.budget.fits(estimate_s):
                expected_s = self.budget.expected_s(estimate_s)
                say(
                    f"{name}: left for the next run ({expected_s:.0f} s, {self.budget.left_s:.0f} s are left)"
                )
            else:
                began = time.monotonic()
                limit_s = self.budget.left_s - RESERVE_S / 2
                code, _ = self.call(*common, "--cell", cell["key"], "--quiet", limit_s=limit_s)
                took_s = time.monotonic() - began
                self.budget.spend(took_s, estimate_s)
                ended = (
                    "out of time"
                    if code is None
                    else {0: "finished", 4: "an arm failed"}.get(code, f"exit {code}")
                )
                say(f"{name}: {ended} after {took_s:.0f} s")

    def table(self, *, pages: bool = True) -> list[dict[str, Any]]:
        """One row per arm that is finished, of this call or of an earlier one; and the pages of their reports."""
        from bench.record.collect import collect
        from bench.record.store import FolderStore
        from bench.report.build import run_report

        store = FolderStore(self.output / "store")
        rows = []
        for name in store.recipes():
            for run in collect(store, name, self.output / "runs"):
                report = run_report(run)
                rows += [row_of(name, row) for row in report.rows]
                if pages:
                    self.call("report", str(run.folder), "--output", str(self.output / "reports" / name))
        (self.output / "table.json").write_text(json.dumps(rows, indent=1))
        return rows


def row_of(recipe: str, row: Any) -> dict[str, Any]:
    """The figures of an arm."""
    memory = row.memory
    return {
        "recipe": recipe,
        "arm": row.arm,
        "s_per_iter": row.step_s.median_s if row.step_s else None,
        "images_per_s": row.step_s.images_per_s if row.step_s else None,
        "memory": memory.kind if memory else None,
        "memory_mib": {
            name: round(value / 2**20)
            for name in ("peak_bytes", "reserved_bytes", "device_bytes")
            if memory and (value := getattr(memory, name, None))
        },
        "ratio": [row.ratio.value, row.ratio.low, row.ratio.high] if row.ratio else None,
        "equal_work": row.verdict,
        "failed": row.reason or None,
    }


def say(text: str) -> None:
    print(text, flush=True)


def show(rows: Sequence[dict[str, Any]], smoke: Sequence[dict[str, Any]]) -> None:
    """The smoke test and the table as text."""
    for one in smoke:
        waits = "" if one.get("host_waits") is None else f", {one['host_waits']} host waits"
        said = (
            f"losses {[round(loss, 3) for loss in one['losses']]}{waits}" if "losses" in one else one["error"]
        )
        say(f"smoke {one['model']} {one['precision']}: {'finite' if one['finite'] else 'NOT FINITE'}: {said}")
    for row in rows:
        if row["s_per_iter"] is None:
            say(f"{row['recipe']} {row['arm']}: failed: {row['failed']}")
            continue
        ratio = "" if row["ratio"] is None else "  {:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        figures = (
            f"{row['s_per_iter']:.4g} s/iter  {row['images_per_s']:.4g} images/s  {row['memory_mib']} MiB"
        )
        say(f"{row['recipe']} {row['arm']}: {figures}{ratio}  work: {row['equal_work']}")


def main() -> None:
    """Measure, then print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same at toy size")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what this interpreter lacks")
    parser.add_argument("--output", type=Path, help="default: results/gpu, or results/gpu-cpu")
    asked = parser.parse_args()
    output = asked.output or ROOT / "results" / ("gpu" if asked.device == "cuda" else "gpu-cpu")
    output.mkdir(parents=True, exist_ok=True)
    restart(complete(output.absolute(), asked.wheels))
    if asked.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device here; --device cpu tries the same at toy size")
    driver = Driver(asked.device, output, asked.minutes)
    driver.smoke()
    for recipe in recipes(asked.device, driver.codebases()):
        driver.measure(recipe)
    from benchmarks.gpu.smoke import read

    show(driver.table(), read(output.absolute() / "smoke.jsonl"))


if __name__ == "__main__":
    main()
