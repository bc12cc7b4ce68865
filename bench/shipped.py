"""What stands beside the package in a checkout and inside it in a wheel: `adapters`, `detectors`, `recipes`.

These are data, found by path. As import names they belong to other distributions of PyPI.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
ROOT = _PACKAGE / "_shipped" if (_PACKAGE / "_shipped").is_dir() else _PACKAGE.parent
RECIPES = ROOT / "recipes"


def find_recipe(path: Path) -> Path:
    """The file of a recipe.

    Args:
        path: A file, or the name of a recipe that is shipped with bench (`quickstart`).

    Returns:
        The shipped file where no file is called so and a shipped recipe is; else `path`.
    """
    named = RECIPES / f"{path}.yaml"
    # os.path and not Path: a name that no file can have is no file, not an error
    return named if not os.path.isfile(path) and os.path.isfile(named) else path
