"""The log formats, one module each: a `Format` and, in its docstring, a line of it and the file that writes it."""

from bench.importers.format import Format
from bench.importers.formats import (
    detectors,
    detectron,
    detectron2,
    detectron2_json,
    detr,
    maskrcnn_benchmark,
    mmdet2,
    mmdet2_json,
    mmengine,
    mmengine_json,
    paddledetection2020,
    ppdet,
    solov2_own,
    torchvision,
    ultralytics,
    yolox,
)

_MODULES = (
    mmengine,
    mmdet2,
    ppdet,
    paddledetection2020,
    detectron2,
    torchvision,
    detectors,
    solov2_own,
    maskrcnn_benchmark,
    yolox,
    detectron,
    detr,
    ultralytics,
    mmdet2_json,
    mmengine_json,
    detectron2_json,
)


def known_formats() -> dict[str, Format]:
    """Formats by name, the most common first."""
    return {module.FORMAT.name: module.FORMAT for module in _MODULES}
