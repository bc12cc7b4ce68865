"""One row per arm that is finished, of this run or of an earlier one: `python -m benchmarks.gpu.table FOLDER`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.stages import read

MEMORY = ("peak_bytes", "reserved_bytes", "device_bytes")


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of all runs in a folder's store, which become run folders below `runs`; of an arm the last one."""
    if not (folder / "store").is_dir():
        return []
    from bench.record.collect import collect  # which the smoke test alone does not need
    from bench.record.store import FolderStore
    from bench.report.build import run_report

    store = FolderStore(folder / "store")
    rows = {}
    for name in store.recipes():
        for run in sorted(collect(store, name, folder / "runs"), key=lambda one: one.folder.name):
            rows |= {(name, row.arm): row_of(name, row) for row in run_report(run).rows}
    return [*rows.values()]


def row_of(recipe: str, row: Any) -> dict[str, Any]:
    """The figures of an arm."""
    memory, step = row.memory, row.step_s
    return {
        "recipe": recipe,
        "arm": row.arm,
        "s_per_iter": step.median_s if step else None,
        "images_per_s": step.images_per_s if step else None,
        "memory": memory.kind if memory else None,
        "memory_mib": {
            name: round(value / 2**20) for name in MEMORY if memory and (value := getattr(memory, name))
        },
        "joules_per_image": dict(row.energy),
        "phases_ms": {phase.name: round(1000 * phase.median_s, 3) for phase in row.phases},
        "ratio": [row.ratio.value, row.ratio.low, row.ratio.high] if row.ratio else None,
        "equal_work": row.verdict,
        "failed": row.reason or None,
    }


def show(rows: Sequence[dict[str, Any]], smoke: Sequence[dict[str, Any]]) -> list[str]:
    """The smoke test and the table as lines of text."""
    lines = []
    for one in smoke:
        waits = "" if one.get("host_waits") is None else f", {one['host_waits']} host waits"
        said = (
            f"losses {[round(loss, 3) for loss in one['losses']]}{waits}" if "losses" in one else one["error"]
        )
        finite = "finite" if one["finite"] else "NOT FINITE"
        lines.append(f"smoke {one['model']} {one['precision']}: {finite}: {said}")
    for row in rows:
        if row["s_per_iter"] is None:
            lines.append(f"{row['recipe']} {row['arm']}: failed: {row['failed']}")
            continue
        ratio = "" if row["ratio"] is None else "  {:.2f} [{:.2f}, {:.2f}]".format(*row["ratio"])
        figures = (
            f"{row['s_per_iter']:.4g} s/iter  {row['images_per_s']:.4g} images/s  {row['memory_mib']} MiB"
        )
        lines.append(f"{row['recipe']} {row['arm']}: {figures}{ratio}  work: {row['equal_work']}")
    return lines


def main(folder: Path) -> None:
    """Write the table beside the store, and print it."""
    rows = rows_of(folder)
    temporary = folder / "table.tmp"
    temporary.write_text(json.dumps(rows, indent=1))
    temporary.replace(folder / "table.json")
    print("\n".join(show(rows, read(folder / "smoke.jsonl"))), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
