"""Real checks, again and again: false alarms, misses and seconds of `bench check --base` on this machine.

    python -m benchmarks.gate.checks --checks 60                      # A/A: every failure is a false alarm
    python -m benchmarks.gate.checks --checks 40 --slowdown 0.05      # every check that does not fail is a miss
    python -m benchmarks.gate.checks --checks 60 --busy               # with one core kept busy by another process
    python -m benchmarks.gate.checks --checks 60 --at-once 2          # two checks side by side disturb each other
    python -m benchmarks.gate.checks --checks 5 --slowdown 0.10 --planted-in detectors

The slowdown is a busy loop in the adapter of `native` or in `detectors`, a share of the time each step took, planted
as a commit in a temporary clone of this repository. Outcomes are appended to a file of JSON lines as they come, so
that a stopped series loses nothing; run it again with the same file to go on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[2]

PLANTED = {
    "adapter": (
        "adapters/native/adapter.py",
        '''

class Adapter(Adapter):
    """Slower by a share of every step."""

    def forward(self, data):
        self._began_s = time.perf_counter()
        return super().forward(data)

    def optimizer_step(self):
        super().optimizer_step()
        now_s = time.perf_counter()
        while time.perf_counter() < now_s + {slowdown} * (now_s - self._began_s):
            pass


import time
''',
    ),
    "detectors": (
        "detectors/rcnn.py",
        """

def _began(model, *arguments, losses=ProposalDetector.losses):
    ProposalDetector.began_s = time.perf_counter()
    return losses(model, *arguments)


def _ended(optimizer, arguments, keywords):
    now_s = time.perf_counter()
    while time.perf_counter() < now_s + {slowdown} * (now_s - ProposalDetector.began_s):
        pass


import time

from torch.optim.optimizer import register_optimizer_step_post_hook

ProposalDetector.losses = _began
register_optimizer_step_post_hook(_ended)
""",
    ),
}
"""By where it is planted: the file, and what is appended to it."""


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@example.org")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def plant(folder: Path, slowdown: float, where: str = "adapter") -> Path:
    """A clone of this repository whose newest commit makes every step slower; by nothing: an innocent commit."""
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", "--shared", str(ROOT), str(clone)], check=True)
    name, text = PLANTED[where]
    file = clone / name
    file.write_text(file.read_text() + (text.format(slowdown=slowdown) if slowdown else "\n# innocent\n"))
    git(clone, "commit", "--quiet", "--all", "--message", f"planted: {slowdown}")
    return clone


@contextlib.contextmanager
def busy_core(wanted: bool) -> Iterator[None]:
    """Another process that never rests."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if wanted else None
    try:
        yield
    finally:
        if process is not None:
            process.kill()
            process.wait()


def check(clone: Path, chosen: argparse.Namespace, results: Path) -> dict[str, Any]:
    """One check, as a user starts it: the JSON document it prints."""
    command = [
        sys.executable, "-m", "bench", "check", str(chosen.recipe), "--base", "HEAD~1", "--json",
        "--source", f"native={clone}", "--adapters", str(clone / "adapters" / "native"), "--results", str(results),
        "--budget-s", str(chosen.budget_s), "--tolerance", f"s/iter={chosen.tolerance}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode not in (0, 1, 3):
        raise SystemExit(f"a check could not be measured:\n{done.stdout}{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def summary(found: list[dict[str, Any]]) -> str:
    """Share of each outcome with its 95 % interval (Clopper and Pearson), and how long the checks took."""
    lines = []
    for state in ("fail", "pass", "inconclusive"):
        count = sum(one["state"] == state for one in found)
        interval = binomtest(count, len(found)).proportion_ci()
        share = f"{100 * count / len(found):.1f} % [{100 * interval.low:.1f} %, {100 * interval.high:.1f} %]"
        lines.append(f"{state:12} {count:4} of {len(found)}: {share}")
    return "\n".join([*lines, f"median {statistics.median(one['elapsed_s'] for one in found):.0f} s"])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "check.yaml")
    parser.add_argument("--checks", type=int, default=60)
    parser.add_argument("--slowdown", type=float, default=0.0, help="0.05: 5 %%")
    parser.add_argument("--planted-in", choices=PLANTED, default="adapter")
    parser.add_argument("--tolerance", type=float, default=0.015)
    parser.add_argument("--budget-s", type=float, default=180.0)
    parser.add_argument("--busy", action="store_true", help="keep one core busy meanwhile")
    parser.add_argument("--at-once", type=int, default=1, help="checks that run at the same time")
    parser.add_argument("--output", type=Path, help="JSON lines; by default results/gate/<setting>.jsonl")
    chosen = parser.parse_args(arguments)
    beside = f"-{chosen.at_once}-at-once" if chosen.at_once > 1 else ""
    where = "" if chosen.planted_in == "adapter" else f"-in-{chosen.planted_in}"
    setting = f"slowdown-{chosen.slowdown:g}{where}{'-busy' if chosen.busy else ''}{beside}"
    output = chosen.output or ROOT / "results" / "gate" / f"{setting}.jsonl"
    output.parent.mkdir(parents=True, exist_ok=True)
    found = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
    with tempfile.TemporaryDirectory(prefix="bench-gate-") as folder, busy_core(chosen.busy):
        clone = plant(Path(folder), chosen.slowdown, chosen.planted_in)
        missing = range(chosen.checks - len(found))
        pool = ThreadPoolExecutor(chosen.at_once)
        try:
            started = [pool.submit(check, clone, chosen, Path(folder) / "results") for _ in missing]
            for done in as_completed(started):
                found.append(done.result())
                with output.open("a") as file:
                    file.write(json.dumps(found[-1]) + "\n")
                print(f"{len(found)}/{chosen.checks}: {found[-1]['state']}", file=sys.stderr)
        finally:  # what could not be measured, or Ctrl-C, ends the series: nothing more is started
            pool.shutdown(cancel_futures=True)
    print(f"{setting}, tolerance {chosen.tolerance:.1%}, budget {chosen.budget_s:.0f} s\n{summary(found)}")


if __name__ == "__main__":
    main()
