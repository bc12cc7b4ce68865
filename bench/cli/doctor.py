"""`bench doctor`: what works on this machine, what disturbs measuring, and how to get what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console

from bench.cli.listing import environment_state
from bench.cli.options import NONE, Adapters, AsJson, examples, plain, print_json
from bench.environments import cache_folder
from bench.recipe.codebases import find_codebases
from bench.record import machine

app = typer.Typer()

State = Literal["ok", "warning", "missing"]
MARKS: dict[State, str] = {
    "ok": "[green]ok[/]",
    "warning": "[yellow]warning[/]",
    "missing": "[red]missing[/]",
}

#: A run of a few models keeps some gigabytes of prepared batches and environments.
LOW_DISK_BYTES = 10 * 2**30
#: One worker of a Mask R-CNN at 512×512 holds 2 to 3 GiB; a cell of four arms holds four.
LOW_MEMORY_BYTES = 8 * 2**30


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    state: State
    detail: str
    fix: str = ""


def _judged(what: str, fine: bool, detail: str, fix: str = "") -> Finding:
    """A finding; the fix is for what is not fine."""
    return Finding(what, "ok" if fine else "warning", detail, "" if fine else fix)


def _machine() -> Iterator[Finding]:
    import psutil

    facts = machine.describe_machine()
    cpus = len(machine.affinity())
    model = facts.get("cpu", {}).get("model", "unknown processor")
    yield _judged("processor", cpus > 1, f"{model}, {cpus} usable")
    memory = psutil.virtual_memory().available
    yield _judged(
        "memory",
        memory >= LOW_MEMORY_BYTES,
        f"{memory / 2**30:.1f} GiB available",
        "measure fewer arms in one cell, or smaller input",
    )
    cache = cache_folder()
    existing = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    yield _judged(
        "disk",
        free >= LOW_DISK_BYTES,
        f"{free / 2**30:.0f} GiB free for {cache}",
        "make room, or set BENCH_CACHE to another disk",
    )
    gpus = facts.get("gpus", [])
    names = ", ".join(str(gpu.get("model")) for gpu in gpus)
    yield Finding("GPU", "ok", names if gpus else "none: recipes with device: cpu run here")


def _noise() -> Iterator[Finding]:
    governor = machine.describe_machine().get("cpu", {}).get("governor")
    if governor and governor != "performance":
        yield Finding("governor", "warning", str(governor), "cpupower frequency-set -g performance")
    others = machine.foreign_load()
    names = ", ".join(
        f"{other['name']} (pid {other['pid']}): {other['cores']} processors" for other in others[:3]
    )
    yield _judged(
        "other load", not others, names or "none", "wait for other work to end: it widens every interval"
    )


def _codebases(adapters: Sequence[Path]) -> Iterator[Finding]:
    for codebase in find_codebases(adapters).values():
        ready, state = environment_state(codebase)
        text, _, fix = state.partition("; ")
        yield Finding(codebase.name, "ok" if ready else "missing", text, fix)
    yield Finding("dataset shapes", "ok", "generated when needed; COCO folders: workload.input.dataset: PATH")


def show(findings: Sequence[Finding]) -> None:
    console = Console(highlight=False)
    for finding in findings:
        console.print(f"{MARKS[finding.state]:>8}  ", plain(finding.what, "bold"), " ", sep="", end=" ")
        console.print(plain(finding.detail), soft_wrap=True)
        if finding.fix:
            console.print(plain(f"          → {finding.fix}"), soft_wrap=True)


@app.command(epilog=examples("bench doctor"))
def doctor(adapters: Adapters = NONE, as_json: AsJson = False) -> None:
    """Say what works on this machine, and how to get the rest."""
    findings = [*_machine(), *_noise(), *_codebases(adapters)]
    print_json(list(map(asdict, findings))) if as_json else show(findings)
