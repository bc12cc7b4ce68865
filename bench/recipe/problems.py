"""What a validation found wrong, in the words of whoever wrote the file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bench.errors import BenchError, did_you_mean
from bench.recipe.schema import level_text, models_in

#: Problems of one file that are listed; the rest is counted.
MAX_LISTED = 20

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "bool": "on or off",
    "dict": "a mapping",
    "model": "a mapping",
    "list": "a list",
    "tuple": "a list",
}
_LIMITS = {
    "greater_than_equal": ("ge", "{} or more"),
    "greater_than": ("gt", "more than {}"),
    "less_than_equal": ("le", "at most {}"),
    "less_than": ("lt", "less than {}"),
    "too_short": ("min_length", "{} or more items long"),
    "too_long": ("max_length", "at most {} items long"),
    "string_too_short": ("min_length", "{} or more characters long"),
    "string_too_long": ("max_length", "at most {} characters long"),
}
_EXPECTED = {
    "finite_number": "a finite number",
    "string_pattern_mismatch": "letters, digits, '.', '_' and '-', the first one a letter or a digit",
    "string_unicode": "a text",
}
#: Fields with several forms: pydantic tells what each form lacks, we say what there is.
_FORMS = {
    "size": "[height, width], each from 32 to 4096, or {short: …, long: …}",
    "images": "a whole number from 1, or with annotations the folder of their files",
}


def place_of(path: Sequence[str | int], places: Mapping[tuple[str | int, ...], str], file: Path) -> str:
    """`file:line` of a value, or of the nearest thing around it."""
    for end in range(len(path), 0, -1):
        if tuple(path[:end]) in places:
            return places[tuple(path[:end])]
    return str(file)


def explain(
    error: ValidationError, model: type[BaseModel], places: Mapping[tuple[str | int, ...], str], file: Path
) -> BenchError:
    """All problems of a validation as one error, each with its place."""
    return as_one(_problems(error, model, places, file), file)


def as_one(problems: Iterable[BenchError], file: Path) -> BenchError:
    """Problems of one file as one error: the problem itself where there is one."""
    by_text = {str(problem): problem for problem in problems}
    found = list(by_text)
    if len(found) == 1:
        return by_text[found[0]]
    more = [f"and {len(found) - MAX_LISTED} more"] if len(found) > MAX_LISTED else []
    listed = "\n".join(f"  {line}" for one in [*found[:MAX_LISTED], *more] for line in one.split("\n"))
    return BenchError(f"{len(found)} problems\n{listed}", where=str(file))


def _problems(
    error: ValidationError, model: type[BaseModel], places: Mapping[tuple[str | int, ...], str], file: Path
) -> Iterator[BenchError]:
    for one in error.errors(include_url=False):
        message, path, hint = _in_words(one, model)
        yield BenchError(message, where=place_of(path, places, file), hint=hint)


def _in_words(error: Mapping[str, Any], model: type[BaseModel]) -> tuple[str, list[str | int], str | None]:
    """Message, path and hint of one problem."""
    path, kind, context = list(error["loc"]), error["type"], error.get("ctx", {})
    form = next((index for index, part in enumerate(path) if part in _FORMS), len(path))
    if form + 1 < len(path):
        name = ".".join(map(str, path[: form + 1]))
        return f"{name} must be {_FORMS[str(path[form])]}", path[: form + 1], None
    name = ".".join(map(str, path)) or "it"
    given = short(error["input"])
    if kind == "value_error":
        return f"{name}: {error['msg'].removeprefix('Value error, ')}", path, None
    if kind == "extra_forbidden":
        return f"unknown key '{name}'", path, did_you_mean(str(path[-1]), fields_at(model, path[:-1]))
    if kind == "missing":
        return f"'{name}' is missing", path, None
    if kind == "literal_error":
        known = [word.strip(" '") for word in context["expected"].replace(" or ", ",").split(",")]
        meant = "cuda" if error["input"] == "gpu" else str(error["input"])[:80]
        return f"{name}: unknown value {given}", path, did_you_mean(meant, known)
    if kind in _LIMITS:
        key, text = _LIMITS[kind]
        return f"{name} must be {text.format(context[key])}, got {given}", path, None
    expected = _EXPECTED.get(kind) or _KINDS.get(kind.split("_")[0])
    if expected is not None:
        plain = kind == "string_type" and isinstance(error["input"], bool | int | float)
        return f"{name} must be {expected}, got {given}", path, "write it in quotes" if plain else None
    return f"{name}: {error['msg']}, got {given}", path, None


def short(value: Any) -> str:
    """A value as it is shown in a message."""
    text = level_text(value) if isinstance(value, bool) else "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def fields_at(model: type[BaseModel], path: Sequence[str | int]) -> set[str]:
    """Names allowed at a place of a model."""
    for depth, part in enumerate(path):
        field = model.model_fields.get(str(part))
        if field is not None:
            inner = list(models_in(field.annotation))
            if not inner:
                return set()
            return set().union(*(fields_at(one, path[depth + 1 :]) for one in inner))
    return set(model.model_fields)
