"""`bench data`: check and sample data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.cli.options import AsJson, examples, print_json, say
from bench.errors import BenchError, ExitCode
from bench.inputs import folders
from bench.report.text import counted

app = typer.Typer(name="data", no_args_is_help=True, help="Check data sets, and sample those in COCO layout.")


@app.command(
    "check",
    epilog=examples(
        "bench data check path/to/coco", "bench data check path/to/labels.json --images path/to/photos"
    ),
)
def data_check(
    data: Annotated[Path, typer.Argument(help="Folder of COCO, YOLO or Pascal VOC, or a COCO file.")],
    images: Annotated[Path | None, typer.Option(help="Folder of the images of a COCO file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find broken images, wrong sizes, boxes outside an image, and empty classes; name odd kinds of images.

    Exit code 2 if anything but an empty class or an odd kind of image is found.
    """
    if images is None and data.is_file():
        raise BenchError(
            "a COCO file needs the folder of its images", where=str(data), hint="--images FOLDER"
        )
    found = folders.check(data) if images is None else folders.check_file(data, images)
    print_json(found.as_json()) if as_json else _print_checked(found)
    raise typer.Exit(ExitCode.SUCCESS if found.sound else ExitCode.BAD_INPUT)


@app.command("sample", epilog=examples("bench data sample coco coco-500 --images 500 --seed 1"))
def data_sample(
    source: Annotated[Path, typer.Argument(help="Folder in COCO layout.")],
    target: Annotated[Path, typer.Argument(help="Folder to make.")],
    images: Annotated[int, typer.Option(min=1, help="Number of images of each split.")],
    seed: Annotated[int, typer.Option(help="The same seed draws the same images.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Copy a random part of a data set. The same seed gives the same images."""
    splits = folders.sample(source, target, images, seed)
    if as_json:
        print_json(splits)
        return
    for split, counts in splits.items():
        say(f"{split}: {', '.join(f'{number} {name}' for name, number in counts.items())}")


def _print_checked(found: folders.Checked) -> None:
    for split, counts in found.splits.items():
        numbers = ", ".join(f"{value} {name}" for name, value in counts.items() if name != "classes")
        say(f"{split}: {numbers.replace('_', ' ')}, {len(counts['classes'])} classes")
    for problem in found.problems:
        say(f"{problem.split}: {problem.kind}: {problem.where}: {problem.text}")
    notes = sum(problem.kind in folders.NOTES for problem in found.problems)
    problems = len(found.problems) - notes
    say(f"{counted(problems, 'problem')}, {counted(notes, 'note')}")
