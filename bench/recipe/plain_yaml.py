"""YAML files of strangers: mappings, lists and plain scalars, each value with its place; no tags, and bounded."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from bench.errors import BenchError, read_file
from bench.text_safety import for_terminal

Places = dict[tuple[str | int, ...], str]

#: Longer files are no recipes.
MAX_BYTES = 256 << 10
#: Values in one file, each use of an anchor counted: what an "alias bomb" would multiply.
MAX_VALUES = 20_000

_WORDS = {
    **dict.fromkeys(("", "~", "null"), None),
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
_INTEGER = re.compile(r"[-+]?\d+", re.ASCII)
_NUMBER = re.compile(r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?", re.ASCII)
_MAX_DIGITS = 18
_MERGE = "<<"


def text_of(path: Path) -> str:
    """The text of a regular file that is not too long. Raises BenchError that names the file."""
    try:
        return read_file(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BenchError("this is not UTF-8", where=f"{path}:{line}", hint="save it as UTF-8") from None


def parse(text: str, where: str) -> tuple[Any, Places]:
    """The values of a YAML text and the place of each.

    Args:
        text: One document.
        where: The name of the file, for places and errors.

    Raises:
        BenchError: It is not YAML, has tags, or holds too much.
    """
    try:
        root = _Loader(text).get_single_node()
        reader = _Reader(where)
        return (None if root is None else reader.value(root, (), 0)), reader.places
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}" if mark else where
        problem = str(error.problem).replace(
            "character '\\t' that cannot start any token", "a tab: indent by spaces"
        )
        raise BenchError(f"not valid YAML: {problem}", where=place) from None
    except yaml.reader.ReaderError as error:
        raise BenchError(f"not valid YAML: {error.reason}", where=where) from None
    except (RecursionError, ValueError, OverflowError) as error:  # ValueError: `\UFFFFFFFF` in quotes
        problem = "nested too deeply" if isinstance(error, RecursionError) else f"not valid YAML: {error}"
        raise BenchError(problem, where=where) from None


class _Loader(yaml.SafeLoader):
    """Builds nodes and refuses tags: a tag makes another thing of a value than its text says."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "tag", None) is not None:
            raise yaml.composer.ComposerError(
                None, None, f"tags such as {event.tag} are not allowed", event.start_mark
            )
        return super().compose_node(parent, index)


class _Reader:
    """Values of nodes."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.places: Places = {}
        self.left = MAX_VALUES

    def value(self, node: yaml.Node, path: tuple[str | int, ...], depth: int) -> Any:
        """The value of a node, which stands at this path."""
        place = self._place(node)
        self.places.setdefault(path, place)
        self.left -= 1
        if self.left < 0 or depth > 50:
            problem = "nested too deeply" if depth > 50 else f"more than {MAX_VALUES} values"
            raise BenchError(problem, where=place)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)]
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, place)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str | int, ...], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise BenchError("a key must be a text", where=place)
            key = self._text(key_node.value, place)
            if key == _MERGE and key_node.style is None:
                merged = {**self._merged(value_node, path, depth), **merged}
                continue
            if key in found:
                raise BenchError(f"'{key}' is given twice", where=place)
            self.places[(*path, key)] = place  # the key's line, also for a value on the next one
            found[key] = self.value(value_node, (*path, key), depth + 1)
        return {**merged, **found}

    def _merged(self, node: yaml.Node, path: tuple[str | int, ...], depth: int) -> dict[str, Any]:
        """What `<<: *anchor` or `<<: [*one, *other]` adds; the first one wins."""
        parts = node.value if isinstance(node, yaml.SequenceNode) else [node]
        result: dict[str, Any] = {}
        for part in parts:
            value = self.value(part, path, depth + 1)
            if not isinstance(value, dict):
                raise BenchError("<< takes a mapping or a list of mappings", where=self._place(part))
            result = {**value, **result}
        return result

    def _scalar(self, node: yaml.ScalarNode, place: str) -> Any:
        text = self._text(node.value, place)
        if node.style is not None:  # quoted
            return text
        if text.lower() in _WORDS:
            return _WORDS[text.lower()]
        if _NUMBER.fullmatch(text):
            whole = _INTEGER.fullmatch(text)
            if len(text) > (_MAX_DIGITS if whole else 50) or not math.isfinite(float(text)):
                raise BenchError(f"a number too large: {text[:40]}", where=place)
            return int(text) if whole else float(text)
        return text

    def _text(self, text: str, place: str) -> str:
        if for_terminal(text) != text:
            raise BenchError(f"a control character: {for_terminal(text)[:80]}", where=place)
        return text

    def _place(self, node: yaml.Node) -> str:
        return f"{self.where}:{node.start_mark.line + 1}"
