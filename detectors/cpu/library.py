"""The library in C: built once for a machine and its compiler, and loaded only where nobody else could write it."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shlex
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger("detectors")

SOURCE = Path(__file__).with_name("winograd.c")
FLAGS = ("-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
#: Seconds that the compiler may take. It needs about one.
COMPILER_LIMIT_S = 120
#: Bytes behind the library, its SHA-256. A loader that maps a file without its end is killed by the system.
DIGEST_BYTES = 32


class Unusable(Exception):
    """A library that is there and must not be loaded."""


def available() -> bool:
    """Whether the library is there, for which it is built if it has to be."""
    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and built() is not None


# What ``torch.compiler.assume_constant_result`` does, but for importing the compiler (160 MiB) into every process.
available._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def built() -> ctypes.CDLL | None:
    """Build for this processor, or take what was built before.

    Returns:
        The library; None after a warning where there is no compiler, no place to write, or no safe one.
    """
    try:
        return _typed(_loaded(_build()))
    except (OSError, AttributeError, Unusable, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        log.warning("convolutions run on torch's kernels: %s is not used: %s", SOURCE.name, said)
        return None


def _typed(found: ctypes.CDLL) -> ctypes.CDLL:
    """With the types of its functions. Raises AttributeError for a function that is not in it."""
    size, pointer, integer = ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_int
    for name, arguments, result in (
        ("detectors_convolve_scratch", [*[size] * 3, integer], size),
        ("detectors_convolve", [*[pointer] * 4, *[size] * 9, integer, size, pointer, integer], None),
        ("detectors_weight_gradient_scratch", [size] * 3, size),
        ("detectors_weight_gradient", [*[pointer] * 3, *[size] * 7, pointer, integer], None),
    ):
        function = getattr(found, name)
        function.argtypes, function.restype = arguments, result
    return found


def _loaded(place: Path) -> ctypes.CDLL:
    """Load it, whole and from a place that no one else can write to between the check and the load.

    Raises:
        Unusable: if another user could have written the file, or its end is missing.
    """
    refuse_foreign(place)
    content = place.read_bytes()
    if hashlib.sha256(content[:-DIGEST_BYTES]).digest() != content[-DIGEST_BYTES:]:
        raise Unusable(f"{place} is damaged; delete it")
    return ctypes.CDLL(str(place))


def refuse_foreign(place: Path) -> None:
    """Raise Unusable if another user could put another file in this one's place.

    The file and its folder have to be the user's own and writable by no one else. The folders above may also be root's,
    and those with the sticky bit, such as `/tmp`, may be writable by all.
    """
    place = place.resolve()
    for path in (place, *place.parents):
        found = path.stat()
        own = path in (place, place.parent)
        if found.st_uid != os.geteuid() and (own or found.st_uid != 0):
            raise Unusable(f"{path} belongs to another user")
        shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if shared and (own or not found.st_mode & stat.S_ISVTX):
            raise Unusable(f"{path} can be written by others; run `chmod go-w {path}`")


def _build() -> Path:
    """The library's place, with the library in it."""
    compiler = shlex.split(os.environ.get("CC", "cc"))
    version = _run([*compiler, "--version"], 10)
    processor = Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0]
    told = repr((SOURCE.read_text(), compiler, version, FLAGS, processor))
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "detectors"
    place = home / f"winograd-{key}.so"
    if not place.exists():
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:  # so that nobody loads half of it
            part = Path(folder) / "part.so"
            _run([*compiler, *FLAGS, "-o", str(part), str(SOURCE)], COMPILER_LIMIT_S)
            _seal(part)
            part.replace(place)
            _sync(home)
    return place


def _run(command: list[str], limit_s: float) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=limit_s).stdout


def _seal(part: Path) -> None:
    """Put the digest behind the library, and all of it on the disk."""
    digest = hashlib.sha256(part.read_bytes()).digest()
    with part.open("ab") as file:
        file.write(digest)
        file.flush()
        os.fsync(file.fileno())
    part.chmod(0o700)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
