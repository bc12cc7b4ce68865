"""The environments that exist: finding, checking, listing and removing them."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import itertools
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.environments import installer
from bench.environments.installer import cache_folder
from bench.errors import BenchError
from bench.recipe.codebases import Codebase, Step
from bench.record.run import write_atomic

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Drift:
    """A package that is not what the lock says. `locked` None: the lock lacks it; `found` None: it is gone."""

    package: str
    locked: str | None
    found: str | None

    def __str__(self) -> str:
        if self.locked is None:
            return f"{self.package} {self.found} is installed, the lock has none"
        return f"{self.package} is {self.found or 'missing'}, locked is {self.locked}"


@dataclass(frozen=True)
class Installed:
    """A complete environment of the cache. `size_bytes` is what removing it frees."""

    codebase: str
    folder: Path
    groups: tuple[str, ...]
    python: str
    created_utc: str
    create_s: float
    size_bytes: int
    packages: Mapping[str, str]
    name: str = ""
    """Of a named one."""
    interpreter: str = ""
    """Of an adopted one."""


def python_of(codebase: Codebase) -> Path:
    """The interpreter that runs this codebase. Raises BenchError where its environment has not been created."""
    found = _environment_of(codebase)
    return python_of_lock(*found) if found else Path(sys.executable)


def versions(codebase: Codebase) -> dict[str, str]:
    """Locked versions of all distributions the codebase runs with, for the run's record."""
    if found := _environment_of(codebase):
        return dict(found[1]["packages"])
    return {d.name: d.version for d in importlib.metadata.distributions() if d.name}


def check(codebase: Codebase) -> list[Drift]:
    """What differs between the environment as it is now and its lock.

    For a codebase that runs in bench's own environment the lock is the `==` requirements of this package.

    Args:
        codebase: The codebase.

    Returns:
        The differences by package; empty when there is none.

    Raises:
        BenchError: The environment is missing, or its smoke import fails.
    """
    found = _environment_of(codebase)
    return check_folder(codebase, found[0]) if found else _own_drifts()


def check_folder(codebase: Codebase, folder: Path) -> list[Drift]:
    """What differs between one environment as it is now and its lock. Raises BenchError as `check`."""
    lock = read_lock(folder)
    locked, python = lock["packages"], python_of_lock(folder, lock)
    found = distributions(python)
    smoke_python(codebase, python)
    return [
        Drift(name, locked.get(name), found.get(name))
        for name in sorted({*locked, *found})
        if locked.get(name) != found.get(name)
    ]


def _environment_of(codebase: Codebase) -> tuple[Path, dict[str, Any]] | None:
    """Folder and lock of the environment that a codebase runs in; None: bench's own.

    One that has the name of the codebase goes before the locked one. Raises BenchError where there is none.
    """
    folder = cache_folder() / "named" / codebase.name
    if (lock := lock_of(folder)) is not None and lock["codebase"] == codebase.name:
        return folder, lock
    return None if codebase.environment.kind == "project" else _find(codebase)


def _own_drifts() -> list[Drift]:
    drifts = []
    for requirement in map(Requirement, importlib.metadata.requires("detection-bench") or []):
        for pin in requirement.specifier:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # an optional extra
                found = importlib.metadata.version(requirement.name)
                if pin.operator == "==" and found != pin.version:
                    drifts.append(Drift(canonicalize_name(requirement.name), pin.version, found))
    return drifts


def remove(codebase: Codebase) -> list[Path]:
    """Delete all environments of a codebase, those of earlier pins too; uv's cache stays.

    Args:
        codebase: The codebase.

    Returns:
        The deleted folders.

    Raises:
        BenchError: The codebase runs in bench's own environment.
    """
    if codebase.environment.kind == "project":
        raise BenchError(f"'{codebase.name}' runs in bench's own environment, which is not removed")
    with only_one(codebase.name, lambda _: None):
        made = [env for env in _all_folders() if env.parent.name == "envs"]
        folders = [env for env in made if env.name.rpartition("-")[0] == codebase.name]
        for folder in folders:
            (folder / "lock.json").unlink(missing_ok=True)  # first: half of an environment is none
            shutil.rmtree(folder)
    return folders


def list_environments() -> list[Installed]:
    """All complete environments of the cache, by codebase."""
    found = []
    for folder in _all_folders():
        if lock := lock_of(folder):
            names = (field.name for field in fields(Installed) if field.name in lock)
            known = {name: lock[name] for name in names}
            found.append(Installed(folder=folder, **{**known, "groups": tuple(lock["groups"])}))
    return found


def read_lock(folder: Path) -> dict[str, Any]:
    """`lock.json` of an environment.

    Args:
        folder: The folder of the environment.

    Returns:
        The fields of `Installed` but `folder`.

    Raises:
        BenchError: It is not a complete environment.
    """
    lock = lock_of(folder)
    if lock is None:
        raise BenchError("not a complete environment", where=str(folder))
    return lock


def write_lock(
    folder: Path, codebase: Codebase, python: str, packages: Mapping[str, str], **more: Any
) -> None:
    """Make an environment complete: ``python`` is its version, ``more`` are other fields of `Installed`, and `pins`."""
    lock = {
        "codebase": codebase.name,
        "name": folder.name if folder.parent.name == "named" else "",
        "python": python,
        "created_utc": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "packages": packages,
        "pins": [],
        "groups": [],
        "create_s": 0.0,
        "size_bytes": 0,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "lock.json", json.dumps(lock, indent=1))


def lock_of(folder: Path) -> dict[str, Any] | None:
    """The lock of a complete environment, else None. Without its base interpreter a venv is not complete."""
    try:
        lock = json.loads((folder / "lock.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    return lock if isinstance(lock, dict) and python_of_lock(folder, lock).exists() else None


def python_of_lock(folder: Path, lock: Mapping[str, Any]) -> Path:
    """The interpreter of an environment: its own, or the adopted one."""
    return Path(lock.get("interpreter") or venv_python(folder))


def venv_python(folder: Path) -> Path:
    """The interpreter of an environment."""
    return folder / "venv" / "bin" / "python"


def steps_of(codebase: Codebase, groups: Iterable[str]) -> list[Step]:
    """The install steps of a codebase, those of optional groups last."""
    optional = [step for group in sorted(groups) for step in codebase.environment.groups[group]]
    return [*codebase.environment.steps, *optional]


def folder_of(codebase: Codebase, groups: Iterable[str]) -> Path:
    """Where the environment is or would be."""
    steps = [
        [step.model_dump(), (codebase.folder / step.requirements).read_text() if step.requirements else ""]
        for step in steps_of(codebase, groups)
    ]
    name = key(codebase.environment.python, sys.platform, platform.machine(), steps)
    return cache_folder() / "envs" / f"{codebase.name}-{name}"


def key(*parts: object) -> str:
    """A short hash."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def distributions(python: Path) -> dict[str, str]:
    """Normalised name → version of what is installed beside an interpreter."""
    command = [installer.uv(), "pip", "list", "--quiet", "--format", "json", "--python", str(python)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True)
    return {one["name"]: one["version"] for one in json.loads(listed.stdout)}


def smoke_python(codebase: Codebase, python: Path, hint: str = "") -> None:
    """Import the modules of `smoke` in an interpreter.

    Raises:
        BenchError: One does not import; with the hint, or else how to make the environment again.
    """
    modules = codebase.environment.smoke.split()
    if not modules:
        return
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    result = subprocess.run([python, "-Ic", code, *modules], capture_output=True, text=True)
    if result.returncode != 0:
        reason = result.stderr.strip().splitlines()[-1:] or [f"exit status {result.returncode}"]
        raise BenchError(
            f"the environment of '{codebase.name}' does not import {', '.join(modules)}: {reason[0]}",
            where=str(python),
            hint=hint or f"bench env remove {codebase.name}, then bench env create {codebase.name}",
        )


@contextlib.contextmanager
def only_one(name: str, progress: Progress) -> Iterator[None]:
    """One process at a time changes a codebase's environments; a killed process loses the lock by itself."""
    path = cache_folder() / "envs" / f".{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        progress(f"{name}: waiting for another process that is changing this environment")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _all_folders() -> list[Path]:
    found = [*(cache_folder() / "envs").glob("*-*"), *(cache_folder() / "named").glob("*")]
    return sorted(path for path in found if path.is_dir())


def _find(codebase: Codebase) -> tuple[Path, dict[str, Any]]:
    """Of several environments the one with most groups: who compiled the optional kernels wants them used."""
    known = sorted(codebase.environment.groups)
    for size in range(len(known), -1, -1):
        for chosen in itertools.combinations(known, size):
            folder = folder_of(codebase, chosen)
            if (lock := lock_of(folder)) is not None:
                return folder, lock
    outdated = any(env.codebase == codebase.name for env in list_environments())
    state = "was made for other versions" if outdated else "has not been created"
    raise BenchError(
        f"the environment of '{codebase.name}' {state}", hint=f"bench env create {codebase.name}"
    )
