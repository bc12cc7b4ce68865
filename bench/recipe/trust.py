"""Code that a recipe names by its path: it runs once the user has said so, and is remembered by its checksum."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.errors import BenchError
from bench.recipe.plan import Arm

#: Suffixes of configurations that their codebases run, or build objects from.
CODE = (".py", ".yaml", ".yml")


def code_of(arm: Arm) -> Iterator[tuple[str, str]]:
    """What an arm runs that is no installed codebase: the field of the recipe, and the path or the function."""
    if arm.python is not None:
        yield "python", _absolute(arm.python)
    if arm.source is not None:
        yield "source", _absolute(str(arm.source))
    if "source" in arm.options:  # of an adapter that imports from there
        yield "options.source", _absolute(str(arm.options["source"]))
    file = Path(arm.own_name)  # a name of a zoo is no path; a reader of YAML may build objects
    if (file.suffix in CODE and (file.is_absolute() or file.exists())) or ":" in file.name:
        yield "model", arm.own_name


def _absolute(path: str) -> str:
    """Not resolved: what a link leads to may change."""
    return os.path.abspath(os.path.expanduser(path))


def _inside(path: str, own: Path) -> bool:
    """Whether a file, or the module of a function, is of a checkout."""
    module = path.partition(":")[0].replace(".", "/")
    folders = (own, own / "src")
    places = (
        [path] if os.path.isabs(path) else [it / one for it in folders for one in (module, f"{module}.py")]
    )
    return any(Path(one).resolve().is_relative_to(own) and Path(one).exists() for one in places)


def checksum(found: Iterable[tuple[str, str]]) -> str:
    """Of the paths, and of what stands in those that are files of text. A checkout is known by its path only."""
    digest = hashlib.sha256()
    for field, path in sorted(set(found)):
        digest.update(f"{field}\0{path}\0".encode())
        file = Path(path).expanduser()
        if field == "model" and file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def refuse_untrusted(
    arms: Iterable[Arm], place: str, folder: Path, *, trust: bool, own: Path | None = None
) -> None:
    """Check the code that the arms of a recipe name.

    Args:
        arms: Of a plan.
        place: The recipe, for the message.
        folder: Where a checksum that was trusted is remembered.
        trust: The user trusts what the recipe names now.
        own: A checkout whose code the user asked to measure; what is imported from there is trusted.

    Raises:
        BenchError: The recipe names code that was not trusted yet, or that has changed.
    """
    found = list(
        dict.fromkeys(one for arm in arms for one in code_of(arm) if not (own and _inside(one[1], own)))
    )
    if not found:
        return
    remembered = folder / checksum(found)
    if trust:
        folder.mkdir(parents=True, exist_ok=True)
        remembered.touch()
    elif not remembered.exists():
        listed = "; ".join(f"{field}: {path}" for field, path in found)
        raise BenchError(
            f"the recipe runs code that is not part of bench: {listed}",
            where=place,
            hint="read it, then repeat the command with --trust; that is remembered until the files change",
        )
