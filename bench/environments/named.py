"""Environments by a name of the user's: interpreters that exist already, and other versions beside the locked ones.

    ~/.cache/bench/named/<name>/
        venv/          of `bench env create CODEBASE --as NAME`; nothing of an adopted interpreter is here
        lock.json      as of other environments, with `name`, `pins`, and `interpreter` of an adopted one

An environment that has the name of its codebase is the one that the codebase runs in.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from packaging.utils import canonicalize_name

from bench.environments import store
from bench.environments.installer import cache_folder
from bench.errors import BenchError, did_you_mean
from bench.recipe.codebases import Codebase
from bench.record.software import environment_of

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def folder_of_name(name: str) -> Path:
    """The folder of a named environment.

    Raises:
        BenchError: No file can have that name.
    """
    if not _NAME.fullmatch(name):
        raise BenchError(f"'{name}' cannot name an environment", hint="letters, digits, '.', '_' and '-'")
    return cache_folder() / "named" / name


def interpreter_path(python: Path) -> Path:
    """The whole path of an interpreter, with links kept: a virtual environment is known by the path of its link."""
    return Path(os.path.abspath(python.expanduser()))


def adopt(name: str, codebase: Codebase, python: Path) -> dict[str, str]:
    """Let a codebase run in an interpreter that exists.

    Args:
        name: What recipes call it.
        codebase: The codebase that is installed there.
        python: The interpreter. Nothing is installed in its environment.

    Returns:
        Distribution → version.

    Raises:
        BenchError: It does not start, or it cannot import the codebase.
    """
    python = interpreter_path(python)
    found = environment_of(python)
    if not found:
        raise BenchError("not a Python interpreter of version 3.8 or newer", where=str(python))
    packages = {str(canonicalize_name(one)): str(version) for one, version in found["packages"].items()}
    if "numpy" not in packages:
        raise BenchError("this interpreter has no numpy, which the worker needs", where=str(python))
    store.smoke_python(codebase, python, hint=f"what has to import: {codebase.environment.smoke}")
    folder = folder_of_name(name)
    if (old := store.lock_of(folder)) and not old.get("interpreter"):
        raise BenchError(f"'{name}' is an environment that bench created", hint=f"bench env remove {name}")
    store.write_lock(folder, codebase, found["python"], packages, interpreter=str(python))
    return packages


def named_python(name: str, codebase: Codebase) -> Path:
    """The interpreter of a named environment.

    Raises:
        BenchError: There is none of that name, or it is of another codebase.
    """
    lock = store.lock_of(folder_of_name(name))
    if lock is None:
        raise BenchError(
            f"no environment is called '{name}'",
            hint=did_you_mean(name, names())
            if names()
            else f"bench env adopt {name} --python PATH, or bench env create {codebase.name} --as {name}",
        )
    if lock["codebase"] != codebase.name:
        raise BenchError(f"environment '{name}' is of {lock['codebase']}, not of {codebase.name}")
    return store.python_of_lock(folder_of_name(name), lock)


def names() -> list[str]:
    """The names that there are."""
    folders = (path.parent for path in (cache_folder() / "named").glob("*/lock.json"))
    return sorted(folder.name for folder in folders if store.lock_of(folder))


def remove_named(name: str) -> Path:
    """Forget an adopted interpreter, or delete an environment that was created under a name.

    Raises:
        BenchError: There is none of that name.
    """
    folder = folder_of_name(name)
    if not folder.is_dir():
        raise BenchError(f"no environment is called '{name}'", hint=did_you_mean(name, names()))
    (folder / "lock.json").unlink(missing_ok=True)  # first: half of an environment is none
    shutil.rmtree(folder)
    return folder


def refuse_other_pins(name: str, codebase: Codebase, pins: Sequence[str]) -> None:
    """A name stands for one thing. Raises BenchError where it is taken for another."""
    lock = store.lock_of(folder_of_name(name))
    if lock and (lock["codebase"], sorted(lock["pins"])) != (codebase.name, sorted(pins)):
        made = " ".join([lock["codebase"], *lock["pins"]])
        raise BenchError(f"'{name}' is taken by another environment: {made}", hint=f"bench env remove {name}")
