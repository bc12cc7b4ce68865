"""Processes that put the same cells into a store at the same time, until they have all or are killed."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import sys
import time
from pathlib import Path

from bench.record.store import open_store, packed

RECIPE, WRITERS = "sweep", 8


def run_folder(parent: Path, key: str) -> Path:
    """A run folder whose content follows from its key."""
    folder = parent / key
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(key)
    noise = random.Random(key).randbytes(100_000)
    (folder / "samples" / "a.parquet").write_bytes(noise)
    (folder / "sha256").write_text(hashlib.sha256(noise).hexdigest())
    return folder


def write_all(url: str, keys: list[str], parent: Path, log: Path) -> None:
    """Put every key that the store lacks; note those that this process was the first to finish."""
    store = open_store(url)
    for key in random.SystemRandom().sample(keys, len(keys)):
        if key not in store.keys(RECIPE) and store.put(RECIPE, key, packed(run_folder(parent, key))):
            with log.open("a") as file:
                file.write(f"{key}\n")


def main() -> None:
    """Start the writers, and kill every second one at a random time. A second round has no kills."""
    url, parent, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    keys = [f"{number:016x}" for number in range(count)]
    for kills in (True, False):
        started = []
        for number in range(WRITERS):
            pid = os.fork()
            if not pid:
                write_all(url, keys, parent / f"{kills}-{number}", parent / f"log-{kills}-{number}")
                os._exit(0)
            started.append(pid)
        for pid in started[::2] if kills else ():
            time.sleep(random.SystemRandom().uniform(0.0, 0.6))
            os.kill(pid, signal.SIGKILL)
        for pid in started:
            os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
