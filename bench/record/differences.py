"""What differs between two recorded values, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MISSING = "–"
#: Things that a sentence names before the rest is a number.
NAMED = 4


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def differences(a: Any, b: Any) -> Iterator[str]:
    """`input.images: 16 → 32` for every value that differs."""
    one, two = dict(_leaves(a)), dict(_leaves(b))
    for name in dict.fromkeys([*one, *two]):
        if one.get(name) != two.get(name):
            yield f"{name}: {one.get(name, MISSING)} → {two.get(name, MISSING)}"


def named(texts: Sequence[str], most: int = NAMED) -> str:
    """`a; b; c; d; 3 more`."""
    return "; ".join([*texts[:most], *([f"{len(texts) - most} more"] if len(texts) > most else [])])
