"""Keys and passwords never reach a record: they are known by their name, by their shape, or by the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from bench.errors import BenchError

HIDDEN = "(hidden)"

_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|credential|api_?key|access_?key|private_?key|(^|_)(key|auth|pat)$",
    re.IGNORECASE,
)

#: Shapes of well-known keys.
_SHAPES = (
    r"\b(?:sk|pk|rk)[-_](?:[A-Za-z0-9]+[-_])*[A-Za-z0-9]{16,}",
    r"\b(?:hf|npm|glpat|nvapi|pypi|dckr_pat|gh[pousr]|github_pat|xox[abeprs])[-_][A-Za-z0-9_-]{16,}",
    r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    r"\bAIza[A-Za-z0-9_-]{30,}",
    r"\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}(?:\.[A-Za-z0-9_-]+)?",
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)",
    r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)",
    r"(?<=[Bb]earer )[A-Za-z0-9._~+/=-]{8,}",
    r"(?i:(?<=token=)|(?<=secret=)|(?<=password=)|(?<=passwd=)|(?<=api_key=)|(?<=apikey=)|(?<=access_key=))[^\s&'\"]+",
)
_KEY = re.compile("|".join(_SHAPES), re.DOTALL)

#: One word of letters and digits, as long as a key is; ids of GPUs, paths and libraries are none.
_ONE_WORD = re.compile(r"(?!GPU-|MIG-|/|\S*\.so\b)(?=\S*\d)(?=\S*[A-Za-z])[A-Za-z0-9+/=_.~-]{24,}")

#: Shorter values are words that stand anywhere.
_SHORTEST = 8


def is_secret(name: str) -> bool:
    """Whether a variable or field of this name holds a key."""
    return bool(_SECRET_NAME.search(name))


def hidden(text: str, own: Sequence[str] | None = None) -> str:
    """A text without keys and without ``own``, the secret values of this process (`own_values`)."""
    for value in own_values() if own is None else own:
        text = text.replace(value, HIDDEN)
    return _KEY.sub(HIDDEN, text)


def hidden_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables, the values of those that are or look like keys hidden."""
    return {
        name: HIDDEN if is_secret(name) or _ONE_WORD.fullmatch(value) else hidden(value)
        for name, value in variables.items()
    }


def restored(recipe: Any) -> Any:
    """The `variables` of a recorded recipe with the hidden values as this process's environment has them.

    Raises:
        BenchError: the environment lacks one.
    """
    if isinstance(recipe, list):
        return [restored(one) for one in recipe]
    if not isinstance(recipe, Mapping):
        return recipe
    found = {key: restored(value) for key, value in recipe.items()}
    for name, value in (found.get("variables") or {}).items():
        if value == HIDDEN:
            if name not in os.environ:
                raise BenchError(
                    f"the run was measured with {name}, which no record holds", hint=f"set {name}"
                )
            found["variables"][name] = os.environ[name]
    return found


def own_values() -> list[str]:
    """Values of this process's secret variables, longest first, so that no part of one stays."""
    values = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)
