"""Commands over thousands of stored runs: seconds, processor seconds and memory of lists, histories and sites.

    python -m benchmarks.stored --runs 10000

The runs are simulated: four recipes on two kinds of machine, two arms each, one of which becomes 8 % slower halfway.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.helpers.report_runs import MACHINE, arm, samples, write_run

RECIPES, KINDS = 4, 2
START = datetime(2024, 1, 1, tzinfo=UTC)
#: Command → seconds that it may take over 10,000 runs.
BUDGETS = {"list runs": 2.0, "history": 20.0, "history again": 20.0, "site build": 120.0}
MEMORY_MIB = 1024


class Template:
    """A run whose copies differ in id, time and speed."""

    def __init__(self, folder: Path, number: int) -> None:
        kind = number % KINDS
        cpu = {**MACHINE["cpu"], "model": f"Test CPU {kind}"}
        arms = [
            (arm("torchvision"), samples(1.3, launches=3, rounds=4, steps=2, seed=number)),
            (arm("native"), samples(1.0, launches=3, rounds=4, steps=2, seed=number + 100)),
        ]
        recipe = {"name": f"recipe-{number // KINDS}", "measure": {"launches": 3, "rounds": 4, "steps": 2}}
        run = write_run(folder / f"template-{number}", arms, machine={**MACHINE, "cpu": cpu}, recipe=recipe)
        self.recipe = str(recipe["name"])
        self.record = (run.folder / "run.json").read_text()
        self.id = run.folder.name
        self.arms = {path.name: path.read_bytes() for path in (run.folder / "arms").iterdir()}
        self.samples = {path.name: pq.read_table(path) for path in (run.folder / "samples").iterdir()}

    def copy(self, results: Path, number: int, slower: bool, rng: np.random.Generator) -> None:
        """One more run."""
        started = START + timedelta(hours=number)
        name = f"{started:%Y%m%dT%H%M%SZ}-{number:06x}"
        folder = results / self.recipe / name
        for part in ("arms", "samples"):
            (folder / part).mkdir(parents=True)
        record = json.loads(self.record) | {"id": name, "started_utc": f"{started:%Y-%m-%dT%H:%M:%SZ}"}
        (folder / "run.json").write_text(json.dumps(record, indent=1))
        machine = rng.normal(0, 0.02)
        for file, content in self.arms.items():
            (folder / "arms" / file).write_bytes(content)
        for file, table in self.samples.items():
            factor = np.exp(machine + rng.normal(0, 0.01) + (0.08 if slower and "native" in file else 0))
            column = table.column_names.index("duration_ns")
            durations = (table["duration_ns"].to_numpy() * factor).astype(np.int64)
            scaled = table.set_column(column, "duration_ns", pa.array(durations))
            pq.write_table(scaled, folder / "samples" / file, compression="zstd")


def make_runs(results: Path, count: int) -> None:
    """So many runs below a folder, oldest first."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        templates = [Template(Path(folder), number) for number in range(RECIPES * KINDS)]
        for number in range(count):
            templates[number % len(templates)].copy(results, number, number >= count // 2, rng)


def measured(command: list[str], environment: dict[str, str] | None) -> tuple[float, float, float, bytes]:
    """Wall seconds, processor seconds and peak MiB of a command and its children, and what it printed."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", *command], stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"bench {' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
    wall = time.perf_counter() - start
    return wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--results", type=Path, help="Keep the runs in this folder, or use those in it.")
    parser.add_argument("--only", nargs="*", choices=BUDGETS, default=list(BUDGETS))
    options = parser.parse_args()
    over = 0
    with tempfile.TemporaryDirectory() as folder:
        results = options.results or Path(folder) / "results"
        if not results.exists():
            make_runs(results, options.runs)
        environment: dict[str, Any] = {**os.environ, "BENCH_CACHE": f"{folder}/cache"}
        where = ["--results", str(results)]
        commands = {
            "list runs": ["list", "runs", *where],
            "history": ["history", *where],
            "history again": ["history", *where],
            "site build": ["site", "build", str(results), "-o", f"{folder}/site"],
        }
        for name in options.only:
            wall, cpu, memory, output = measured(commands[name], environment)
            over += wall > BUDGETS[name] or memory > MEMORY_MIB
            lines = output.count(b"\n")
            print(
                f"{options.runs} runs, {name}: {wall:.1f} s, {cpu:.1f} CPU-s, {memory:.0f} MiB, {lines} lines; "
                f"budget of 10,000 runs {BUDGETS[name]:.0f} s, {MEMORY_MIB} MiB"
            )
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
