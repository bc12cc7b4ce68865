"""Weights of whole detectors, of ours or another codebase, into a model: what fits is taken, the rest is reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from detectors.checkpoint import LoadReport, is_counter
from detectors.coco_classes import COCO_IDS
from detectors.layers import FrozenBatchNorm2d
from detectors.names import detectron2, mmdet, paddledet, torchvision
from detectors.registry import build
from detectors.weight_files import read_checkpoint

CODEBASES: dict[str, ModuleType] = {
    "torchvision": torchvision,
    "mmdet": mmdet,
    "detectron2": detectron2,
    "paddledet": paddledet,
}
#: Where in a file a detector may be.
PREFIXES = ("", "module.", "model.")
#: Files of torchvision whose frozen normalisation has an epsilon of 0 (``overwrite_eps``).
WITHOUT_EPSILON = (
    "fasterrcnn_resnet50_fpn_coco-258fb6c6",
    "maskrcnn_resnet50_fpn_coco-bf2d0c1e",
    "retinanet_resnet50_fpn_coco-eeacb38b",
)
Shapes = dict[str, tuple[int, ...]]


class Layout(NamedTuple):
    """A codebase's names for a model, and where in the file they begin."""

    codebase: str
    prefix: str
    found: dict[str, str]  # the codebase's name → the name in the file


def load_weights(
    model: nn.Module,
    checkpoint: str | Path | Mapping[str, Tensor],
    *,
    classes: Sequence[int] | None = None,
    epsilon: float | None = None,
) -> LoadReport:
    """Copy the weights of a detector into a model of ``build`` as far as they fit.

    Another number of classes is no error: the layers of classes keep their values and are reported.

    Args:
        model: made by ``build``.
        checkpoint: a file (see ``read_checkpoint``) or its contents, in our names or in those of torchvision,
            mmdetection, detectron2 or PaddleDetection.
        classes: for each class of the model the number of it in the checkpoint, both from 0. By default they are the
            same; a model of COCO's 80 classes takes them from one that has a class for each of COCO's 90 ids.
        epsilon: of the checkpoint's frozen normalisation, where it is not the model's. It goes into the variances.

    Returns:
        What was taken and what was not.

    Raises:
        ValueError: when the file has no weight of the model, or the model was not made by ``build``.
    """
    state = dict(checkpoint) if isinstance(checkpoint, Mapping) else read_checkpoint(checkpoint)
    if epsilon is None and not isinstance(checkpoint, Mapping) and Path(checkpoint).stem in WITHOUT_EPSILON:
        epsilon = 0.0
    own = {name: value for name, value in model.state_dict().items() if not is_counter(name)}
    if sum(name in state for name in own) > len(own) / 2:
        layout, given = "detectors", {name: state[name] for name in own if name in state}
        unexpected = set(state) - set(own)
    else:
        layout, given, unexpected = _translated(model, own, state, classes)
    matched = [name for name, value in given.items() if value.shape == own[name].shape]
    with torch.no_grad():
        for name in matched:
            own[name].copy_(given[name])
        if epsilon is not None:
            _fold(model, matched, epsilon)
    return LoadReport(
        layout,
        tuple(matched),
        missing=tuple(name for name in own if name not in given),
        unexpected=tuple(sorted(name for name in unexpected if not is_counter(name))),
        other_shape=tuple(name for name in given if name not in set(matched)),
    )


def _translated(
    model: nn.Module, own: Mapping[str, Tensor], state: Mapping[str, Tensor], classes: Sequence[int] | None
) -> tuple[str, dict[str, Tensor], set[str]]:
    """The layout, the weights in our names and shapes, and the names that nothing was made of."""
    name, settings = built_as(model)
    shapes = {key: tuple(value.shape) for key, value in own.items()}
    layout = _best_layout(name, shapes, state)
    count = settings.get("num_classes", 80)
    theirs = _classes_of(layout, name, settings, shapes, state)
    ours = _inverse(layout, name, shapes if theirs == count else shapes_of(name, settings, theirs), state)
    if classes is None and count == len(COCO_IDS) and theirs in (90, 91):
        classes = [one - 91 + theirs for one in COCO_IDS]
    if theirs != count and classes is not None:
        ours = {key: _of_classes(value, shapes[key], theirs, classes) for key, value in ours.items()}
    used = {layout.prefix + key for key in layout.found.values()}
    return layout.codebase, ours, set(state) - used


def built_as(model: nn.Module) -> tuple[str, dict[str, Any]]:
    """The name and settings that ``build`` made a model of. Raises ValueError for another model."""
    found = getattr(model, "built_as", None)
    if found is None:
        raise ValueError("weights of other codebases are for models made by detectors.build")
    return found


def shapes_of(name: str, settings: Mapping[str, Any], classes: int) -> Shapes:
    """Of all weights of a model with so many classes, which is not made."""
    with torch.device("meta"):
        model = build(name, **{**settings, "num_classes": classes})
    return {key: tuple(value.shape) for key, value in model.state_dict().items() if not is_counter(key)}


def _converted(codebase: str, name: str, shapes: Shapes) -> Shapes:
    """The codebase's names and shapes. Nothing is in memory but a zero for each."""
    zeros = {key: np.broadcast_to(np.int8(0), shape) for key, shape in shapes.items()}
    return {key: np.shape(value) for key, value in CODEBASES[codebase].convert(name, zeros).items()}


def _best_layout(name: str, shapes: Shapes, state: Mapping[str, Tensor]) -> Layout:
    """The codebase whose names most of a file's are."""
    best = Layout("", "", {})
    for codebase, module in CODEBASES.items():
        if not module.supports(name):
            continue
        older = getattr(module, "older", str)
        try:
            names = list(_converted(codebase, name, shapes))
        except KeyError:  # with these settings the model has layers that this codebase's does not have
            continue
        for prefix in PREFIXES:
            found = {}
            for key in names:
                there = [one for one in (key, older(key)) if prefix + one in state]
                found |= {key: there[0]} if there else {}
            if len(found) > len(best.found):
                best = Layout(codebase, prefix, found)
    if not best.found:
        raise ValueError(f"no weight of {name} found among {', '.join(list(state)[:5])}, …")
    return best


def _classes_of(
    layout: Layout, name: str, settings: Mapping[str, Any], shapes: Shapes, state: Mapping[str, Tensor]
) -> int:
    """How many classes the checkpoint has, by the rows of a layer that has some for each."""
    count = settings.get("num_classes", 80)
    here = _converted(layout.codebase, name, shapes)
    more = _converted(layout.codebase, name, shapes_of(name, settings, count + 1))
    for key, there in layout.found.items():
        given = tuple(state[layout.prefix + there].shape)
        axis = next((i for i, (a, b) in enumerate(zip(here[key], more[key], strict=True)) if a != b), None)
        if axis is None or len(given) != len(here[key]):
            continue
        each = more[key][axis] - here[key][axis]
        found = count + (given[axis] - here[key][axis]) / each
        if found >= 1 and found == int(found):
            return int(found)
    return count


def _inverse(layout: Layout, name: str, shapes: Shapes, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file in our names and shapes.

    The map goes from our weights to the codebase's. So each of our values gets a number, the map moves the numbers, and
    the file's values go back to where the numbers came from.
    """
    sizes = {key: int(np.prod(shape)) for key, shape in shapes.items()}
    starts = dict(zip(sizes, np.cumsum([1, *sizes.values()]), strict=False))
    numbered = {
        key: np.arange(starts[key], starts[key] + size, dtype=np.int32).reshape(shapes[key])
        for key, size in sizes.items()
    }
    values = np.zeros(sum(sizes.values()), np.float32)
    known = np.zeros(len(values), bool)
    for key, numbers in CODEBASES[layout.codebase].convert(name, numbered).items():
        if key not in layout.found:
            continue
        given = state[layout.prefix + layout.found[key]]
        if tuple(given.shape) != numbers.shape:
            continue
        place = numbers[numbers > 0] - 1  # 0: a value that ours does not have, such as the background's boxes
        values[place] = given.float().numpy()[numbers > 0]
        known[place] = True
    ours = {}
    for key, size in sizes.items():
        part = slice(starts[key] - 1, starts[key] - 1 + size)
        if known[part].all():
            ours[key] = torch.from_numpy(values[part].reshape(shapes[key]).copy())
    return ours


def _of_classes(value: Tensor, wanted: tuple[int, ...], theirs: int, classes: Sequence[int]) -> Tensor:
    """The rows of some classes of a layer [anchors × classes × numbers, …]; a layer without classes stays as it is."""
    if tuple(value.shape) == wanted:
        return value
    rows, goal, count = value.shape[0], wanted[0], len(classes)
    for background in (0, 1):
        # rows = outer * (theirs + background) * inner, with as many outer and inner rows in what is wanted
        blocks, left = divmod(rows, theirs + background)
        if left == 0 and goal == blocks * (count + background):
            chosen = [*classes, *range(theirs, theirs + background)]
            inner = 4 if background == 0 and blocks == 4 else 1  # the sides of a box
            return value.unflatten(0, (blocks // inner, theirs + background, inner))[:, chosen].flatten(0, 2)
    return value


def _fold(model: nn.Module, taken: Sequence[str], epsilon: float) -> None:
    """Make frozen variances mean what they mean with another epsilon."""
    for path, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and f"{path}.running_var" in taken:
            module.running_var.add_(epsilon - module.eps)
