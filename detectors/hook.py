"""A change of the user's own to training images: ``augment.hook: FILE.py:NAME``.

It is called as albumentations are, and returns the same four by name:

    image: uint8 [h, w, 3], RGB. bboxes: float64 [N, 4], x1, y1, x2, y2 in pixels. objects: [0, 1, …, N - 1]; those that
    come back are kept, in the order of ``bboxes``. masks: N of uint8 [h, w], of all objects, if the model learns them.

Before each call its ``set_random_seed`` is called, if it has one, with a number that follows from the seed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from detectors.transforms import Sample


@cache
def load(place: str) -> Callable[..., Mapping[str, Any]]:
    """What ``FILE.py:NAME`` names; each process that loads images runs the file once.

    Raises:
        ValueError: when it is not there, or nothing that can be called.
    """
    file, _, name = place.rpartition(":")
    if not Path(file).is_file():
        raise ValueError(f"no such hook: {place}; expected FILE.py:NAME")
    spec = importlib.util.spec_from_file_location(f"detectors_hook_{Path(file).stem}", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{file} is not a file of Python")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"{file} cannot be run: {told(error)}") from error
    if not callable(found := getattr(module, name, None)):
        raise ValueError(f"{file} has no {name} that can be called")
    return found


def told(error: Exception) -> str:
    """The error in one line, with the line of the code that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})" if trace else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


def changed(sample: Sample, place: str, random: np.random.Generator) -> Sample:
    """A sample after the hook.

    Raises:
        ValueError: when the hook fails, or returns what no image is.
    """
    hook = load(place)
    given: dict[str, Any] = {
        "image": sample.image,
        "bboxes": sample.boxes,
        "objects": list(range(len(sample.boxes))),
    }
    if sample.masks is not None and len(sample.masks):
        given["masks"] = list(sample.masks)
    seed = int(random.integers(2**31))
    try:
        if hasattr(hook, "set_random_seed"):
            hook.set_random_seed(seed)
        made = hook(**given)
        kept = np.array(made["objects"], np.int64).reshape(-1)
        image = np.ascontiguousarray(made["image"])
        boxes = np.array(made["bboxes"], np.float64).reshape(len(kept), 4)
        masks = sample.masks
        if masks is not None:
            masks = np.array([made["masks"][one] for one in kept], np.uint8).reshape(
                len(kept), *image.shape[:2]
            )
        labels = sample.labels[kept]
    except Exception as error:
        raise ValueError(f"{place} fails: {told(error)}") from error
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"{place} returns an image {image.dtype} {list(image.shape)}, expected uint8 [h, w, 3]"
        )
    return sample._replace(image=image, boxes=boxes, labels=labels, masks=masks)
