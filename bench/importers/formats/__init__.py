"""The log formats, a module for tools of one family: each a `Format`, and in the docstring lines of it and the file
that writes them."""

from bench.importers.format import Format
from bench.importers.formats import detectors, detectron, mm, paddle, torchvision, yolo

MODULES = (mm, paddle, detectron, torchvision, yolo, detectors)


def known_formats() -> dict[str, Format]:
    """Formats by name."""
    return {format.name: format for module in MODULES for format in module.FORMATS}
