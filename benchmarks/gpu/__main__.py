"""`python -m benchmarks.gpu --minutes 8`: smoke test, equal work and the reference table, in the time there is.

What is finished stays in the output folder, whatever ends this process, and the next call goes on: two short runs make
one table. The smoke test needs torch and torchvision only.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.adopt import MACHINE, ROOT, complete, missing
from benchmarks.gpu.stages import ABSENT, ARM_S, BROKEN, Budget, read, recipes

#: Seconds for the table at the end; for a process to end by itself; at most for the smoke test as a share of all.
RESERVE_S, ENDING_S, SMOKE = 25.0, 10.0, 0.4
SAYS = {None: "out of time", 0: "finished", 4: "finished, an arm failed"}
PR_SET_PDEATHSIG = 1
#: The probe's overhead and the kernels are looked at after the first recipes; seconds that each takes.
FIRST, OVERHEAD_S, KERNELS_S = 4, 30.0, 30.0


class Driver:
    """Runs the smoke test, `bench` and the table as processes of their own, none longer than there is time."""

    def __init__(self, device: str, output: Path, minutes: float) -> None:
        self.device, self.output = device, output.absolute()
        self.output.mkdir(parents=True, exist_ok=True)
        self.began, self.seconds = time.monotonic(), 60 * minutes
        self.budget = Budget(ARM_S[device], self.output / "seconds.json")
        self.python = sys.executable
        self.environment = {**os.environ, "BENCH_CACHE": str(self.output / "cache")}

    def call(self, module: str, *arguments: str, limit_s: float | None = None) -> tuple[int | None, str]:
        """Exit code (None: no time was left) and standard output of a module. It ends when this process does."""

        def prepare() -> None:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

        with subprocess.Popen(
            [self.python, "-m", module, *arguments],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=prepare,
        ) as process:
            try:
                out, _ = process.communicate(timeout=limit_s)
                return process.returncode, out
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                stop(process)

    @property
    def left_s(self) -> float:
        """Seconds until the table has to be made."""
        return self.seconds - (time.monotonic() - self.began) - RESERVE_S

    def smoke(self) -> None:
        """Every family in every precision, as far as a share of the time allows."""
        file, end = str(self.output / "smoke.jsonl"), time.monotonic() + SMOKE * self.seconds
        while (left_s := end - time.monotonic()) > 0:
            options = self.device, file, f"{left_s:.0f}"
            code, _ = self.call("benchmarks.gpu.smoke", *options, limit_s=left_s + ENDING_S)
            if code == ABSENT:
                raise SystemExit("torch sees no CUDA device here; --device cpu tries the same at toy size")
            if code != BROKEN:
                say(f"smoke test: {SAYS.get(code, f'exit code {code}')}")
                return

    def others(self) -> list[str]:
        """The codebases that `native` can be compared with in this interpreter."""
        code, _ = self.call("bench", "env", "adopt", "mmdet", "--python", self.python)
        return ["torchvision", *(["mmdet"] if code == 0 else [])]

    def measure(self, recipe: dict[str, Any], *options: str) -> None:
        """Every cell of a recipe that is not finished and fits into the time."""
        name = recipe["name"]
        path = self.output / "recipes" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(recipe, indent=1))
        store, results = str(self.output / "store"), str(self.output)
        common = ["run", str(path), "--store", store, "--results", results, *options]
        code, out = self.call("bench", *common, "--dry-run", "--json")
        if code:
            say(f"{name}: cannot be planned (exit code {code})")
            return
        for cell in json.loads(out)["cells"]:
            title, arms = f"{name} {cell['cell']}", len(cell["arms"])
            expected_s = self.budget.expected_s(name, arms)
            if cell["finished"]:
                say(f"{title}: finished before")
            elif expected_s > self.left_s:
                say(f"{title}: left for the next run ({expected_s:.0f} s, {self.left_s:.0f} s are left)")
            else:
                began = time.monotonic()
                code, _ = self.call("bench", *common, "--cell", cell["key"], "--quiet", limit_s=self.left_s)
                took_s = time.monotonic() - began
                self.budget.note(name, arms, took_s)
                say(f"{title}: {SAYS.get(code, f'exit code {code}')} after {took_s:.0f} s")

    def overhead(self) -> None:
        """What the probe costs a step, once."""
        file = self.output / "overhead.txt"
        if not file.exists() and self.left_s > OVERHEAD_S:
            code, out = self.call("benchmarks.overhead", self.device, limit_s=self.left_s)
            if code == 0:
                file.write_text(out)
                say(out.rstrip())

    def kernels(self, codebases: list[str]) -> None:
        """Which kernels take a step of each codebase, once."""
        file = self.output / "kernels.jsonl"
        done = {one["codebase"] for one in read(file)}
        for name in [one for one in codebases if one not in done and self.left_s > KERNELS_S]:
            code, _ = self.call("benchmarks.gpu.kernels", self.device, str(file), name, limit_s=self.left_s)
            say(f"kernels of {name}: {SAYS.get(code, f'exit code {code}')}")

    def table(self) -> None:
        """Print and store what is finished, of this call or of an earlier one."""
        _, out = self.call("benchmarks.gpu.table", str(self.output))
        say(out.rstrip())


def stop(process: subprocess.Popen[str]) -> None:
    """End a process that has not ended; one that does not listen is killed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    """Measure, then print and store the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all of it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: the same at toy size")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of what this interpreter lacks")
    parser.add_argument("--output", type=Path, help="default: results/gpu, or results/gpu-cpu")
    asked = parser.parse_args()
    if asked.wheels and not asked.wheels.is_dir():
        parser.error(f"--wheels {asked.wheels}: not a folder")
    if lacking := missing(list(MACHINE)):
        parser.error(f"{sys.executable} has no {' and no '.join(lacking)}: start this with one that has them")
    output = asked.output or ROOT / "results" / ("gpu" if asked.device == "cuda" else "gpu-cpu")
    driver = Driver(asked.device, output, asked.minutes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        driver.smoke()
        driver.python = complete(driver.output, asked.wheels and asked.wheels.absolute())
        others = driver.others()
        wanted = recipes(asked.device, others)
        for recipe in wanted[:FIRST]:
            driver.measure(recipe)
        driver.overhead()
        driver.kernels(["native", *others])
        for recipe in wanted[FIRST:]:
            driver.measure(recipe)
    finally:
        driver.table()


if __name__ == "__main__":
    main()
