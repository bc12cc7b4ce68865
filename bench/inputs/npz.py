"""Weights in `.npz` files: nothing is unpickled, and what they unpack to is bounded before it is read."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bench.errors import BenchError

#: Weights hardly pack. A file may unpack to this many times its size, or to this many bytes.
MAX_RATIO, FREE_BYTES = 20, 256 << 20


def check_npz(path: Path) -> None:
    """Refuse a file that is no archive, or that unpacks to far more than it is. Raises BenchError."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > max(FREE_BYTES, MAX_RATIO * path.stat().st_size):
            raise BenchError(f"unpacks to {unpacked:,} bytes, which no weights do", where=str(path))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise BenchError(f"not a file of weights: {error}", where=str(path)) from None


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file of weights by name. Raises BenchError that names the file."""
    check_npz(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise BenchError(f"damaged weights: {error}", where=str(path)) from None


def sha256_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and values, whatever the order of the names."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()
