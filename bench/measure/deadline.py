"""What a worker may take, and say, until its arm fails."""

from __future__ import annotations

import time
from typing import Any

#: Longest wait at once, in seconds and as a share of the deadline.
_LONGEST_S, _SHARE = 30.0, 0.1


class Deadline:
    """Seconds that this process was awake for.

    A machine that sleeps, or a session that is stopped, must not make a hang of a worker that slept as well: of each
    wait no more counts than twice what was asked for.
    """

    def __init__(self, seconds: float) -> None:
        self._left_s = seconds
        self._slice_s = min(_LONGEST_S, _SHARE * seconds)
        self._since = time.monotonic()

    def next_wait_s(self) -> float:
        """How long to wait now, before asking again whether it is `over`."""
        self._count()
        return min(self._slice_s, max(0.0, self._left_s))

    def over(self) -> bool:
        """Whether nothing is left."""
        self._count()
        return self._left_s <= 0

    def _count(self) -> None:
        now = time.monotonic()
        self._left_s -= min(now - self._since, 2 * self._slice_s)
        self._since = now


def encodable(value: Any) -> Any:
    """JSON values whose texts can be written: half of a surrogate pair becomes its escape."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {encodable(key): encodable(one) for key, one in value.items()}
    if isinstance(value, list) and not (value and isinstance(value[0], int | float)):
        return [encodable(one) for one in value]
    return value
