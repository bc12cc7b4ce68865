"""How far a long preparation is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from typing import TypeVar

Item = TypeVar("Item")


#: Who is told how far a long preparation is, and how often.
TOLD: ContextVar[Callable[[str], None] | None] = ContextVar("TOLD", default=None)
EVERY_S = 10.0


def watched(items: Sequence[Item], doing: str) -> Iterator[Item]:
    """The items; every ten seconds `TOLD` hears how many are done."""
    told_s, tell = time.monotonic(), TOLD.get()
    for done, item in enumerate(items):
        if tell is not None and time.monotonic() - told_s >= EVERY_S:
            told_s = time.monotonic()
            tell(f"{doing}: {done:,} of {len(items):,}")
        yield item
