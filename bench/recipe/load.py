"""Read a recipe: YAML, `extends`, overrides, checks. Every error names file and line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.errors import BenchError, did_you_mean, near
from bench.recipe import plain_yaml
from bench.recipe.problems import as_one, explain, place_of, short
from bench.recipe.schema import Path_, Recipe, _named, factor_target
from bench.recipe.workload import Workload
from bench.shipped import RECIPES, find_recipe

#: Recipes in a chain of `extends`.
MAX_EXTENDS = 20


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where each of its values was written."""

    recipe: Recipe
    path: Path
    places: Mapping[Path_, str]

    def place(self, *path: str | int) -> str:
        """`file:line` of a value, or of the nearest thing around it."""
        return place_of(path, self.places, self.path)


# -- reading -----------------------------------------------------------------------------------------------------


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings are merged key by key; anything else of `above` replaces what is below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def read_recipe(file: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], plain_yaml.Places]:
    """A recipe file and what it extends, merged, with the place of every value."""
    resolved = Path(os.path.realpath(file))
    if resolved in chain or len(chain) >= MAX_EXTENDS:
        raise BenchError("a recipe extends itself, or too many others", where=str(file))
    if not os.path.exists(file):
        hint = (
            near(file.name, (one.stem for one in RECIPES.glob("*.yaml")))
            or "bench list recipes shows what is there"
        )
        raise BenchError("recipe not found", where=str(file), hint=hint)
    content, places = plain_yaml.parse(plain_yaml.text_of(file), str(file))
    if not isinstance(content, dict):
        raise BenchError("a recipe is a mapping with name, workload and arms", where=str(file))
    parent = content.pop("extends", None)
    if parent is None:
        return content, places
    if not isinstance(parent, str) or not parent:
        raise BenchError("extends is the path of one recipe", where=places["extends",])
    parent_file = file.parent / parent
    if not os.path.exists(parent_file):
        raise BenchError(f"extends {parent[:80]}, and that file does not exist", where=places["extends",])
    below, below_places = read_recipe(parent_file, (*chain, resolved))
    return _merge(below, content), {**below_places, **places}


def apply_override(content: dict[str, Any], places: plain_yaml.Places, override: str) -> None:
    """Set a value of a recipe in place.

    Args:
        content: The recipe as its file holds it.
        places: Where its values stand; the new one stands on the command line.
        override: `a.b=value`, the value read as YAML. A list index may be part of the key
            (`arms.0.options.compile=true`).

    Raises:
        BenchError: It has another form, or a key leads nowhere.
    """
    key, equals, text = override.partition("=")
    where = f"--set {override}"
    if not equals or not key:
        raise BenchError("expected key=value", where=where, hint="for example --set measure.rounds=3")
    value, _ = plain_yaml.parse(text, where)
    parts: list[str | int] = [
        int(part) if part.isdecimal() and len(part) < 9 else part for part in key.split(".")
    ]
    target: Any = content
    for index, part in enumerate(parts):
        if isinstance(target, list) and not (isinstance(part, int) and part < len(target)):
            raise BenchError(f"no item '{part}' in this list of {len(target)}", where=where)
        if not isinstance(target, dict | list):
            raise BenchError(f"'{parts[index - 1]}' has nothing below it to set", where=where)
        name: Any = str(part) if isinstance(target, dict) else part
        if index == len(parts) - 1:
            target[name] = value
        else:
            target[name] = target.get(name, {}) if isinstance(target, dict) else _named(target[name])
            target = target[name]
    places[tuple(parts)] = where


# -- checking ----------------------------------------------------------------------------------------------------


def validate_workload(values: dict[str, Any], where: str) -> Workload:
    """A workload with one arm's levels applied; an unfit level is an error at `where`."""
    try:
        return Workload.model_validate(values)
    except ValidationError as error:
        raise explain(error, Workload, {}, Path(where)) from None


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, merge and validate a recipe. Raises BenchError with every problem and its place."""
    path = find_recipe(path)
    return checked(*read_recipe(path), path, overrides)


def checked(
    content: dict[str, Any], places: plain_yaml.Places, path: Path, overrides: Sequence[str] = ()
) -> LoadedRecipe:
    """A recipe of its content, in which the overrides are set. Raises BenchError as `load_recipe`."""
    for override in overrides:
        apply_override(content, places, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise explain(error, Recipe, places, path) from None
    loaded = LoadedRecipe(recipe, path, places)
    check_names(loaded)
    return loaded


def check_names(loaded: LoadedRecipe) -> None:
    """Names fit each other. Raises BenchError with all that do not."""
    if wrong := list(_wrong_names(loaded)):
        raise as_one(wrong, loaded.path)


def _wrong_names(loaded: LoadedRecipe) -> Iterator[BenchError]:
    """Arms, factors and the patterns of `baseline` and `exclude` name only what the recipe has."""
    recipe = loaded.recipe
    for factor in recipe.factors:
        try:
            factor_target(factor)
        except BenchError as error:
            yield BenchError(error.message, where=loaded.place("factors", factor), hint=error.hint)
    labels = [spec.name for spec in recipe.arms]
    for index, label in enumerate(labels):
        if label in labels[:index]:
            yield BenchError(
                f"two arms are called '{label}'",
                where=loaded.place("arms", index),
                hint="give one a label of its own",
            )
    named = [index for index, spec in enumerate(recipe.arms) if spec.model is not None]
    if named and "model" in recipe.factors:
        yield BenchError(
            "an arm with a model of its own and the factor model exclude each other",
            where=loaded.place("arms", named[0], "model"),
        )
    if not recipe.workload.model and "model" not in recipe.factors and len(named) < len(recipe.arms):
        yield BenchError(
            "'workload.model' is missing",
            where=loaded.place("workload"),
            hint="or give every arm a model of its own",
        )
    names = {*labels, *(spec.codebase for spec in recipe.arms)}
    yield from _wrong_pattern(loaded, recipe.baseline, ("baseline",), names)
    for index, pattern in enumerate(recipe.exclude):
        yield from _wrong_pattern(loaded, pattern, ("exclude", index), names)


def _wrong_pattern(
    loaded: LoadedRecipe, pattern: Mapping[str, Any], place: tuple[str | int, ...], labels: set[str]
) -> Iterator[BenchError]:
    """A pattern (of `exclude` or `baseline`) names only factors, levels and codebases of this recipe."""
    factors = loaded.recipe.factors
    for key, value in pattern.items():
        where = loaded.place(*place, key)
        if key == "codebase":
            if not isinstance(value, str) or value not in labels:
                yield BenchError(f"unknown arm '{value}'", where=where, hint=did_you_mean(str(value), labels))
        elif key not in factors:
            yield BenchError(
                f"'{key}' is not a factor of this recipe",
                where=where,
                hint=did_you_mean(key, [*factors, "codebase"]),
            )
        elif value not in factors[key]:
            levels = ", ".join(map(short, factors[key]))
            yield BenchError(f"{short(value)} is not a level of {key}", where=where, hint=f"known: {levels}")
