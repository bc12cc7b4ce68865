"""What the exports of torch codebases to ONNX share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def image_size(workload: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of the images of a graph."""
    size = workload["input"]["size"]
    if isinstance(size, Mapping):
        raise ValueError("a graph has images of one size: --size 640 or 480x640, not a short and a long side")
    return int(size[0]), int(size[1])


def mark(path: str, classes: Sequence[str], decoder: str = "bench", input: str = "imagenet") -> None:
    """Note in the file's metadata how it is fed and read, and its classes: the adapter of ONNX files looks there."""
    import onnx

    model = onnx.load(path)
    told = {"bench.decoder": decoder, "bench.input": input, "names": "\n".join(classes)}
    onnx.helper.set_model_props(model, told)
    onnx.save(model, path)
