"""What differs between two recorded values, as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

MISSING = "–"


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
