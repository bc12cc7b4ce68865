"""`bench import`: training logs of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench import importers
from bench.cli.options import AsJson, examples, print_json
from bench.errors import BenchError
from bench.reference.model_zoo import transcribe
from bench.reference.published import PUBLISHED, ZOO

app = typer.Typer()


@app.command(
    "import", epilog=examples("bench import auto results/published/solov2_reference_log/excerpt.log.txt")
)
def import_(
    log_format: Annotated[str, typer.Argument(metavar="FORMAT", help="auto, or the name of a format.")],
    files: Annotated[list[Path], typer.Argument(help="The log, or its parts if it was rotated.")],
    from_iter: Annotated[int | None, typer.Option(help="First iteration of the rate.")] = None,
    to_iter: Annotated[int | None, typer.Option(help="Last iteration of the rate.")] = None,
    as_json: AsJson = False,
) -> None:
    """Read a training log of another tool: rates, losses and evaluations."""
    if log_format == "model-zoo":
        if len(files) != 1:
            raise BenchError("model-zoo reads one document")
        written = [str(path) for path in transcribe(files[0], PUBLISHED / ZOO)]
        print_json(written) if as_json else typer.echo("\n".join(written))
        return
    result = importers.import_logs(log_format, files, from_iter=from_iter, to_iter=to_iter)
    print_json(importers.to_json(result)) if as_json else typer.echo(importers.render(result))
