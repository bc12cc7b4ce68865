"""Options that several commands share."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from bench.text_safety import for_terminal

RESULTS = Path("results")
#: Default of an option that may be repeated; typer hands a list of its own to each command.
NONE: list[Any] = []

Recipe = Annotated[Path, typer.Argument(help="A file, or a name of `bench list recipes`.")]
Results = Annotated[Path, typer.Option("--results", help="Folder of the runs.")]
Adapters = Annotated[
    list[Path], typer.Option("--adapters", help="Folder of one adapter or of several. Repeatable.")
]
AllowVariables = Annotated[
    bool,
    typer.Option("--allow-variables", help="Let the recipe set any environment variable of its workers."),
]
Sources = Annotated[
    list[str],
    typer.Option("--source", help="CODEBASE=PATH: import the codebase from this checkout. Repeatable."),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Run the code that the recipe names: python, source, own models. Remembered."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]
Settings = Annotated[
    list[str], typer.Option("--set", help="Set a value of the recipe: --set measure.rounds=3. Repeatable.")
]


@contextlib.contextmanager
def closed_pipe_is_fine() -> Iterator[None]:
    """Print to a reader that may have gone: the command goes on, and its exit code is its own."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise  # else it is rich's way to say the same
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def reading_cache() -> Path | None:
    """The cache, for commands that only read: a user without a home folder has none, and needs none."""
    from bench.environments import cache_folder

    try:
        return cache_folder()
    except OSError:
        return None


def print_json(document: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=1, default=str) + "\n")


def say(text: object, *, error: bool = False) -> None:
    """Print text of files, records or logs, which a terminal must not obey.

    Args:
        text: What to print.
        error: Print to standard error: the text is no result.
    """
    print(for_terminal(str(text)), file=sys.stderr if error else sys.stdout)


def plain(text: object, style: str = "") -> Text:
    """The same for `rich`: text that is neither markup nor obeyed by a terminal."""
    return Text(for_terminal(str(text)), style=style)


def examples(*commands: str) -> str:
    """The end of a command's help: commands to try, one on a line."""
    return "Examples:\n\n" + "\n\n".join(f"$ {command}" for command in commands)
