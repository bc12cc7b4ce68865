"""10,000 cells on 1,000 nodes that fail: what planning, scripts, the store and the report cost, and how they grow.

Time on the nodes is simulated; planning, the store, joining and reading are the real code. A node fails after an
exponential time and takes its cell with it; the cell starts again on the next free node.

python -m benchmarks.scale --cells 10000 --nodes 1000
"""

from __future__ import annotations

import argparse
import heapq
import io
import json
import random
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.measure.executors import Task
from bench.measure.executors.slurm import Slurm
from bench.record.collect import collect
from bench.record.models import ArmRecord, Block, CellRecord, RankTimes, RunRecord
from bench.record.run import Run
from bench.record.samples import samples_columns
from bench.record.store import FolderStore, members, packed
from bench.report.build import run_report

CELL_S, MEAN_LIFE_S, REPAIR_S, ROUNDS = 300.0, 3600.0, 600.0, 5
#: A report of more cells is not asked for here: it takes many minutes.
REPORTED = 10_000


def timed(what: str, count: int, call: Callable[[], Any]) -> Any:
    """Run a call, and print what it takes for each of so many."""
    began = time.perf_counter()
    value = call()
    seconds = time.perf_counter() - began
    print(f"{what}: {seconds:.2f} s, {1e3 * seconds / count:.3f} ms each", flush=True)
    return value


def cell_folder(folder: Path, index: int, planned: int) -> Path:
    """A measured cell of two arms."""
    run = Run(folder)
    folder.mkdir(parents=True)
    name = f"seed-{index}"
    arms = []
    for label, step_ns in (("slow", 20_000_000), ("fast", 10_000_000)):
        arm = ArmRecord.model_validate(
            {
                "id": f"{label}-{name}", "codebase": "fake", "label": label, "levels": {"seed": index},
                "cell": name, "baseline": f"slow-{name}", "status": "ok", "launches": 1, "blocks": ROUNDS,
                "workload": {"model": "faster_rcnn_r50_fpn", "seed": index},
            }
        )  # fmt: skip
        blocks = []
        for round_ in range(ROUNDS):
            times = RankTimes(start_ns=[0, step_ns], end_ns=2 * step_ns + round_)
            blocks.append(Block(arm=arm.id, launch=0, round=round_, position=0, ranks=[times]))
        for block in blocks:
            run.append_block(block)
        run.write_arm(arm, samples_columns(blocks))
        arms.append(arm.id)
    cells = {name: CellRecord(digest=f"{index:016x}", index=index, planned=planned, fingerprint="a")}
    record = RunRecord(
        id=f"{index}", recipe={"name": "scale"}, started_utc="2026-01-01T00:00:00+00:00", bench_version="0",
        status="complete", arms=arms, cells=cells, baseline={"codebase": "slow"},
    )  # fmt: skip
    run.write_record(record)
    return folder


def schedule(cells: int, nodes: int, finish: Callable[[int], None], seed: int = 0) -> dict[str, float]:
    """Measure all cells on nodes that fail. Returns what it took in simulated time.

    Args:
        cells: Number of cells.
        nodes: Number of nodes.
        finish: Called with each cell that is finished.
        seed: Of lifetimes and durations.
    """
    rng = random.Random(seed)
    waiting, lost, now = list(range(cells))[::-1], 0, 0.0
    free = [(0.0, node, rng.expovariate(1 / MEAN_LIFE_S)) for node in range(nodes)]
    heapq.heapify(free)
    running: list[tuple[float, int, int, bool, float]] = []
    while waiting or running:
        if waiting and free and (not running or free[0][0] <= running[0][0]):
            began, node, dies = heapq.heappop(free)
            cell, ends = waiting.pop(), began + CELL_S * rng.lognormvariate(0, 0.2)
            fails = dies < ends
            heapq.heappush(running, (min(ends, max(dies, began)), node, cell, fails, dies))
            continue
        now, node, cell, fails, dies = heapq.heappop(running)
        if fails:
            lost += 1
            waiting.insert(0, cell)
            again = now + REPAIR_S
            heapq.heappush(free, (again, node, again + rng.expovariate(1 / MEAN_LIFE_S)))
        else:
            finish(cell)
            heapq.heappush(free, (now, node, dies))
    ideal_s = cells * CELL_S / nodes
    return {"hours": now / 3600, "lost": lost, "ideal_hours": ideal_s / 3600}


def main() -> None:
    """Print what each part costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=1_000)
    asked = parser.parse_args()
    count = asked.cells
    command = ("python", "-m", "bench", "run", "recipe.yaml", "--cell")
    keys = [f"{index:016x}" for index in range(count)]
    tasks = [Task(key, f"seed-{index}", 1, CELL_S, (*command, key)) for index, key in enumerate(keys)]
    scripts = timed("array scripts", count, lambda: Slurm().scripts(tasks, Path("logs")))
    print(f"  {len(scripts)} arrays, the longest script has {max(len(text) for text, _ in scripts)} bytes")
    with tempfile.TemporaryDirectory() as place:
        folder, store = Path(place), FolderStore(Path(place) / "store")
        archive = packed(timed("a cell's run folder", 1, lambda: cell_folder(folder / "one", 0, count)))
        print(f"  packed: {len(archive)} bytes")
        outcome = timed(
            "simulation with the store", count,
            lambda: schedule(count, asked.nodes, lambda i: store.put("scale", keys[i], another(archive, i))),
        )  # fmt: skip
        print(f"  {json.dumps(outcome)}")
        timed("asking for the keys once", 1, lambda: store.keys("scale"))
        for part in sorted({100, 1000, count}):
            chosen = keys[:part]
            (run,) = timed(f"joining {part} cells", part, lambda c=chosen: collect(store, "scale", folder, c))
            timed(f"reading the records of {part} cells", part, run.arms)
            if part <= REPORTED:
                timed(f"the values of a report of {part} cells", part, lambda run=run: run_report(run))


def another(archive: bytes, index: int) -> bytes:
    """The archive of cell 0 as that of another cell."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for name, content in members(archive, "cell").items():
            if not name.endswith(".parquet"):
                content = content.replace(b"seed-0", b"seed-%d" % index)
                content = content.replace(b'"index": 0', b'"index": %d' % index)
                content = content.replace(b"0" * 16, b"%016x" % index)
            out.writestr(name.replace("seed-0", f"seed-{index}"), content)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
