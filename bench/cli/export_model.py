"""`bench export-model`: a model of a codebase as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import NONE, Adapters, Quiet, examples, say
from bench.errors import BenchError
from bench.measure.export_model import export_model as write_model
from bench.measure.progress import listener
from bench.recipe.codebases import find_codebases
from bench.recipe.compose import Asked, composed, sides_of
from bench.recipe.load import checked
from bench.recipe.plan import make_plan

app = typer.Typer()


@app.command(
    epilog=examples(
        "bench export-model native:retinanet_r50_fpn@run.npz -o model.onnx --size 640",
        "bench export-model torchvision:fasterrcnn_resnet50_fpn_v2@weights.pth -o model.onnx",
    )
)
def export_model(
    arm: Annotated[
        str, typer.Argument(metavar="ARM", help="CODEBASE:MODEL or CODEBASE:MODEL@WEIGHTS, as in bench vs.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("model.onnx"),
    size: Annotated[
        str, typer.Option("--size", help="Size of the images: 640, or 480x640 (height, width).")
    ] = "640",
    data: Annotated[
        str, typer.Option("--data", help="Data set whose classes the model has, as in bench vs.")
    ] = "shapes",
    quiet: Quiet = False,
    adapters: Adapters = NONE,
) -> None:
    """Write a model with its post-processing as an ONNX file, which `bench vs onnx:model.onnx` measures."""
    if output.is_dir() or not output.parent.is_dir():
        raise BenchError(
            "no place for a file", where=str(output), hint="-o model.onnx, in a folder that exists"
        )
    codebases = find_codebases(adapters)
    content = composed(Asked((arm,), data, images=2), codebases)
    sides = sides_of(size)
    content["workload"]["input"]["size"] = [sides[0], sides[-1]]
    loaded = checked(content, {}, Path(arm))
    plan = make_plan(loaded, codebases)
    with listener(plan, quiet=quiet) as shown:
        write_model(loaded, plan, codebases, output, shown)
    say(output)
