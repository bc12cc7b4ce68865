"""Read a recipe: YAML, `extends`, overrides, checks. Every error names file and line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bench.errors import BenchError, did_you_mean
from bench.recipe.schema import Path_, Recipe, _named, factor_target, level_text, models_in
from bench.recipe.workload import Workload
from bench.shipped import find_recipe


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where each of its values was written."""

    recipe: Recipe
    path: Path
    places: Mapping[Path_, str]

    def place(self, *path: str | int) -> str:
        """`file:line` of a value, or of the nearest thing around it."""
        return place_of(path, self.places, self.path)


def place_of(path: Sequence[str | int], places: Mapping[Path_, str], file: Path) -> str:
    for end in range(len(path), 0, -1):
        if tuple(path[:end]) in places:
            return places[tuple(path[:end])]
    return str(file)


# -- YAML with positions -----------------------------------------------------------------------------------------


def _walk(node: yaml.Node, file: Path, path: Path_ = ()) -> Iterator[tuple[Path_, str]]:
    yield path, f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            yield from _walk(value, file, here)
            yield (
                here,
                f"{file}:{key.start_mark.line + 1}",
            )  # the key's line, also for a value on the next one
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _walk(item, file, (*path, index))


def _refuse_duplicate_keys(node: yaml.Node, file: Path) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise BenchError(f"'{key.value}' is given twice", where=f"{file}:{key.start_mark.line + 1}")
            seen.add(key.value)
            _refuse_duplicate_keys(value, file)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicate_keys(item, file)


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else of `above` replaces what is below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def read_yaml(file: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Path_, str]]:
    """A recipe file and what it extends, merged, with the place of every value."""
    if file.resolve() in chain:
        raise BenchError("a recipe extends itself", where=str(file))
    try:
        loader = yaml.SafeLoader(file.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _refuse_duplicate_keys(node, file)
        # Constructing resolves anchors and merge keys in the node, so that _walk sees them too.
        content = loader.construct_document(node) if node is not None else None
    except FileNotFoundError:
        raise BenchError(
            "recipe not found", where=str(file), hint="bench list recipes shows what is there"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read: {error}", where=str(file)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        raise BenchError(f"not valid YAML: {getattr(error, 'problem', error)}", where=where) from None
    except RecursionError:
        raise BenchError("nested too deeply", where=str(file)) from None
    if not isinstance(content, dict):
        raise BenchError("a recipe is a mapping with name, workload and arms", where=str(file))
    assert node is not None  # it has content
    places = dict(_walk(node, file))
    parent = content.pop("extends", None)
    if parent is None:
        return content, places
    if not isinstance(parent, str):
        raise BenchError("extends is the path of one recipe", where=places[("extends",)])
    parent_file = file.parent / parent
    if not parent_file.exists():
        raise BenchError(f"extends {parent}, and that file does not exist", where=places[("extends",)])
    below, below_places = read_yaml(parent_file, (*chain, file.resolve()))
    return _merge(below, content), {**below_places, **places}


def _apply_override(content: dict[str, Any], places: dict[Path_, str], override: str) -> None:
    """`a.b=value`, the value read as YAML. A list index may be part of the key (`arms.0.options.compile=true`)."""
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    if not equals or not key:
        raise BenchError("expected key=value", where=where, hint="for example --set measure.rounds=3")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BenchError(f"the value is not valid YAML: {error}", where=where) from None
    parts: list[str | int] = [int(part) if part.isdigit() else part for part in key.split(".")]
    target: Any = content
    for part in parts[:-1]:
        if isinstance(target, list) and isinstance(part, int) and part < len(target):
            if isinstance(target[part], str):
                target[part] = _named(target[part])
            target = target[part]
        elif isinstance(target, dict):
            target = target.setdefault(part, {})
        else:
            target = None
        if not isinstance(target, dict | list):
            raise BenchError(f"'{part}' has nothing below it to set", where=where)
    last = parts[-1]
    if isinstance(target, list):
        if not isinstance(last, int) or last >= len(target):
            raise BenchError(f"no item '{last}' in this list of {len(target)}", where=where)
        target[last] = value
    else:
        target[str(last)] = value
    places[tuple(parts)] = where


# -- Errors that help --------------------------------------------------------------------------------------------


def _fields_at(model: type[BaseModel], path: Sequence[str | int]) -> set[str]:
    """Names allowed at a place of a model."""
    for depth, part in enumerate(path):
        field = model.model_fields.get(str(part))
        if field is not None:
            inner = list(models_in(field.annotation))
            if not inner:
                return set()
            return set().union(*(_fields_at(one, path[depth + 1 :]) for one in inner))
    return set(model.model_fields)


def _explain(error: ValidationError, places: Mapping[Path_, str], file: Path) -> BenchError:
    """The first problem of a validation, as one message."""
    first = error.errors()[0]
    path = list(first["loc"])
    where = place_of(path, places, file)
    name = ".".join(str(part) for part in path)
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(str(path[-1]), _fields_at(Recipe, path[:-1]))
        return BenchError(f"unknown key '{name}'", where=where, hint=hint)
    if first["type"] == "missing":
        return BenchError(f"'{name}' is missing", where=where)
    if first["type"] == "literal_error":
        given = str(first["input"])
        expected = first.get("ctx", {}).get("expected", "")
        near = did_you_mean(given, [word.strip(" '") for word in expected.replace(" or ", ",").split(",")])
        return BenchError(f"{name}: unknown value '{given}'", where=where, hint=near)
    return BenchError(f"{name}: {first['msg']} (given: {first['input']!r})", where=where)


def validate_workload(values: dict[str, Any], where: str) -> Workload:
    """A workload with one arm's levels applied; an unfit level is an error at `where`."""
    try:
        return Workload.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BenchError(f"{name}: {first['msg']} (given: {first['input']!r})", where=where) from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, merge and validate a recipe. Raises BenchError with the place of the first problem."""
    path = find_recipe(path)
    content, places = read_yaml(path)
    for override in overrides:
        _apply_override(content, places, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise _explain(error, places, path) from None
    loaded = LoadedRecipe(recipe, path, places)
    check_names(loaded)
    return loaded


def check_names(loaded: LoadedRecipe) -> None:
    """Arms, factors and the patterns of `baseline` and `exclude` name only what the recipe has. Raises BenchError."""
    recipe = loaded.recipe
    for factor in recipe.factors:
        try:
            factor_target(factor)
        except BenchError as error:
            raise BenchError(error.message, where=loaded.place("factors", factor), hint=error.hint) from None
    labels = [spec.name for spec in recipe.arms]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            raise BenchError(
                f"two arms are called '{label}'",
                where=loaded.place("arms", index),
                hint="give one a label of its own",
            )
    names = {*labels, *(spec.codebase for spec in recipe.arms)}
    _check_pattern(loaded, recipe.baseline, ("baseline",), names)
    for index, pattern in enumerate(recipe.exclude):
        _check_pattern(loaded, pattern, ("exclude", index), names)


def _check_pattern(
    loaded: LoadedRecipe, pattern: Mapping[str, Any], place: tuple[str | int, ...], labels: set[str]
) -> None:
    """A pattern (of `exclude` or `baseline`) names only factors, levels and codebases of this recipe."""
    factors = loaded.recipe.factors
    for key, value in pattern.items():
        where = loaded.place(*place, key)
        if key == "codebase":
            if value not in labels:
                raise BenchError(f"unknown arm '{value}'", where=where, hint=did_you_mean(str(value), labels))
        elif key not in factors:
            raise BenchError(
                f"'{key}' is not a factor of this recipe",
                where=where,
                hint=did_you_mean(key, [*factors, "codebase"]),
            )
        elif value not in factors[key]:
            raise BenchError(
                f"'{level_text(value)}' is not a level of {key}",
                where=where,
                hint=did_you_mean(level_text(value), map(level_text, factors[key])),
            )
