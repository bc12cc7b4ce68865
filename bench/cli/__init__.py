"""The command line: one file per group of commands. A command's module is imported when the command is used."""

from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from bench import __version__
from bench.cli.options import closed_pipe_is_fine
from bench.errors import BenchError, ExitCode
from bench.measure import interrupts
from bench.text_safety import for_terminal

#: Each command, in the order of the help: the module that holds it, and what it does.
COMMANDS = {
    "vs": ("vs", "Compare models by name, config or checkpoint, in one line."),
    "init": ("vs", "Ask what to compare, and write a commented recipe."),
    "run": ("run", "Measure every arm of a recipe."),
    "watch": (
        "watch",
        "Follow a run of another process: progress, ratios so far, and the outcome when it ends.",
    ),
    "audit": ("run", "Watch every arm for a few steps, and say whether they do equal work. Time nothing."),
    "report": ("report", "Write the report of a run: Markdown, figures and a static page."),
    "compare": ("report", "Print the ratio of two runs or of two arms."),
    "export-model": (
        "export_model",
        "Write a model with its post-processing as an ONNX file, which `bench vs onnx:model.onnx` measures.",
    ),
    "export": ("report", "Export the ratios of a run for other tools."),
    "check": ("check", "Fail if HEAD is slower than BASE. Exit codes: 0 pass, 1 regression, 3 inconclusive."),
    "calibrate": (
        "check",
        "Measure every arm against itself, and say what a check can detect on this machine.",
    ),
    "history": ("check", "Find lasting changes in the stored runs, per arm and machine."),
    "site": ("site", "Make a static site of many runs: latest reports, histories, changes."),
    "import": ("logs", "Read a training log of another tool: rates, losses and evaluations."),
    "compare-logs": ("logs", "Put training logs side by side: rates, memory, accuracy."),
    "eval": ("report", "Compute COCO AP and AR of detections, per class, and what the errors cost."),
    "data": ("data", "Check data sets, and sample those in COCO layout."),
    "list": ("listing", "List codebases, models, recipes or runs."),
    "env": ("env", "Create, list, check and remove environments of codebases."),
    "doctor": ("doctor", "Say what works on this machine, and how to get the rest."),
}


class _Lazy(TyperGroup):
    """Commands that are imported when they are used: `bench list` needs no scipy, and `bench --help` nothing."""

    _helping = False

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, does = COMMANDS[cmd_name]
        if self._helping:
            return TyperCommand(cmd_name, help=does)
        commands = importlib.import_module(f"bench.cli.{module}").app
        group = typer.main.get_group(commands)
        return group if commands.info.name == cmd_name else group.commands[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._helping = True
        super().format_help(ctx, formatter)
        self._helping = False


app = typer.Typer(
    name="bench",
    cls=_Lazy,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Compare object-detection codebases on the same work.\n\n"
    "Start with `bench run quickstart`, then `bench report`.\n\n"
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
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this; else the next file would be it
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a terminal of Latin-1 gets escapes, not a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with interrupts.handled():
            app()
    except BenchError as error:
        print(for_terminal(f"error: {error}"), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except SystemExit as end:
        if isinstance(
            end.__context__, BrokenPipeError
        ):  # `bench list models | head`: typer would make it a 1
            sys.exit(ExitCode.SUCCESS)
        if isinstance(end.__context__, typer.Abort):  # of a question; typer would make it a 1 too
            stopped = isinstance(end.__context__.__context__, KeyboardInterrupt)
            sys.exit(ExitCode.INTERRUPTED if stopped else ExitCode.BAD_INPUT)
        raise
    except OSError as error:
        told = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        print(for_terminal(f"error: {told}"), file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT)
    except Exception as error:
        if isinstance(error, MemoryError) or "failed to map segment" in str(error):
            print(
                f"error: out of memory: {for_terminal(str(error))}\n  raise the limit (ulimit -v)",
                file=sys.stderr,
            )
            sys.exit(ExitCode.BAD_INPUT)
        print(for_terminal(traceback.format_exc()), file=sys.stderr)
        print("error: this is a fault of bench: please report the lines above", file=sys.stderr)
        sys.exit(ExitCode.CRASH)
    finally:
        with closed_pipe_is_fine():
            pass
    sys.exit(ExitCode.SUCCESS)
