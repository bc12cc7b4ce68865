"""Names and paths that stand in a record become files, so they are checked when a record is read."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

_NAME = re.compile(r"\w[\w.-]*")

#: Bytes of a name; file systems allow 255 with an ending of our own.
MAX_NAME_BYTES = 200


def file_name(text: str) -> str:
    """Check that a text is one part of a path: letters of any script, digits, `_`, `.` and `-`.

    Raises:
        ValueError: it begins with a dot, holds another character, or is too long.
    """
    if not _NAME.fullmatch(text) or len(text.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"not a name: {text[:80]!r} (letters, digits, '_', '.' and '-' are allowed)")
    return text


def inner_path(text: str) -> str:
    """Check that a text is a path below the run folder; an empty text is no path.

    Raises:
        ValueError: it is absolute, leads out of the folder, or holds a control character.
    """
    parts = PurePosixPath(text).parts
    if text and (
        text.startswith("/") or "\\" in text or ".." in parts or ":" in text or not text.isprintable()
    ):
        raise ValueError(f"not a path within the run folder: {text[:80]!r}")
    return text


FileName = Annotated[str, AfterValidator(file_name)]
InnerPath = Annotated[str, AfterValidator(inner_path)]
