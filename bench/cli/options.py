"""Options that several commands share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

RESULTS = Path("results")

Recipe = Annotated[Path, typer.Argument(help="A recipe (recipes/*.yaml).")]
Results = Annotated[Path, typer.Option("--results", help="Where runs are kept.")]
Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapters", help="A folder with an adapter (or several) of your own. Repeatable."),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="key=value over the recipe: --set measure.rounds=3")
]


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")
