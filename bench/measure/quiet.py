"""Is the machine quiet: what others took of the processors during a block, and waiting until they are done.

The rule is fixed before a run. A block is disturbed if other processes or the hypervisor took more of the usable
processors than `allowed_cores`. A disturbed round is measured again at the end of its launch.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from bench.record import machine

#: Seconds of one session that `quiet: wait` waits at most.
LONGEST_WAIT_S = 30.0
#: Less than this is the resolution of the kernel's clocks.
SHORTEST_TAKEN_S = 0.05


def allowed_cores() -> float:
    """Processors that others may keep busy in a quiet machine: 0.1, or 5 % of many."""
    return max(0.1, 0.05 * len(machine.affinity()))


@dataclass(frozen=True)
class Clock:
    """Readings of the usable processors, in seconds since the start."""

    wall_s: float
    busy_s: float
    """Time that the usable processors worked, or were taken by the hypervisor."""
    own_s: float
    """Time that this session and its workers ran."""
    workers: tuple[int, ...] = ()
    """All processes below this session."""


def read_clock() -> Clock:
    """The processors now. Never raises: what the system does not show counts as nothing."""
    busy_s = own_s = 0.0
    workers: list[psutil.Process] = []
    with contextlib.suppress(Exception):
        processors = psutil.cpu_times(percpu=True)
        for number in machine.affinity():
            times = processors[number]
            busy_s += times.user + times.nice + times.system
            busy_s += sum(getattr(times, name, 0.0) for name in ("irq", "softirq", "steal"))
        session = psutil.Process()
        workers = session.children(recursive=True)
        for process in (session, *workers):
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                own_s += used.user + used.system
    return Clock(time.monotonic(), busy_s, own_s, tuple(process.pid for process in workers))


def taken_cores(before: Clock, after: Clock) -> float:
    """Processors that others kept busy between two readings; 0.0 below what the clocks resolve."""
    taken_s = (after.busy_s - before.busy_s) - (after.own_s - before.own_s)
    if taken_s < SHORTEST_TAKEN_S or after.wall_s <= before.wall_s:
        return 0.0
    return round(taken_s / (after.wall_s - before.wall_s), 3)


def wait_until_quiet(limit_s: float, note: Callable[[str], None]) -> float:
    """Wait while other processes are busy, at most so long. Returns the seconds it took."""
    begin = time.monotonic()
    told = False
    while (waited_s := time.monotonic() - begin) < limit_s:
        others = machine.foreign_load(interval_s=0.5)
        if sum(other["cores"] for other in others) <= allowed_cores():
            break
        if not told:
            note(f"waiting for a quiet machine: process {others[0]['pid']} ({others[0]['name']}) is busy")
            told = True
        time.sleep(min(1.0, limit_s - waited_s))
    return time.monotonic() - begin
