"""Names and paths that stand in a record become files, so they are checked when a record is read."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

_NAME = re.compile(r"\w[\w.-]*")

#: Bytes of a name; file systems allow 255 with an ending of our own.
MAX_NAME_BYTES = 200
_READABLE_BYTES = 120


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


def file_names(texts: Iterable[str]) -> dict[str, str]:
    """A name of a file for each text: readable, and another one for each text that differs.

    Letters of every script stay. A text that loses more than separators, or is cut, gets a few digits of its hash.
    """
    names: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())
        name = "-".join(words).encode()[:_READABLE_BYTES].decode(errors="ignore")
        lost = len(name) < len("-".join(words)) or any(
            ord(char) > 127 and not char.isalnum() for char in text
        )
        if lost or not name or name in names.values():
            name = f"{name or 'arm'}-{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:8]}"
        names[text] = name
    return names


FileName = Annotated[str, AfterValidator(file_name)]
InnerPath = Annotated[str, AfterValidator(inner_path)]


#: Characters of a label, as many as a recipe may give one.
MOST_LABEL = 200


def one_line(text: str) -> str:
    """A name as reports show it: on one line, and not longer than a recipe may write one."""
    return " ".join(text.split())[:MOST_LABEL] or "unnamed"


Label = Annotated[str, AfterValidator(one_line)]
