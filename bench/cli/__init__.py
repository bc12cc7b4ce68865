"""The command line: one file per group of commands. A command's module is imported when the command is used."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from bench import __version__
from bench.cli.options import closed_pipe_is_fine
from bench.errors import BenchError, ExitCode
from bench.measure import interrupts

#: Each command, in the order of the help, and the module that holds it.
COMMANDS = {
    "run": "run",
    "audit": "run",
    "report": "report",
    "compare": "report",
    "check": "check",
    "calibrate": "check",
    "history": "check",
    "import": "logs",
    "compare-logs": "logs",
    "eval": "report",
    "data": "data",
    "list": "listing",
    "env": "env",
    "doctor": "doctor",
}


class _Lazy(TyperGroup):
    """Commands that are imported when they are asked for: `bench list` needs no scipy."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        commands = importlib.import_module(f"bench.cli.{COMMANDS[cmd_name]}").app
        group = typer.main.get_group(commands)
        return group if commands.info.name == cmd_name else group.commands[cmd_name]


app = typer.Typer(
    name="bench",
    cls=_Lazy,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare object-detection codebases on the same work.\n\n"
    "Start with `bench run recipes/quickstart.yaml`, then `bench report`.\n\n"
    "Exit codes: 0 success, 1 regression, 2 bad input, 3 inconclusive, 4 an arm failed, 70 a fault of bench, "
    "130 interrupted.",
)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"bench {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before a command."""


def main() -> NoReturn:
    """The console script: errors meant for the user become one message and an exit code."""
    try:
        with interrupts.handled():
            app()
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit as end:
        if isinstance(
            end.__context__, BrokenPipeError
        ):  # `bench list models | head`: typer would make it a 1
            sys.exit(ExitCode.SUCCESS)
        raise
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)
    except Exception:
        traceback.print_exc()
        print("error: this is a fault of bench: please report the lines above", file=sys.stderr)
        sys.exit(ExitCode.CRASH)
    finally:
        with closed_pipe_is_fine():
            pass
    sys.exit(ExitCode.SUCCESS)
