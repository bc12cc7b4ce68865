"""Where finished cells are kept: a folder, or any file system that fsspec knows (`s3://bucket/prefix`).

    <store>/<recipe>/<key>.cell.zip     the run folder of one cell

A cell is put there in one step: under a temporary name and linked, or as one object. A reader sees all of it or
nothing, whoever is killed when. The first one that finishes a key wins; nothing is ever replaced.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from bench.errors import BenchError, StorageError, storing, telling
from bench.record.names import inner_path

SUFFIX = ".cell.zip"

#: What a run folder holds only while it is measured.
_PASSING = ("state/", ".")

#: An archive of a stranger that unpacks to more is refused.
MAX_CELL_BYTES = 16 << 30


class Store(Protocol):
    """Finished cells by recipe and key."""

    def keys(self, recipe: str) -> set[str]: ...
    def recipes(self) -> list[str]: ...
    def read(self, recipe: str, key: str) -> bytes: ...
    def put(self, recipe: str, key: str, archive: bytes) -> bool:
        """Keep a finished cell. Returns whether it is the first of its key."""
        ...


def open_store(url: str) -> Store:
    """The store at a folder or URL. Raises BenchError for a URL that cannot be opened."""
    return ObjectStore(url) if "://" in url else FolderStore(Path(url))


def is_store(name: str) -> bool:
    """Whether a text names a store rather than a run."""
    return "://" in name or any(Path(name).glob(f"*/*{SUFFIX}"))


class FolderStore:
    """A store in a folder, perhaps shared by many machines."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def recipes(self) -> list[str]:
        return sorted({path.parent.name for path in self.root.glob(f"*/*{SUFFIX}")})

    def keys(self, recipe: str) -> set[str]:
        names = (path.name for path in (self.root / recipe).glob(f"[!.]*{SUFFIX}"))
        found = {name.removesuffix(SUFFIX) for name in names}
        # What killed writers left of a key that is there: no one needs it.
        for left in (self.root / recipe).glob(".*.*"):
            if left.name.split(".")[1] in found:
                with contextlib.suppress(OSError):
                    left.unlink()
        return found

    def read(self, recipe: str, key: str) -> bytes:
        path = self.root / recipe / f"{key}{SUFFIX}"
        with telling("cannot be read", path):
            return path.read_bytes()

    def put(self, recipe: str, key: str, archive: bytes) -> bool:
        """Keep a finished cell. Returns whether it is the first of its key. Raises StorageError."""
        folder = self.root / recipe
        path = folder / f"{key}{SUFFIX}"
        temporary = folder / f".{key}.{secrets.token_hex(4)}"
        try:
            with storing(path):
                folder.mkdir(parents=True, exist_ok=True)
                with temporary.open("xb") as file:
                    file.write(archive)
                    file.flush()
                    os.fsync(file.fileno())
                first = _linked(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return first


def _linked(temporary: Path, path: Path) -> bool:
    """Give a complete file its name, unless another one has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except FileNotFoundError:  # another attempt has finished, and has cleared this one away
        if not path.exists():
            raise
        return False
    except OSError:  # a file system without links
        if path.exists():
            return False
        os.replace(temporary, path)
    return True


class ObjectStore:
    """A store at a URL, by fsspec; one object for each cell."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec

            options = {"use_listings_cache": False, "skip_instance_cache": True}
            self.files: Any
            self.files, self.root = fsspec.core.url_to_fs(url, **options)
        except (ImportError, ValueError, OSError) as error:
            hint = "pip install 'detection-bench[s3]' for s3://; other protocols need their fsspec package"
            raise BenchError(f"cannot open the store: {error}", where=url, hint=hint) from None
        self.url = url

    def recipes(self) -> list[str]:
        with self._errors():
            paths: list[str] = self.files.find(self.root)
        return sorted({path.split("/")[-2] for path in paths if path.endswith(SUFFIX)})

    def keys(self, recipe: str) -> set[str]:
        try:
            with self._errors():
                paths: list[str] = self.files.find(f"{self.root}/{recipe}")
        except FileNotFoundError:
            return set()
        names = (path.rpartition("/")[2] for path in paths)
        return {name.removesuffix(SUFFIX) for name in names if name.endswith(SUFFIX)}

    def read(self, recipe: str, key: str) -> bytes:
        with self._errors():
            return bytes(self.files.cat_file(f"{self.root}/{recipe}/{key}{SUFFIX}"))

    def put(self, recipe: str, key: str, archive: bytes) -> bool:
        """Keep a finished cell. Returns whether it is the first of its key. Raises BenchError."""
        with self._errors():
            try:
                self.files.pipe_file(f"{self.root}/{recipe}/{key}{SUFFIX}", archive, mode="create")
            except FileExistsError:
                return False
        return True

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """What the library of an object store raises, as an error for the user."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            problem = f"the store does not answer: {type(error).__name__}: {error}"
            raise StorageError(f"{self.url}: {problem}", hint="check the URL and its credentials") from error


def packed(folder: Path) -> bytes:
    """A run folder as one archive."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not path.is_symlink() and not name.startswith(_PASSING):
                archive.write(path, name)
    return buffer.getvalue()


def members(archive: bytes, where: str) -> dict[str, bytes]:
    """The files of a packed run folder, by their names.

    Raises:
        BenchError: it is no archive, is torn, is too large, or names a file outside of the folder.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            infos = [info for info in opened.infolist() if not info.is_dir()]
            if sum(info.file_size for info in infos) > MAX_CELL_BYTES:
                raise ValueError("it is too large")
            for info in infos:
                inner_path(info.filename)
            return {info.filename: opened.read(info) for info in infos}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BenchError(f"not a packed cell: {error}", where=where) from None
