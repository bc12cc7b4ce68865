"""Records name places, not paths: `{repository}`, `{cache}`, `{home}`, so that they mean the same on any machine.

Every text of a record passes `Places.portable` on its way to the disk. It replaces paths of this machine, the names
of its host and user, and whatever looks like a key (`bench.record.secrets`). `Places.local` is the way back, for what
a resumed run has to open again.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
import platform
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.record import secrets

REPOSITORY = Path(__file__).resolve().parents[2]

#: Names of hosts and users that say nothing, or that are common words.
_COMMON_NAMES = frozenset(
    {"localhost", "root", "user", "runner", "ubuntu", "admin", "docker", "bench", "host"}
)
_ELSEWHERE = "{elsewhere}/"
_PATHS_OF_AN_ARGUMENT = re.compile(r"(?:^|(?<=[=:@]))/(?!/)[^=:@]*")
_PATH_ENDS = r"(?=$|[^\w.-]|\.(?:\W|$))"


@dataclass(frozen=True)
class Places:
    """The folders of this machine that records speak of."""

    run: Path
    cache: Path | None = None
    """Of the session that measures the run; None for a reader."""

    @cached_property
    def _folders(self) -> dict[str, str]:
        """Folder → placeholder; of the run folder nothing, so that paths are relative to it."""
        named = {
            "": self.run,
            "{repository}": REPOSITORY,
            "{cache}": self.cache,
            "{home}": Path(os.path.expanduser("~")),
            "{temporary}": Path(tempfile.gettempdir()),
        }
        found: dict[str, str] = {}
        for name, folder in ((name, folder) for name, folder in named.items() if folder is not None):
            for path in (os.path.abspath(folder), str(folder.resolve())):
                if path.count("/") and path != "/":
                    found.setdefault(path, name)
        return found

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._folders, key=len, reverse=True)
        paths = "|".join(map(re.escape, longest_first))
        return re.compile(rf"(?<![\w.-])({paths})(/|{_PATH_ENDS})")

    @cached_property
    def _names(self) -> re.Pattern[str] | None:
        """The host's name as a word, and the user's as a part of a path."""
        node = platform.node()
        words = [
            rf"(?<![\w.-]){re.escape(name)}(?![\w-])" for name in {node, node.split(".")[0]} if _telling(name)
        ]
        user = _user()
        words += [rf"(?<=/){re.escape(user)}(?=/|$|\W)"] if _telling(user) else []
        return re.compile("|".join(sorted(words, key=len, reverse=True))) if words else None

    @cached_property
    def _secrets(self) -> list[str]:
        return secrets.own_values()

    def text(self, text: str) -> str:
        """A text without anything of this machine or its user."""

        def place(match: re.Match[str]) -> str:
            name = self._folders[match[1]]
            return f"{name}{match[2]}" if name else ("" if match[2] else ".")

        text = text.encode("utf-8", "backslashreplace").decode()  # half of a surrogate pair is no text
        text = secrets.hidden(self._pattern.sub(place, text), self._secrets)
        return self._names.sub("{name}", text) if self._names else text

    def portable(self, value: Any) -> Any:
        """JSON values without anything of this machine or its user."""
        return _mapped(value, self.text)

    def recipe(self, recipe: Any) -> Any:
        """A resolved recipe with its paths outside of all known folders as `{elsewhere}/…`; which folder that is stays
        in the cache, for `local`.
        """
        elsewhere: dict[str, str] = {}

        def place(text: str) -> str:
            if os.path.isabs(text) and self.text(text) == text:
                name = f"{_ELSEWHERE}{hashlib.sha256(text.encode()).hexdigest()[:6]}/{Path(text).name}"
                elsewhere[name] = text
                return name
            return self.text(text)

        portable = _mapped(recipe, place)
        if elsewhere and self.cache and not elsewhere.items() <= (known := self._elsewhere()).items():
            self._elsewhere_file.parent.mkdir(parents=True, exist_ok=True)
            self._elsewhere_file.write_text(json.dumps({**known, **elsewhere}))
        return portable

    def argument(self, text: str) -> str:
        """An argument of the command line: its paths relative to the current folder, or as places.

        Args:
            text: A path, `--option=PATH`, or an arm of `bench vs`: `CODEBASE=PATH:PATH@PATH`.
        """

        def place(match: re.Match[str]) -> str:
            path = match[0]
            if Path(path).is_relative_to(Path.cwd()) and Path.cwd() != Path("/"):
                return os.path.relpath(path)
            return f"{_ELSEWHERE}{Path(path).name}" if self.text(path) == path else path

        return self.text(_PATHS_OF_AN_ARGUMENT.sub(place, text))

    def local(self, value: Any) -> Any:
        """The recipe of a record with the paths and hidden variables of this machine.

        Raises:
            BenchError: a path or a variable that this machine does not have.
        """
        elsewhere = self._elsewhere()

        def path(text: str) -> str:
            if text.startswith(_ELSEWHERE):
                if text not in elsewhere:
                    raise BenchError(
                        f"{text} of this run is not known on this machine", hint="start a new run"
                    )
                return elsewhere[text]
            for folder, name in self._folders.items():
                if name and (text == name or text.startswith(f"{name}/")):
                    return folder + text[len(name) :]
            return text

        return secrets.restored(_mapped(value, path))

    @property
    def _elsewhere_file(self) -> Path:
        assert self.cache is not None
        return self.cache / "elsewhere" / f"{self.run.name}.json"

    def _elsewhere(self) -> dict[str, str]:
        if self.cache is None:
            return {}
        try:
            return dict(json.loads(self._elsewhere_file.read_text()))
        except (OSError, ValueError):
            return {}


def _mapped(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """A value with every text changed, and what JSON has no number for as None."""
    if isinstance(value, str):
        return secrets.HIDDEN if value and secrets.is_secret(key) else change(value)
    if isinstance(value, Mapping):
        if key == "variables":
            value = secrets.hidden_variables(value)
        return {change(str(name)): _mapped(one, change, str(name)) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, change, key) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _telling(name: str) -> bool:
    return len(name) >= 4 and name.lower() not in _COMMON_NAMES


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no such user in this container
        return ""
